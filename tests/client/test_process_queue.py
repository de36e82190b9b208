"""The commit offset is the smallest unfinished one, in whatever order messages finish."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trimq.client.process_queue import ProcessQueue


def test_an_empty_queue_commits_where_it_reads_next() -> None:
    queue = ProcessQueue(7)
    assert (queue.commit_offset, queue.next_offset, len(queue)) == (7, 7, 0)


def test_filtered_offsets_need_no_acknowledgement() -> None:
    queue = ProcessQueue(0)
    queue.add([], 32, 0)
    assert queue.commit_offset == 32
    queue.add([35, 40], 64, 20)
    assert queue.commit_offset == 35
    queue.finish(35, 10)
    assert queue.commit_offset == 40
    queue.finish(40, 10)
    assert (queue.commit_offset, queue.bytes_held) == (64, 0)


def test_finishing_twice_changes_nothing() -> None:
    queue = ProcessQueue(0)
    queue.add([0, 1, 2], 3, 3)
    assert not queue.finish(1, 1)
    assert not queue.finish(1, 1)
    assert queue.finish(0, 1)
    assert not queue.finish(0, 1)
    assert (queue.commit_offset, len(queue), queue.bytes_held) == (2, 1, 1)


@given(st.data())
def test_nothing_unfinished_is_ever_below_the_commit_offset(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 60))
    order = data.draw(st.permutations(range(count)))
    queue = ProcessQueue(0)
    queue.add(range(count), count, count)
    unfinished = set(range(count))
    for offset in order:
        before = queue.commit_offset
        moved = queue.finish(offset, 1)
        unfinished.discard(offset)
        assert queue.commit_offset == min(unfinished, default=count)
        assert moved == (queue.commit_offset != before)
        assert len(queue) == len(unfinished) == queue.bytes_held
