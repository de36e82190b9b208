"""Helpers for the store's tests: entries by the handful, a log opened on a disk in memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import cbor2

from broker.store.columns import Columns
from broker.store.commit_log import CommitLog
from broker.store.entry import START, Entry, EntryId, EntryKind, fits, seal_entry, seal_filler
from broker.store.fs import FileSystem
from broker.store.fs_memory import MemoryFileSystem
from broker.store.message_store import MessageStore, StoreConfig, open_message_store
from trimq.message.properties import get as get_property
from trimq.message.record import iter_records, pack_record

LINEAGE = 0x1234ABCD
SEGMENT = 64 * 1024


def memory(seed: int = 1) -> MemoryFileSystem:
    return MemoryFileSystem(random.Random(seed))


def blob(size: int, seed: int) -> bytes:
    """A fake record: its size first (as in a real one), then bytes that are never a whole sector of zeros."""
    assert size >= 4
    return size.to_bytes(4, "big") + random.Random(seed).randbytes(size - 4)


def chain(
    prev: EntryId = START,
    count: int = 1,
    *,
    term: int = 1,
    size: int = 500,
    segment_bytes: int = SEGMENT,
    hint: int | None = None,
    lineage: int = LINEAGE,
) -> list[Entry]:
    """`count` message entries of about `size` bytes behind `prev`, with fillers where a segment ends."""
    entries: list[Entry] = []
    made = 0
    while made < count:
        commit = max(prev.index - 1, 0) if hint is None else hint
        record = blob(size, prev.index + 1 + 1000 * term)
        if not fits(prev.end, 64 + len(record), segment_bytes):
            entry = seal_filler(prev=prev, term=term, lineage=lineage, commit_hint=commit, segment_bytes=segment_bytes)
        else:
            entry = seal_entry(
                kind=EntryKind.MESSAGES, prev=prev, term=term, lineage=lineage, commit_hint=commit,
                records=[record], record_count=1,
            )  # fmt: skip
            made += 1
        entries.append(entry)
        prev = entry.id
    return entries


async def fill(log: CommitLog, count: int, *, term: int = 1, size: int = 500, step: int = 1) -> list[Entry]:
    """Append entries, `step` to a write."""
    if not log.formed:
        await log.form(LINEAGE, SEGMENT)
    entries = chain(log.last, count, term=term, size=size, segment_bytes=log.segment_bytes)
    for at in range(0, len(entries), step):
        await log.append(entries[at : at + step])
    return entries


async def whole(log: CommitLog) -> list[Entry]:
    """Every entry of the log, read from wherever it is."""
    entries: list[Entry] = []
    index = log.first_index
    while index <= log.last.index:
        entries.extend(await log.read(index, 100_000))
        index = entries[-1].index + 1
    return entries


def data(entries: Sequence[Entry]) -> list[bytes]:
    return [entry.data for entry in entries]


class FixedClock:
    """Wall time that a test moves."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def wall_ms(self) -> int:
        return self.now_ms


class Tables:
    """A small, real state machine: topics are made by control payloads, everything applied is remembered.

    A payload is `b"+name"` (create) or `b"-name"` (delete), several with commas.
    """

    def __init__(self) -> None:
        self.topics: dict[bytes, int] = {}
        self.made = 0
        self.applied = 0
        self.records = 0
        self.touched: list[Mapping[int, int]] = []
        self.on_topic_removed: list[Callable[[int], None]] = []

    def apply_control(self, entry: Entry, payload: bytes) -> None:
        for op in payload.split(b","):
            name = op[1:]
            if op[:1] == b"+":
                self.made += 1
                self.topics[name] = self.made
            else:
                tid = self.topics.pop(name)
                for tell in self.on_topic_removed:
                    tell(tid)

    def topic_id(self, topic: bytes) -> int:
        return self.topics[topic]

    def apply_records(self, entry: Entry, found: Columns) -> None:
        heads = list(iter_records(entry.records))
        assert found.uniques == [get_property(head.properties, b"UNIQ_KEY") for head in heads]
        self.records += len(heads)

    def entry_applied(self, entry: Entry, touched: Mapping[int, int]) -> None:
        assert entry.index == self.applied + 1
        self.applied = entry.index
        self.touched.append(touched)

    def snapshot(self) -> Callable[[], bytes]:
        topics, numbers = dict(self.topics), [self.made, self.applied, self.records]
        return lambda: cbor2.dumps([topics, numbers])

    def restore(self, data: bytes) -> None:
        self.topics, (self.made, self.applied, self.records) = cbor2.loads(data)


class Writer:
    """Makes entries of real records as a leader does: it knows the next offset of each queue."""

    def __init__(self, store: MessageStore, tables: Tables, clock: FixedClock) -> None:
        self.store = store
        self.tables = tables
        self.clock = clock
        self.next: dict[tuple[bytes, int], int] = {}
        self.sent: dict[tuple[bytes, int], list[bytes]] = {}

    async def send(
        self,
        topic: bytes,
        queue: int,
        bodies: Sequence[bytes],
        *,
        tag: bytes = b"",
        keys: bytes = b"",
        control: bytes = b"",
        dispatch: bool = True,
    ) -> Entry:
        """One entry with a record for each body."""
        log = self.store.log
        if not log.formed:
            await log.form(LINEAGE, SEGMENT)
        prev = log.last
        records, position = self._records(topic, queue, bodies, tag, keys, prev.end + 64)
        size = position - prev.end + len(control)
        entries = []
        if not fits(prev.end, size, log.segment_bytes):
            filler = seal_filler(
                prev=prev, term=1, lineage=LINEAGE, commit_hint=prev.index, segment_bytes=log.segment_bytes
            )
            entries.append(filler)
            prev = filler.id
            records, _ = self._records(topic, queue, bodies, tag, keys, prev.end + 64)
        entry = seal_entry(
            kind=EntryKind.MESSAGES if records else EntryKind.METADATA, prev=prev, term=1, lineage=LINEAGE,
            commit_hint=prev.index, records=records, control=control, record_count=len(records),
        )  # fmt: skip
        entries.append(entry)
        await log.append(entries)
        place = (topic, queue)
        self.next[place] = self.next.get(place, 0) + len(bodies)
        self.sent.setdefault(place, []).extend(records)
        if dispatch:
            self.store.allow(entry.index)
            await self.store.wait_dispatched(entry.index)
        return entry

    def _records(
        self, topic: bytes, queue: int, bodies: Sequence[bytes], tag: bytes, keys: bytes, position: int
    ) -> tuple[list[bytes], int]:
        records = []
        offset = self.next.get((topic, queue), 0)
        for at, body in enumerate(bodies):
            properties = b"UNIQ_KEY\x01" + topic + b"-%d-%d" % (queue, offset + at) + b"\x02"
            properties += b"TAGS\x01" + tag + b"\x02" if tag else b""
            properties += b"KEYS\x01" + keys + b"\x02" if keys else b""
            record = pack_record(
                topic=topic, queue_id=queue, queue_offset=offset + at, position=position, flag=0, sys_flag=0,
                born_ms=self.clock.now_ms, born_host=bytes(8), store_ms=self.clock.now_ms, store_host=bytes(8),
                reconsume_times=0, prepared_offset=0, body=body, properties=properties,
            )  # fmt: skip
            records.append(record)
            position += len(record)
        return records, position

    def key(self, topic: bytes, queue: int) -> int:
        return self.tables.topics[topic] << 16 | queue

    async def check(self) -> None:
        """Every message that was sent and is still in the log can be read at its offset, byte for byte."""
        store = self.store
        for (topic, queue), records in self.sent.items():
            if topic not in self.tables.topics:
                continue
            key = self.key(topic, queue)
            first = store.queues.first_offset(key)
            assert store.queues.next_offset(key) == len(records)
            got: list[bytes] = []
            while first + len(got) < len(records):
                found = await store.get_from_disk(key, first + len(got), 32, 100_000, None)
                assert found.count
                got.extend(_cut(b"".join(found.parts)))
                assert found.next_offset == first + len(got)
            assert got == records[first:]


def _cut(data: bytes) -> list[bytes]:
    records = []
    while data:
        size = int.from_bytes(data[:4], "big")
        records.append(data[:size])
        data = data[size:]
    return records


@asynccontextmanager
async def open_store(
    fs: FileSystem, *, writer: Writer | None = None, clock: FixedClock | None = None, **config: Any
) -> AsyncIterator[Writer]:
    """A store with `Tables`, and a writer for it; `writer` hands on what an earlier one sent.

    `config`: fields of `StoreConfig`.
    """
    tables = Tables()
    clock = clock or FixedClock()
    async with open_message_store(fs, clock, StoreConfig(**config), tables) as store:
        made = Writer(store, tables, clock)
        if writer is not None:
            made.next, made.sent = writer.next, writer.sent
        if store.log.fault is None:
            store.allow(store.log.last.index)
            await store.wait_dispatched(store.log.last.index)
        yield made
