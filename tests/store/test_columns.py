"""The two walks over an entry's records: the careful one in Python, and the compiled one where it is installed."""

from __future__ import annotations

from dataclasses import astuple
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.metadata.id_window import IdWindow, enter_carefully, id_key
from broker.store import columns
from broker.store.columns import COMPILED, Columns, columns_of, walk_carefully
from broker.store.index_values import TIMER_TOPIC
from broker.store.key_index import key_seed
from trimq.errors import RecordError
from trimq.message.record import MIN_RECORD_BYTES, pack_record
from trimq.message.tags import tags_code

TOPICS = {b"T": 1, b"other": 70_000, b"t" * 127: 3, TIMER_TOPIC: 9, b"long" * 50: 4}
V4, V6 = bytes(8), bytes(20)
PIECES = b"TAGS,KEYS,UNIQ_KEY,XKEYS,TIMER_OUT_MS,\x01,\x01,\x02,\x02,a,b c, ,12".split(b",")

strings = st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join) | st.binary(max_size=140)


def record(
    *,
    topic: bytes = b"T",
    queue_id: int = 0,
    queue_offset: int = 0,
    position: int = 0,
    body: bytes = b"",
    properties: bytes = b"",
    store_ms: int = 1_700_000_000_000,
    born_host: bytes = V4,
    reconsume_times: int = 0,
) -> bytes:
    return pack_record(
        topic=topic,
        queue_id=queue_id,
        queue_offset=queue_offset,
        position=position,
        flag=0,
        sys_flag=0,
        born_ms=0,
        born_host=born_host,
        store_ms=store_ms,
        store_host=V4,
        reconsume_times=reconsume_times,
        prepared_offset=0,
        body=body,
        properties=properties,
    )


def records(topics: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    one = st.builds(
        record,
        topic=topics,
        queue_id=st.integers(0, 3),
        queue_offset=st.integers(0, 3) | st.integers(0, 2**62),
        position=st.integers(0, 2**62),
        body=st.binary(max_size=20),
        properties=strings,
        store_ms=st.integers(0, 2**43),
        born_host=st.sampled_from([V4, V4, V4, V6]),
        reconsume_times=st.integers(0, 20),
    )
    return st.lists(one, max_size=8).map(b"".join)


def fast(data: bytes) -> Columns | None:
    """What the compiled walk gives, if there is one."""
    assert columns._fast_walk is not None
    found = columns._fast_walk(memoryview(data), TOPICS.__getitem__, key_seed, tags_code, TIMER_TOPIC)
    return None if found is None else Columns(*found)


needs_compiled = pytest.mark.skipif(not COMPILED, reason="trimq was installed here without a compiler")


@needs_compiled
@given(records(st.sampled_from(sorted(TOPICS))))
def test_the_compiled_walk_gives_what_the_careful_one_gives_or_nothing(data: bytes) -> None:
    found = fast(data)
    if found is not None:
        assert astuple(found) == astuple(walk_carefully(data, TOPICS.__getitem__))


@needs_compiled
@given(records(st.sampled_from([b"T", b"other"])), st.data())
def test_it_follows_no_length_that_is_wrong(data: bytes, draw: st.DataObject) -> None:
    raw = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4)) if raw else 0):
        raw[draw.draw(st.integers(0, len(raw) - 1))] = draw.draw(st.integers(0, 255))
    cut = bytes(raw[: draw.draw(st.integers(0, len(raw)))])
    found = fast(cut)
    if found is not None:
        assert astuple(found) == astuple(walk_carefully(cut, TOPICS.__getitem__))


@needs_compiled
def test_ordinary_records_are_walked_by_the_compiled_one() -> None:
    rows = [record(queue_offset=n, position=100 * n, properties=b"TAGS\x01a\x02KEYS\x01x y\x02") for n in range(100)]
    assert fast(b"".join(rows)) is not None
    assert fast(record(topic=TIMER_TOPIC)) is None
    assert fast(record(born_host=V6)) is None


@needs_compiled
@given(records(st.sampled_from(sorted(TOPICS))), st.data())
def test_the_compiled_loop_enters_the_same_ids(data: bytes, draw: st.DataObject) -> None:
    found = walk_carefully(data, TOPICS.__getitem__)
    count = len(found.topics)
    covered = bytes(draw.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    window, careful = IdWindow(), dict[int, int]()
    window.enter_all(found, covered)
    enter_carefully(careful, found, covered)
    assert window.flat()["fresh"] == careful
    assert all(
        window.get(id_key(topic, uniq, again)) is not None
        for topic, uniq, again, mark in zip(found.topics, found.uniques, found.reconsumes, covered, strict=True)
        if uniq and not mark
    )


def test_the_columns_of_three_records() -> None:
    data = [
        record(queue_offset=7, position=10, properties=b"TAGS\x01A\x02UNIQ_KEY\x01U\x02KEYS\x01k1  k2\x02"),
        record(queue_offset=8, position=20, reconsume_times=2),
        record(topic=b"other", queue_id=3, position=30, properties=b"KEYS\x01k1"),
    ]
    found = columns_of(memoryview(b"".join(data)), TOPICS.__getitem__)
    sizes = list(map(len, data))
    assert found.topics == [b"T", b"T", b"other"]
    assert (list(found.queue_ids), list(found.queue_offsets)) == ([0, 0, 3], [7, 8, 0])
    assert (list(found.positions), list(found.reconsumes)) == ([10, 20, 30], [0, 2, 0])
    assert found.uniques == [b"U", None, None]
    assert found.last_store_ms == 1_700_000_000_000
    assert [(key, first, list(units)) for key, first, units in found.runs] == [
        (1 << 16, 7, [10, sizes[0], tags_code(b"A"), 20, sizes[1], 0]),
        (70_000 << 16 | 3, 0, [30, sizes[2], 0]),
    ]
    first, second = key_seed(1), key_seed(70_000)
    assert list(found.hashes) == [crc32(b"U", first), crc32(b"k1", first), crc32(b"k2", first), crc32(b"k1", second)]
    assert list(found.seconds) == [1_700_000_000] * 4
    assert list(found.places) == [10, 10, 10, 30]


def test_a_gap_in_a_queue_begins_a_run_and_another_queue_between_does_not() -> None:
    places = ((0, 1), (1, 7), (0, 2), (0, 4), (1, 8), (0, 5), (0, 5))
    data = b"".join(record(queue_id=queue, queue_offset=offset) for queue, offset in places)
    runs = columns_of(data, TOPICS.__getitem__).runs
    assert [(key & 0xFFFF, first, len(units) // 3) for key, first, units in runs] == [
        (0, 1, 2), (1, 7, 2), (0, 4, 2), (0, 5, 1)
    ]  # fmt: skip


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(KeyError, match="nobody"):
        columns_of(record(topic=b"nobody"), TOPICS.__getitem__)
    for wrong in (record()[: MIN_RECORD_BYTES - 1], record() + b"\0", record(body=b"x" * 50)[:-10]):
        with pytest.raises(RecordError):
            columns_of(wrong, TOPICS.__getitem__)


def test_no_records_at_all() -> None:
    found = columns_of(b"", TOPICS.__getitem__)
    assert (found.last_store_ms, found.topics, found.runs) == (0, [], [])
