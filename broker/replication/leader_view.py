"""The leader view: applied state plus everything above it, committed or not.

A leader must decide with what its log *will* make true: a queue offset given to a message that is not yet committed is
taken; a topic created a moment ago exists; a sequence in flight is not new. So the view lays overlays over the applied
tables for the entries in (applied, last] and for the batches that are still growing. What is applied meanwhile drops
out of the overlays again, so they hold what is in flight and nothing else.

It exists only while this replica leads. A new leader builds it by scanning (applied, last] with the same code that
applies entries: `absorb`. Two code paths that hand out offsets, or counters taken before that scan, are how brokers
lose and duplicate messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from broker.metadata import ops
from broker.metadata.groups import GroupInfo
from broker.metadata.id_window import id_key
from broker.metadata.membership import decode_membership
from broker.metadata.ops import key_of
from broker.metadata.overlay import OverlayDict, Stamp
from broker.metadata.producers import ProducerState, Run, advance
from broker.metadata.state import UNIQ_KEY, GroupState, run_of, uncovered
from broker.metadata.tables import Overlaid
from broker.metadata.topics import TopicInfo
from broker.store.entry import Entry, EntryKind
from trimq.message.properties import get as get_property
from trimq.message.record import RecordHead, iter_records

__all__ = ["SLICE_BYTES", "LeaderView", "QueueEnds"]

SLICE_BYTES: Final = 256 << 10
"""A scan lets others run after so many bytes of records."""


class QueueEnds(Protocol):
    """The applied ends of the queues (the store's queue index)."""

    def next_offset(self, key: int) -> int:
        """The offset that the next dispatched message of a queue gets; 0 for an unknown queue."""
        ...


class LeaderView:
    """What the leader decides with."""

    def __init__(self, state: GroupState, queues: QueueEnds) -> None:
        self.state = state
        self._queues = queues
        self._stamp = Stamp()
        self.tables = Overlaid(state.tables, self._stamp)
        self.producers: OverlayDict[int, ProducerState] = OverlayDict(state.producers.items(), self._stamp)
        no_ids: Mapping[int, int] = {}
        self._ids: OverlayDict[int, int] = OverlayDict(no_ids, self._stamp)
        self.next: dict[int, int] = {}
        """Queue key → next offset, for every queue touched in this term. Absolute, so dispatching cannot upset it."""
        self.log_time = state.log_time
        """Log time of the newest entry or record, in milliseconds."""
        self.inherited_end = state.applied_end
        """Up to here entries are of earlier terms, or of this one's beginning: nobody here has a ticket for them."""

    # --- looking

    def topic(self, name: bytes) -> TopicInfo | None:
        return self.tables.topic_names.find(name)

    def group(self, name: str) -> GroupInfo | None:
        return self.tables.groups.get(name)

    def next_offset(self, key: int) -> int:
        """The offset that the next message of a queue will get."""
        known = self.next.get(key)
        return self._queues.next_offset(key) if known is None else known

    def offset(self, gid: int, key: int) -> int | None:
        """The consumer offset that will stand when everything in flight is applied."""
        return self.tables.offsets.get(gid, key)

    def lock_owner(self, gid: int, key: int) -> str | None:
        return self.tables.locks.owner(gid, key)

    def producer(self, pid: int) -> ProducerState | None:
        return self.producers.find(pid)

    def find_id(self, key: int) -> int | None:
        """Position of a record with this id key, from the overlay or the window."""
        found = self._ids.find(key)
        return self.state.id_window.get(key) if found is None else found

    # --- growing: the intake tells what it puts into the open batch

    def at_entry(self, index: int) -> None:
        """What follows belongs to the entry that will have this index."""
        self._stamp.index = index

    def apply(self, op: ops.Op) -> None:
        self.tables.apply(op, self.log_time)

    def add_run(self, pid: int, epoch: int, run: Run, floor: int) -> None:
        state = self.producers.find(pid)
        if state is not None and state.runs and state.runs[-1].position >= run.position:
            return  # scanned while it was being applied: the applied state has it already
        self.producers[pid] = advance(state, epoch, run, floor)

    def add_id(self, key: int, position: int) -> None:
        self._ids[key] = position

    # --- shrinking

    def forget(self, applied: int) -> None:
        """Entries up to `applied` are in the applied state now."""
        self.tables.forget(applied)
        self.producers.forget(applied)
        self._ids.forget(applied)

    # --- scanning

    def absorb(self, entry: Entry) -> Iterator[None]:
        """Take in one entry above the applied state; yields where others may run.

        Everything slow comes first and changes nothing. The change itself is made in one go at the end, and not at
        all when the entry was applied meanwhile: then so was everything scanned before it.
        """
        log_time, changes = _control_of(entry)
        heads: list[RecordHead] = []
        ids: list[tuple[int, int]] = []
        if entry.kind == EntryKind.MESSAGES:
            seen = 0
            for head in iter_records(entry.records):
                heads.append(head)
                if head.at - seen >= SLICE_BYTES:
                    seen = head.at
                    yield
            yield
            runs, own = _runs_and_own(changes)
            if self.state.id_window.enabled:
                for count, head in enumerate(uncovered(heads, runs, own)):
                    uniq = get_property(head.properties, UNIQ_KEY)
                    if uniq:
                        ids.append((id_key(head.topic, uniq, head.reconsume_times), head.position))
                    if count % 256 == 255:
                        yield
        yield
        self.inherited_end = max(self.inherited_end, entry.end)
        if heads and not changes:
            log_time = heads[-1].store_ms
        self.log_time = max(self.log_time, log_time)
        if entry.index > self.state.applied_index:
            self._take_in(entry.index, changes, heads, ids)
        else:
            self.next.clear()
            self.tables.pop.start_over()
            self.catch_up()

    def catch_up(self) -> None:
        """Entries were applied that this view has not seen: take over what is counted rather than looked up."""
        self.tables.catch_up()
        self.log_time = max(self.log_time, self.state.log_time)

    def _take_in(self, index: int, changes: list[ops.Op], heads: list[RecordHead], ids: list[tuple[int, int]]) -> None:
        self.at_entry(index)
        for op in changes:
            self.apply(op)
        for head in heads:
            info = self.topic(head.topic)
            if info is None:
                raise KeyError(f"entry {index} holds a record of an unknown topic {head.topic!r}")
            self.next[key_of(info.tid, head.queue_id)] = head.queue_offset + 1
        runs, _ = _runs_and_own(changes)
        for each in runs:
            named = heads[each.ordinal : each.ordinal + each.size]
            run = run_of(each, named[0].queue_id, named[0].queue_offset, [head.position for head in named])
            self.add_run(each.pid, each.epoch, run, each.floor)
        for key, position in ids:
            self.add_id(key, position)


def _control_of(entry: Entry) -> tuple[int, list[ops.Op]]:
    payload = entry.control
    if not payload:
        return 0, []
    if entry.kind == EntryKind.MEMBERSHIP:
        return decode_membership(payload)[0], []
    return ops.decode_payload(payload)


def _runs_and_own(changes: list[ops.Op]) -> tuple[list[ops.ProducerRun], list[tuple[int, int]]]:
    runs: list[ops.ProducerRun] = []
    own: list[tuple[int, int]] = []
    for op in changes:
        if type(op) is ops.Producers:
            runs.extend(op.runs)
        elif type(op) is ops.OwnRecords:
            own.extend(op.ranges)
    return runs, own
