"""The open batch: limits, fillers, positions."""

from __future__ import annotations

import random

import pytest

from broker.metadata.ops import ProducerRun, Producers, encode_op
from broker.replication.intake import Refused
from broker.replication.open_batch import CLOSE_BYTES, CLOSE_RECORDS, RUN_BYTES, BatchQueue, TooLarge
from broker.store.entry import ENTRY_MAX_BYTES, EntryId, EntryKind, parse_entries
from tests.support.intake_bench import Client, Replica, records_of
from trimq.message.batch import BatchElement

SEGMENT = 64 << 10


def queue(last: EntryId, segment_bytes: int = SEGMENT) -> BatchQueue:
    return BatchQueue(
        lineage_tag=1,
        segment_bytes=segment_bytes,
        term=3,
        last=last,
        log_time=lambda: 5,
        on_open=lambda _: None,
        on_close=lambda _, __: None,
    )


def add(batches: BatchQueue, size: int) -> None:
    batches.reserve(size, 1).add_record(size.to_bytes(4, "big") + bytes(size - 4))


def test_an_entry_closes_at_1024_records_and_the_next_one_grows_behind_it() -> None:
    batches = queue(EntryId(4, 3, 99, 1000), 16 << 20)
    for _ in range(CLOSE_RECORDS):
        add(batches, 100)
    assert batches.full
    assert len(batches.waiting) == 1
    add(batches, 100)
    first, second = batches.waiting
    assert second.position == first.end == 1000 + 64 + CLOSE_RECORDS * 100
    (entry,), _ = batches.take(EntryId(4, 3, 99, 1000), 2)
    (follower,), _ = batches.take(entry.id, 2)
    assert (entry.index, entry.record_count, entry.commit_hint) == (5, CLOSE_RECORDS, 2)
    assert (follower.index, follower.record_count, follower.prev_crc) == (6, 1, entry.crc)
    assert not batches.has_work


def test_an_entry_closes_at_one_mebibyte() -> None:
    batches = queue(EntryId(0, 0, 0, 0), 16 << 20)
    for _ in range(20):
        add(batches, 100_000)
    assert len(batches.waiting) == 2
    assert all(batch.at - batch.position <= CLOSE_BYTES for batch in batches.waiting)


def test_a_larger_request_is_alone_in_its_entry() -> None:
    batches = queue(EntryId(0, 0, 0, 0), 32 << 20)
    add(batches, 10)
    add(batches, 3 << 20)
    add(batches, 10)
    assert [len(batch.records) for batch in batches.waiting] == [1, 1, 1]


@pytest.mark.parametrize(("size", "count"), [(ENTRY_MAX_BYTES, 1), (100, 65_536)])
def test_a_request_beyond_the_largest_entry_is_refused(size: int, count: int) -> None:
    batches = queue(EntryId(0, 0, 0, 0), 32 << 20)
    with pytest.raises(TooLarge):
        batches.reserve(size, count)
    assert not batches.has_work


def test_a_request_larger_than_a_segment_is_refused() -> None:
    with pytest.raises(TooLarge):
        queue(EntryId(0, 0, 0, 0)).reserve(SEGMENT - 64, 1)


def test_a_batch_that_might_not_fit_begins_behind_a_filler() -> None:
    last = EntryId(9, 3, 5, SEGMENT - 1000)
    batches = queue(last)
    add(batches, 900)
    entries, batch = batches.take(last, 0)
    filler, entry = entries
    assert (filler.kind, filler.position, filler.end) == (EntryKind.FILLER, SEGMENT - 1000, SEGMENT)
    assert (entry.index, entry.position, batch.position) == (11, SEGMENT, SEGMENT)


def test_a_batch_that_reaches_the_segments_end_is_closed_there() -> None:
    last = EntryId(9, 3, 5, SEGMENT - 2000)
    batches = queue(last)
    for _ in range(3):
        add(batches, 700)
    entries, _ = batches.take(last, 0)
    assert [entry.record_count for entry in entries] == [2]
    entries, _ = batches.take(entries[-1].id, 0)
    assert [entry.kind for entry in entries] == [EntryKind.FILLER, EntryKind.MESSAGES]


def test_the_bound_of_a_producer_run_covers_the_largest_numbers() -> None:
    run = ProducerRun(2**64 - 1, 2**63 - 1, 2**63 - 1, 65_535, 2**63 - 1, 65_535)
    one = len(encode_op(Producers([run])))
    assert len(encode_op(Producers([run, run]))) - one <= RUN_BYTES


@pytest.mark.parametrize("seed", range(20))
def test_any_run_of_requests_makes_a_log_that_chains_and_fits_its_segments(seed: int) -> None:
    rng = random.Random(seed)
    replica = Replica(segment_bytes=256 << 10)
    replica.lead()
    for number in range(300):
        size = rng.choice([0, 10, 1000, 20_000, 150_000])
        try:
            if rng.random() < 0.2:
                elements = [BatchElement(bytes(size // 10), b"UNIQ_KEY\x01%d.%d" % (number, n)) for n in range(10)]
                replica.put_elements(elements, queue_id=rng.randrange(4))
            else:
                replica.put(body=bytes(size), queue_id=rng.randrange(4), uniq=b"%d" % number)
        except Refused:
            assert size == 150_000  # larger than a segment, as a batch with its properties
        if rng.random() < 0.1:
            replica.take()
        if rng.random() < 0.1:
            replica.flush()
    replica.flush()
    prev_end, prev_crc = 0, 0
    for entry in replica.log.entries:
        assert (entry.position, entry.prev_crc) == (prev_end, prev_crc)
        rest = -entry.end % replica.log.segment_bytes
        assert rest == 0 or rest >= 64
        assert entry.position // replica.log.segment_bytes == (entry.end - 1) // replica.log.segment_bytes
        prev_end, prev_crc = entry.end, entry.crc
        records_of(entry)
    assert parse_entries(b"".join(entry.data for entry in replica.log.entries)) == replica.log.entries
    assert any(entry.kind == EntryKind.FILLER for entry in replica.log.entries)


def test_a_batch_of_more_than_1024_records_is_one_entry() -> None:
    replica = Replica()
    replica.lead()
    client = Client()
    replica.put()
    replica.put_elements([BatchElement(b"x", b"UNIQ_KEY\x01%d" % n) for n in range(5000)], client)
    assert [entry.record_count for entry in replica.flush()] == [1, 5000]
    assert len(client.take()) == 1


def test_waking_happens_once_a_batch() -> None:
    replica = Replica()
    replica.lead()
    for _ in range(100):
        replica.put()
    assert replica.owner.wakes == 1
    replica.take()
    replica.put()
    assert replica.owner.wakes == 2
