"""A small store and a small source of entries: real parts in few lines, for tests of the replicators.

The store is a real CommitLog over a file system in memory with a dispatcher that keeps what it saw. The source puts
one payload into one record and tells what became of it.
"""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import cbor2
import trio

from broker.replication.base import Outcome, Owner, Replies, Ticket, Verdict
from broker.store.commit_log import CommitLog, open_commit_log
from broker.store.entry import Entry, EntryId, EntryKind, fits, seal_entry, seal_filler
from broker.store.fs_memory import MemoryFileSystem
from broker.store.install import finish_install
from broker.store.snapshot import Snapshot, list_snapshots, read_snapshot, write_snapshot
from raft.signals import Signal

SEGMENT_BYTES = 1 << 20
BATCH_RECORDS = 1024
BATCH_BYTES = 256 << 10
LOST = Outcome(Verdict.LOST)


class TestClock:
    __test__ = False

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(trio.current_time() * 1000)


def payloads(entry: Entry) -> list[bytes]:
    """The payloads in an entry's records."""
    data = bytes(entry.records)
    found = []
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        found.append(data[at + 4 : at + size])
        at += size
    return found


class SmallStore:
    """`ReplicatedStore`: dispatching means appending to `applied`."""

    def __init__(self, fs: MemoryFileSystem, log: CommitLog) -> None:
        self.fs = fs
        self.log = log
        self.pins: list[int] = []
        self.failure: Exception | None = None
        self.clock = TestClock()
        self.dispatched = 0
        self.dispatched_end = 0
        self.applied: list[tuple[int, bytes]] = []
        self.entries: list[tuple[int, int, int]] = []
        self.held = False
        self._allowed = 0
        self._wake = Signal()
        self._moved = trio.Event()

    def allow(self, index: int) -> None:
        self._allowed = max(self._allowed, index)
        self._wake.set()

    async def wait_dispatched(self, index: int) -> None:
        while self.dispatched < index:
            await self._moved.wait()
        await trio.lowlevel.checkpoint()

    async def snapshot(self) -> None:
        at = self.log.entry_id(self.dispatched)
        assert at is not None
        state = cbor2.dumps([self.applied, self.entries])
        none = array("Q")
        if at.index:
            await write_snapshot(self.fs, Snapshot(self.log.lineage, at, state, none, none, none))

    async def recover(self) -> None:
        for index in await list_snapshots(self.fs):
            found = await read_snapshot(self.fs, index)
            if found is not None and self.log.entry_id(index) == found.at:
                applied, entries = cbor2.loads(found.machine)
                self.applied = [tuple(item) for item in applied]
                self.entries = [tuple(item) for item in entries]
                self.dispatched, self.dispatched_end = found.at.index, found.at.end
                return

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            while not self.held and self.dispatched < min(self._allowed, self.log.last.index):
                for entry in await self.log.read(self.dispatched + 1, 1 << 20):
                    if entry.index > min(self._allowed, self.log.last.index):
                        break
                    if entry.kind == EntryKind.MESSAGES:
                        self.applied += [(entry.index, payload) for payload in payloads(entry)]
                    self.entries.append((entry.index, entry.term, entry.crc))
                    self.dispatched, self.dispatched_end = entry.index, entry.end
                self._moved.set()
                self._moved = trio.Event()


class SmallSource:
    """`EntrySource`: `put` admits one payload."""

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.outcomes: dict[bytes, Outcome] = {}
        self.scanned: list[bytes] = []
        self.terms: list[int] = []
        self.log: CommitLog | None = None
        self.batches = 0
        self.flushed = 0
        self._term = 0
        self._open: list[bytes] = []
        self._prev: EntryId | None = None

    def attach(self, owner: Owner) -> None:
        self.owner = owner

    async def scan(self, term: int, entries: AsyncIterator[Entry]) -> None:
        self.scanned = []
        async for entry in entries:
            if entry.kind == EntryKind.MESSAGES:
                self.scanned += payloads(entry)

    def begin_term(self, term: int, last: EntryId) -> None:
        assert not self._term
        self._term = term
        self.terms.append(term)
        self._prev = last

    def end_term(self) -> None:
        self._term = 0
        lost, self._open = self._open, []
        for payload in lost:
            self.outcomes[payload] = LOST

    def put(self, payload: bytes) -> bool:
        if not self._term:
            return False
        self._open.append(payload)
        assert self.owner is not None
        self.owner.wake()
        return True

    def has_work(self) -> bool:
        return bool(self._open)

    @property
    def full(self) -> bool:
        return len(self._open) >= BATCH_RECORDS or sum(map(len, self._open)) >= BATCH_BYTES

    def take(self, prev: EntryId, commit: int) -> Sequence[tuple[Entry, Ticket | None]]:
        assert prev == self._prev, (prev, self._prev)
        assert self.log is not None
        taken: list[bytes] = []
        size = 0
        while self._open and len(taken) < BATCH_RECORDS and size < BATCH_BYTES:
            taken.append(self._open.pop(0))
            size += len(taken[-1]) + 4
        records = [struct.pack(">I", len(payload) + 4) + payload for payload in taken]
        out: list[tuple[Entry, Ticket | None]] = []
        lineage = self.log.lineage
        if not fits(prev.end, 64 + size, self.log.segment_bytes):
            filler = seal_filler(
                prev=prev,
                term=self._term,
                lineage=lineage,
                commit_hint=commit,
                segment_bytes=self.log.segment_bytes,
            )
            out.append((filler, None))
            prev = filler.id
        entry = seal_entry(
            kind=EntryKind.MESSAGES,
            prev=prev,
            term=self._term,
            lineage=lineage,
            commit_hint=commit,
            records=records,
            record_count=len(records),
        )
        ticket = Ticket()

        def settled(outcome: Outcome, replies: Replies) -> None:
            for payload in taken:
                self.outcomes[payload] = outcome

        ticket.on_settled(settled)
        out.append((entry, ticket))
        self._prev = entry.id
        self.batches += 1
        return out

    def flush(self) -> None:
        self.flushed += 1

    def rebase(self, prev: EntryId) -> None:
        self._prev = prev


@asynccontextmanager
async def open_small_store(fs: MemoryFileSystem, boot_id: str = "") -> AsyncIterator[SmallStore]:
    await finish_install(fs)
    async with open_commit_log(fs, boot_id=boot_id) as log, trio.open_nursery() as nursery:
        store = SmallStore(fs, log)
        await store.recover()
        nursery.start_soon(store.run)
        yield store
        nursery.cancel_scope.cancel()


def memory_fs(seed: object) -> MemoryFileSystem:
    return MemoryFileSystem(random.Random(str(seed)), latency_s=0.0005)
