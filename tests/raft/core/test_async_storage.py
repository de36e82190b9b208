"""Asynchronous storage writes: a promise rides on the write that makes it true."""

from __future__ import annotations

import itertools

import pytest

from raft.core import (
    ZERO,
    AppendReply,
    AppendRequest,
    EntryId,
    HardState,
    InvariantBroken,
    Role,
    StorageFault,
    VoteRequest,
)
from raft.core.log import RaftLog
from raft.core.writes import WriteQueue
from tests.raft.core.cluster import Cluster, Replica
from tests.raft.core.model import Disk, Entry, seal_terms


def told(cluster: Cluster, term: int, log: list[Entry]) -> None:
    """The oracle knows this leader's log."""
    cluster.checker.said[term, 0] = 0
    for entry in log:
        cluster.checker.said[term, entry.index] = entry.crc
        cluster.checker.entry("a", entry)


def append(replica: Replica, term: int, log: list[Entry], first: int, *, sender: str = "a", commit: int = 0) -> None:
    """The leader of `term` sends everything of its log behind `first`."""
    told(replica.cluster, term, log)
    prev = EntryId.of(log[first - 1]) if first else ZERO
    replica.step(AppendRequest(term, sender, replica.id, prev, EntryId.of(log[-1]), commit, 0, tuple(log[first:])))


def acks(cluster: Cluster) -> list[tuple[int, int]]:
    """(term, match) of the acknowledgements under way."""
    return [(m.term, m.match) for m in cluster.queue if isinstance(m, AppendReply) and m.rejected < 0]


def follower(log: list[Entry] | None = None) -> Replica:
    """b, whose writes finish when the test says so."""
    cluster = Cluster("abc", logs={"b": log or []})
    cluster.held.add("b")
    return cluster["b"]


def test_an_acknowledgement_leaves_only_with_its_write() -> None:
    b = follower()
    append(b, 1, seal_terms([1, 1]), 0)
    assert not b.cluster.queue
    assert [type(m).__name__ for batch in b.disk.queue for m in batch.release] == ["AppendReply"]
    b.finish()
    assert acks(b.cluster) == [(1, 2)]


def test_acknowledgements_leave_in_the_order_of_the_writes() -> None:
    b = follower()
    log = seal_terms([1, 1, 1])
    append(b, 1, log[:1], 0)
    append(b, 1, log[:2], 1)
    append(b, 1, log, 2)
    for count in (1, 2, 3):
        b.finish()
        assert [match for _, match in acks(b.cluster)] == list(range(1, count + 1))


def test_one_report_may_cover_several_writes() -> None:
    b = follower()
    log = seal_terms([1, 1, 1])
    for n in range(3):
        append(b, 1, log[: n + 1], n)
    seq = [b.disk.finish() for _ in range(3)][-1]
    b.core.append_done(seq, b.now_ms)
    b.turn()
    assert b.core.durable == 3
    assert acks(b.cluster) == [(1, 1), (1, 2), (1, 3)]


def test_a_rejection_waits_for_the_writes_before_it() -> None:
    b = follower()
    log = seal_terms([1, 1, 1])
    append(b, 1, log[:1], 0)
    append(b, 1, log, 2)  # its prev, 2, is missing here
    assert not b.cluster.queue
    b.finish()
    b.finish()
    assert [m.rejected for m in b.cluster.queue if isinstance(m, AppendReply)] == [-1, 2]


def test_an_acknowledgement_of_known_entries_waits_for_their_write() -> None:
    b = follower()
    log = seal_terms([1, 1])
    append(b, 1, log, 0)
    append(b, 1, log, 0)
    b.finish()
    assert acks(b.cluster) == [(1, 2)]
    b.finish()
    assert acks(b.cluster) == [(1, 2), (1, 2)]


def test_commit_as_match_is_not_acknowledged_before_it_is_durable_here() -> None:
    b = follower()
    log = seal_terms([1, 1, 1])
    append(b, 1, log, 0, commit=3)
    assert b.core.commit == 3
    append(b, 1, log[:2], 0)  # a delayed request below commit
    assert not b.cluster.queue
    b.finish()
    b.finish()
    assert acks(b.cluster) == [(1, 3), (1, 3)]


def test_a_truncation_is_queued_behind_the_writes_before_it() -> None:
    b = follower()
    old, new = seal_terms([1, 1, 1]), seal_terms([1, 2])
    append(b, 1, old, 0)
    append(b, 2, new, 1, sender="c")
    steps = [(batch.truncate_to, [e.term for e in batch.entries]) for batch in b.disk.queue]
    assert steps[0] == (None, [1, 1, 1])
    cuts = [cut for cut, _ in steps if cut is not None]
    assert cuts == [EntryId.of(old[0])]
    while b.disk.queue:
        b.finish()
    assert [e.term for e in b.disk.entries] == [1, 2]


def test_a_truncation_lowers_durable_at_once_with_the_term_it_stands_for() -> None:
    b = follower(seal_terms([1, 1, 1]))
    assert b.core.durable == 3
    append(b, 2, seal_terms([1, 2, 2, 2]), 1, sender="c")
    assert b.core.durable == 1
    assert [b.core.log.term_at(i) for i in range(1, 5)] == [1, 2, 2, 2]
    assert b.disk.last.index == 3, "the disk still shows the old tail, and nobody looks"


def test_aba_a_finished_write_does_not_make_durable_what_a_queued_truncation_will_cut() -> None:
    # Entry 2 of term 1 is being written; term 2 replaces it; then a leader whose entry 2 is the old one returns.
    b = follower(seal_terms([1]))
    first, second = seal_terms([1, 1]), seal_terms([1, 2])
    append(b, 2, first, 1, sender="a")
    append(b, 3, second, 1, sender="c")
    append(b, 4, [*first], 1, sender="a")
    assert b.terms == [1, 1]
    durable = []
    while b.disk.queue:
        cuts = [q.truncate_to.index for q in itertools.islice(b.disk.queue, 1, None) if q.truncate_to is not None]
        b.finish()
        durable.append(b.core.durable)
        assert b.core.durable <= min(cuts, default=99)
    assert durable[-1] == 2
    assert 2 not in durable[:-1]
    # The acknowledgement of the last leader left after the last write, which the checker compared with the disk.
    assert acks(b.cluster)[-1] == (4, 2)


@pytest.mark.parametrize("steps", range(8))
def test_a_crash_between_any_two_steps_of_queued_writes_leaves_a_log_that_starts(steps: int) -> None:
    b = follower(seal_terms([1]))
    append(b, 2, seal_terms([1, 1, 1]), 1, sender="a")
    append(b, 3, seal_terms([1, 2, 2]), 1, sender="c")
    append(b, 4, seal_terms([1, 1, 1]), 1, sender="a")
    b.crash(steps)
    b.start()
    b.cluster.held.clear()
    append(b, 5, seal_terms([1, 1, 1, 5]), 1)
    b.cluster.settle()
    assert b.terms == [1, 1, 1, 5]
    assert b.disk.hard.term == 5


def test_the_hard_state_of_a_turn_reaches_the_disk_before_its_entries() -> None:
    b = follower()
    append(b, 7, seal_terms([1]), 0)
    assert b.disk.queue[0].hard_state is not None
    assert b.disk.queue[0].hard_state.term == 7
    b.crash(1)
    assert (b.disk.hard.term, len(b.disk.entries)) == (7, 0)


def test_a_place_in_the_queue_needs_no_sync_but_is_reported_in_its_turn() -> None:
    b = follower()
    log = seal_terms([1])
    append(b, 1, log, 0)
    append(b, 1, log, 0)
    assert [batch.sync for batch in b.disk.queue] == [True, False]


def test_reporting_a_write_that_is_not_under_way_stops_the_replica() -> None:
    b = follower()
    with pytest.raises(InvariantBroken, match="S11"):
        b.core.append_done(99, 0)


def test_reporting_a_write_that_the_log_does_not_show_stops_the_replica() -> None:
    b = follower()
    append(b, 1, seal_terms([1]), 0)
    with pytest.raises(InvariantBroken, match="S11"):
        b.core.append_done(b.disk.queue[-1].seq, 0)


@pytest.mark.parametrize("role", ["follower", "candidate", "leader"])
def test_after_a_failed_write_nothing_of_it_is_ever_promised(role: str) -> None:
    cluster = Cluster("abc")
    a = cluster["a"]
    if role == "leader":
        cluster.elect("a")
    cluster.held.add("a")
    if role == "follower":
        append(a, 1, seal_terms([1]), 0, sender="b")
        a.step(VoteRequest(2, "c", "a", EntryId.of(seal_terms([1])[0]), 1, False, transfer=True))
    elif role == "candidate":
        a.core._campaign(pre=False)
        a.turn()
    else:
        a.propose("x")
        cluster.settle()
    commit = a.core.commit
    cluster.lose()
    a.core.storage_failed(StorageFault.FAILED, a.now_ms)
    a.turn()
    cluster.lose()
    a.core.append_done(99, a.now_ms)  # a late report counts for nothing
    a.tick(3_000)
    a.step(VoteRequest(9, "c", "a", EntryId(99, 9, 0, 0), 5, False, transfer=True))
    assert a.core.role == Role.FOLLOWER
    assert a.core.commit == commit
    assert not [m for m in cluster.queue if m.sender == "a"]


# -- the two small machines underneath -----------------------------------------------------------------------------


def test_the_write_queue_caps_what_is_reached_at_the_lowest_queued_truncation() -> None:
    queue = WriteQueue()
    log = seal_terms([1, 1, 1, 1])
    queue.entries(log, None)
    queue.take()
    queue.entries(log[3:], EntryId.of(log[2]))
    queue.take()
    queue.entries(log[2:], EntryId.of(log[1]))
    assert queue.done(1) == (2, [])
    queue.take()
    assert queue.done(2) == (2, [])
    assert queue.done(3) == (4, [])
    assert queue.idle


def test_the_write_queue_merges_a_turn_but_never_across_a_truncation() -> None:
    queue = WriteQueue()
    log = seal_terms([1, 1, 1])
    queue.hard_state(HardState(1))
    queue.entries(log[:1], None)
    queue.entries(log[1:], None)
    queue.entries(log[1:], EntryId.of(log[0]))
    batches = queue.take()
    assert [(len(b.entries), b.truncate_to is not None, b.hard_state is not None) for b in batches] == [
        (3, False, True),
        (2, True, False),
    ]


def test_a_truncation_that_opens_a_turn_shares_its_batch_with_the_hard_state() -> None:
    queue = WriteQueue()
    log = seal_terms([1, 1])
    queue.hard_state(HardState(2))
    queue.entries(log[1:], EntryId.of(log[0]))
    assert len(queue.take()) == 1


def test_the_log_answers_terms_across_the_border_of_what_is_durable() -> None:
    disk = Disk(seal_terms([1, 1, 3, 3]))
    log = RaftLog(disk)
    log.append(seal_terms([1, 1, 3, 3, 3, 5, 5])[4:])
    terms = [1, 1, 3, 3, 3, 5, 5]
    for index in range(9):
        for term in range(7):
            expected = max((i for i, t in enumerate(terms, 1) if i <= index and t <= term), default=0)
            assert log.last_index_at_most(index, term) == expected
    assert [log.term_at(i) for i in range(1, 9)] == [*terms, None]
    log.truncate_after(2)
    assert log.last_index_at_most(9, 9) == 2
    assert log.entry_id(3) is None


def test_a_run_of_entries_is_cut_by_bytes_but_never_empty() -> None:
    disk = Disk(seal_terms([1] * 50))
    log = RaftLog(disk)
    assert log.fit(1, 99).index == 1
    assert log.fit(1, 100).index == 1
    assert log.fit(1, 250).index == 2
    assert log.fit(11, 1_000).index == 20
    assert log.fit(11, 1 << 30).index == 50
    assert log.fit(50, 1).index == 50
