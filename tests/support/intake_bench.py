"""A replica without disk and network: an intake, a log in a list, and the steps of replicator and dispatcher by hand.

`take`, `commit`, `apply` are separate calls, so a test decides what is open, in flight, committed or applied at any
moment. The dispatcher here checks what the real one relies on: queue offsets are dense, positions are the records' own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from broker.metadata.ops import key_of
from broker.metadata.state import GroupState
from broker.replication.base import LeaderHint, Outcome, Replies, Ticket, Verdict
from broker.replication.intake import Intake, IntakeConfig
from broker.replication.requests import Answer, PutMessage
from broker.store.columns import columns_of
from broker.store.entry import START, Entry, EntryId, EntryKind, seal_entry
from trimq.message.ids import host_bytes
from trimq.message.properties import get as get_property
from trimq.message.record import Record, RecordHead, iter_records, unpack_record
from trimq.wire.command import Command, decode

if TYPE_CHECKING:
    from trimq.message.batch import BatchElement

HOST = host_bytes("10.0.0.1:10911")
OK = Outcome(Verdict.OK)
LOST = Outcome(Verdict.LOST, LeaderHint("n1", "10.0.0.2:10911", 2))
UNKNOWN = Outcome(Verdict.UNKNOWN, LeaderHint("n1", "10.0.0.2:10911", 2))


class ManualClock:
    """Wall time that a test sets."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def wall_ms(self) -> int:
        return self.now_ms


class Client:
    """Where answers go: decodes them."""

    def __init__(self) -> None:
        self.peer, self.local = "10.9.9.9:5000", "10.0.0.1:10911"
        self.sends = 0
        self.got: list[Command] = []
        self._opaque = 0
        self._news = trio.Event()

    def send(self, frame: bytes) -> None:
        self.sends += 1
        while frame:
            length = int.from_bytes(frame[:4], "big") + 4
            self.got.append(decode(frame[4:length]))
            frame = frame[length:]
        self._news.set()

    def answer(self, *, oneway: bool = False, ours: bool = False) -> Answer:
        """The right to one answer; opaques count up from 1."""
        self._opaque += 1
        return Answer(self, self._opaque, 0, oneway=oneway, ours=ours)

    async def answered(self, count: int = 1) -> None:
        """Until so many answers have come."""
        while len(self.got) < count:
            self._news = trio.Event()
            await self._news.wait()

    def take(self) -> list[Command]:
        got, self.got = self.got, []
        return got


class Log:
    """The log as the intake sees it: every entry in memory, cached or not as the test says."""

    lineage = 77

    def __init__(self, segment_bytes: int = 16 << 20) -> None:
        self.segment_bytes = segment_bytes
        self.entries: list[Entry] = []
        self.first_position = 0
        self.cached = True
        self.reads = 0

    @property
    def last(self) -> EntryId:
        return self.entries[-1].id if self.entries else START

    def _at(self, position: int, size: int) -> bytes | None:
        for entry in self.entries:
            if entry.position <= position < entry.end:
                return entry.data[position - entry.position :][:size]
        return None

    def cached_bytes(self, position: int, size: int) -> memoryview | None:
        found = self._at(position, size) if self.cached else None
        return None if found is None else memoryview(found)

    async def read_record(self, position: int) -> bytes:
        self.reads += 1
        head = self._at(position, 4)
        assert head is not None
        raw = self._at(position, int.from_bytes(head, "big"))
        assert raw is not None
        return raw


class Queues:
    """Applied queue ends."""

    def __init__(self) -> None:
        self.ends: dict[int, int] = {}

    def next_offset(self, key: int) -> int:
        return self.ends.get(key, 0)


class Keys:
    """A key index that walks everything applied."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.asked: list[tuple[int, bytes, int, int]] = []

    async def lookup(self, tid: int, key: bytes, begin_ms: int, end_ms: int, limit: int) -> Sequence[int]:
        self.asked.append((tid, key, begin_ms, end_ms))
        state = self._replica.state
        return [
            record.position
            for entry in self._replica.log.entries
            if entry.index <= state.applied_index
            for record in records_of(entry)
            if get_property(record.properties, b"UNIQ_KEY") == key and state.topic_id(record.topic) == tid
            if begin_ms <= record.store_ms <= end_ms
        ][:limit]


class CountedIds:
    """Unique ids that count up, 32 characters each."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._made = 0

    def new_id(self) -> str:
        self._made += 1
        return f"{self._prefix}{self._made:0{32 - len(self._prefix)}d}"

    def new_ids(self, count: int) -> list[str]:
        return [self.new_id() for _ in range(count)]


class Owner:
    def __init__(self) -> None:
        self.has_room = True
        self.shortage = ""
        self.wakes = 0
        self.leader = LeaderHint("n1", "10.0.0.2:10911", 2)

    def wake(self) -> None:
        self.wakes += 1


class Replica:
    """One replica; `lead()` makes it the leader."""

    def __init__(self, *, segment_bytes: int = 16 << 20, config: IntakeConfig | None = None, **window: int) -> None:
        self.clock = ManualClock()
        self.log = Log(segment_bytes)
        self.queues = Queues()
        self.keys = Keys(self)
        self.state = GroupState(**window)
        self.owner = Owner()
        self.intake = Intake(
            self.state,
            self.log,
            self.queues,
            self.keys,
            self.clock,
            config or IntakeConfig(store_host=HOST),
            CountedIds("BROKER"),
        )
        self.intake.attach(self.owner)
        self.tickets: list[tuple[int, Ticket]] = []
        self.term = 0

    # --- replicator

    def lead(self) -> None:
        """Become leader with everything applied: no-op, then admission."""
        self.elect()
        self.apply()

    def elect(self, *, scan: bool = True) -> None:
        """Become leader by scanning (applied, last]; the no-op is part of it, as with the real replicators."""
        self.term += 1
        noop = seal_entry(
            kind=EntryKind.NOOP, prev=self.log.last, term=self.term, lineage=77, commit_hint=self.state.applied_index
        )
        self.log.entries.append(noop)
        if scan:
            run_scan(self.intake, self.term, self.log.entries[self.state.applied_index :])
        self.intake.begin_term(self.term, self.log.last)

    def elect_noop(self) -> None:
        """An entry of the replicator's own while the open batch is empty."""
        entry = seal_entry(kind=EntryKind.NOOP, prev=self.log.last, term=self.term, lineage=77, commit_hint=0)
        self.log.entries.append(entry)
        self.intake.rebase(entry.id)

    def take(self) -> list[Entry]:
        """The replicator takes everything there is."""
        out: list[Entry] = []
        while self.intake.has_work():
            taken = self.intake.take(self.log.last, self.state.applied_index)
            for entry, ticket in taken:
                self.log.entries.append(entry)
                out.append(entry)
                if ticket is not None:
                    ticket.index = entry.index
                    self.tickets.append((entry.index, ticket))
        return out

    def settle(self, outcome: Outcome = OK) -> None:
        """All tickets in order, answers grouped as the replicator does it."""
        tickets, self.tickets = self.tickets, []
        replies = Replies()
        for _, ticket in tickets:
            ticket.settle(outcome, replies)
        replies.flush()

    def apply(self, up_to: int | None = None) -> None:
        """The dispatcher catches up."""
        for entry in self.log.entries[self.state.applied_index : up_to]:
            apply_entry(self.state, self.queues, entry)

    def flush(self) -> list[Entry]:
        """Take, commit and apply everything."""
        entries = self.take()
        self.settle()
        self.apply()
        return entries

    # --- requests

    def put(self, client: Client | None = None, **fields: object) -> None:
        self.intake.put(message(**fields), client.answer() if client is not None else None)

    def put_elements(self, elements: Sequence[BatchElement], client: Client | None = None, **fields: object) -> None:
        self.intake.put_elements(message(**fields), elements, client.answer() if client is not None else None)

    def records(self) -> list[Record]:
        return [record for entry in self.log.entries for record in records_of(entry)]


def message(**fields: object) -> PutMessage:
    given: dict[str, object] = {
        "topic": b"orders",
        "queue_id": 0,
        "body": b"body",
        "born_ms": 1_699_999_999_000,
        "born_host": host_bytes("10.9.9.9:5000"),
        "producer_group": "producers",
    }
    given.update(fields)
    if "uniq" in given:
        uniq = given.pop("uniq")
        assert isinstance(uniq, bytes)
        given["properties"] = b"UNIQ_KEY\x01%b\x02" % uniq
    return PutMessage(**given)  # type: ignore[arg-type]  # a test's keyword arguments


def records_of(entry: Entry) -> list[Record]:
    out: list[Record] = []
    raw, at = entry.records, 0
    while entry.kind == EntryKind.MESSAGES and at < len(raw):
        out.append(unpack_record(raw, at))
        at += out[-1].size
    return out


def apply_entry(state: GroupState, queues: Queues, entry: Entry) -> None:
    """What the dispatcher does with one committed entry."""
    assert entry.index == state.applied_index + 1
    payload = entry.control
    if payload:
        state.apply_control(entry, payload)
    touched: dict[int, int] = {}
    if entry.kind == EntryKind.MESSAGES:
        heads: list[RecordHead] = list(iter_records(entry.records))
        assert len(heads) == entry.record_count
        for head in heads:
            assert head.position == entry.position + 64 + head.at
            key = key_of(state.topic_id(head.topic), head.queue_id)
            assert head.queue_offset == queues.next_offset(key), "queue offsets are dense"
            queues.ends[key] = touched[key] = head.queue_offset + 1
        state.apply_records(entry, columns_of(entry.records, state.topic_id))
    state.entry_applied(entry, touched)


def run_scan(intake: Intake, term: int, entries: Sequence[Entry], between: Callable[[], None] = lambda: None) -> None:
    """Drive `scan` without a loop; `between` is called wherever others might run."""

    async def stream() -> AsyncIterator[Entry]:
        for entry in entries:
            yield entry

    drive(intake.scan(term, stream()), between)


def drive(coroutine: object, between: Callable[[], None] = lambda: None) -> None:
    """Run something that only ever checkpoints."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            async def others() -> None:
                while True:
                    between()
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(others)
            await coroutine  # type: ignore[misc]  # any awaitable
            nursery.cancel_scope.cancel()

    trio.run(main)
