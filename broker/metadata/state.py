"""The applied state of a replica group: every table that is a function of the log.

The dispatcher of the store feeds it, on every replica alike, in log order and only with committed entries
(`broker.store.dispatch.StateMachine`). Per entry: `apply_control` (if there is a payload), then `apply_records` (if
there are records), then `entry_applied`. Nothing here waits, decides or refuses: what is in the log counts; an op that
this version does not know stops the replica group.

Others learn of changes through plain lists of callables, called synchronously and in order of registration:
`on_touched` (long polls), `on_applied` (whoever waits for an entry; the leader's view), `on_topics` (registration),
`on_topic_removed` (the index drops the queues), `on_groups`, `on_members`, `on_membership`, `on_settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import cbor2

from broker.metadata import ops
from broker.metadata.groups import Groups
from broker.metadata.id_window import COUNT_MAX, PERIOD_MS, IdWindow
from broker.metadata.locks import Locks
from broker.metadata.members import Members
from broker.metadata.membership import MembershipView, decode_membership
from broker.metadata.offsets import Offsets
from broker.metadata.pop import PopTable
from broker.metadata.producers import Producers, Run, pack_positions
from broker.metadata.progress import ProgressTable
from broker.metadata.settings import Settings
from broker.metadata.tables import Applied
from broker.metadata.timers import Timers
from broker.metadata.topics import Topics
from broker.metadata.transactions import Transactions
from broker.store.columns import Columns
from broker.store.entry import Entry, EntryKind

if TYPE_CHECKING:
    from trimq.message.record import RecordHead

__all__ = ["SNAPSHOT_FORMAT", "UNIQ_KEY", "GroupState", "run_of", "uncovered"]

SNAPSHOT_FORMAT = 1
UNIQ_KEY = b"UNIQ_KEY"
_TOPIC_OPS = (ops.TopicPut, ops.TopicDel)
_GROUP_OPS = (ops.GroupPut, ops.GroupDel)


class GroupState:
    """All tables of one replica group at `applied_index`."""

    def __init__(self, *, window_ms: int = PERIOD_MS, window_count: int = COUNT_MAX) -> None:
        self.tables = Applied()
        self.producers = Producers()
        self.id_window = IdWindow(period_ms=window_ms, count_max=window_count)
        self.membership: MembershipView | None = None
        self.membership_payload = b""
        self.applied_index = 0
        self.applied_end = 0
        """Position behind the last applied entry."""
        self.log_time = 0
        """Log time of the last applied entry that has one, in milliseconds."""
        self.topics_changed = 0
        """Index of the last entry that changed a topic: the counter of the registration's data version."""

        self.on_touched: list[Callable[[Mapping[int, int]], None]] = []
        """Queue key → its new next offset."""
        self.on_applied: list[Callable[[int, int], None]] = []
        """Index of the entry and the position behind it."""
        self.on_topics: list[Callable[[], None]] = []
        self.on_topic_removed: list[Callable[[int], None]] = []
        self.on_groups: list[Callable[[], None]] = []
        self.on_members: list[Callable[[int], None]] = []
        self.on_membership: list[Callable[[], None]] = []
        self.on_settings: list[Callable[[], None]] = []

        self._runs: Sequence[ops.ProducerRun] = ()
        self._own: Sequence[tuple[int, int]] = ()
        self._told: list[Callable[[], None]] = []

    # --- the tables by name

    @property
    def topics(self) -> Topics:
        return self.tables.topics

    @property
    def groups(self) -> Groups:
        return self.tables.groups

    @property
    def offsets(self) -> Offsets:
        return self.tables.offsets

    @property
    def members(self) -> Members:
        return self.tables.members

    @property
    def locks(self) -> Locks:
        return self.tables.locks

    @property
    def pop(self) -> PopTable:
        return self.tables.pop

    @property
    def progress(self) -> ProgressTable:
        return self.tables.progress

    @property
    def settings(self) -> Settings:
        return self.tables.settings

    @property
    def timers(self) -> Timers:
        return self.tables.timers

    @property
    def transactions(self) -> Transactions:
        return self.tables.transactions

    # --- what the dispatcher calls

    def apply_control(self, entry: Entry, payload: bytes) -> None:
        """Apply the control payload of an entry. Raises `ops.NewerVersion` or `ops.ControlError`: the group stops."""
        if entry.kind == EntryKind.MEMBERSHIP:
            log_time, self.membership = decode_membership(payload)
            self.membership_payload = bytes(payload)
            self.log_time = max(self.log_time, log_time)
            self._told.extend(self.on_membership)
            return
        log_time, changes = ops.decode_payload(payload)
        self.log_time = max(self.log_time, log_time)
        for op in changes:
            if type(op) is ops.Producers:
                self._runs = op.runs
            elif type(op) is ops.OwnRecords:
                self._own = op.ranges
            else:
                self.tables.apply(op, log_time)
                self._note(entry, op)

    def topic_id(self, topic: bytes) -> int:
        """The id under which a record's queue is kept. KeyError: the log is broken."""
        info = self.tables.topics.by_name.get(topic)
        if info is None:
            raise KeyError(topic.decode(errors="replace"))
        return info.tid

    def apply_records(self, entry: Entry, found: Columns) -> None:
        """Enter producer runs and message ids of an entry's records. Called once per messages entry."""
        runs, own = self._runs, self._own
        self._runs, self._own = (), ()
        self.log_time = max(self.log_time, found.last_store_ms)
        apply_run = self.producers.apply
        positions = found.positions
        for each in runs:
            at = each.ordinal
            run = run_of(each, found.queue_ids[at], found.queue_offsets[at], positions[at : at + each.size])
            apply_run(each.pid, each.epoch, run, each.floor)
        window = self.id_window
        if not window.enabled:
            return
        window.turn(self.log_time)
        covered = _covered(len(positions), runs, own) if runs or own else bytes(len(positions))
        if covered is None:
            return
        window.enter_all(found, covered)

    def entry_applied(self, entry: Entry, touched: Mapping[int, int]) -> None:
        """The entry is applied in full; its messages can be read. Tells the listeners."""
        assert not self._runs, f"entry {entry.index} names producer runs of records it does not have"
        assert not self._own, f"entry {entry.index} marks records as own that it does not have"
        self.applied_index = entry.index
        self.applied_end = entry.end
        told, self._told = self._told, []
        for tell in told:
            tell()
        for applied in self.on_applied:
            applied(entry.index, entry.end)
        if touched:
            for touch in self.on_touched:
                touch(touched)

    def _note(self, entry: Entry, op: ops.Op) -> None:
        """Remember whom to tell once the entry is applied."""
        if isinstance(op, _TOPIC_OPS):
            self.topics_changed = entry.index
            if isinstance(op, ops.TopicDel):
                self._told.extend(partial(tell, op.tid) for tell in self.on_topic_removed)
            self._once(self.on_topics)
        elif isinstance(op, _GROUP_OPS):
            self._once(self.on_groups)
        elif isinstance(op, ops.ConfigPut):
            self._once(self.on_settings)
        elif isinstance(op, ops.MembersPut):
            self._told.extend(partial(tell, op.gid) for tell in self.on_members)

    def _once(self, listeners: Sequence[Callable[[], None]]) -> None:
        for tell in listeners:
            if tell not in self._told:
                self._told.append(tell)

    # --- snapshot

    def snapshot(self) -> Callable[[], bytes]:
        """A flat copy of everything, now; the returned function encodes it and may run in a thread."""
        flat: dict[str, Any] = {  # Any: plain data of every table
            "topics": self.topics.flat(),
            "groups": self.groups.flat(),
            "offsets": self.offsets.flat(),
            "members": self.members.flat(),
            "locks": self.locks.flat(),
            "pop": self.pop.flat(),
            "progress": self.progress.flat(),
            "settings": self.settings.flat(),
            "timers": self.timers.flat(),
            "transactions": self.transactions.flat(),
            "producers": self.producers.flat(),
            "ids": self.id_window.flat(),
        }
        head = {
            "format": SNAPSHOT_FORMAT,
            "index": self.applied_index,
            "end": self.applied_end,
            "log_time": self.log_time,
            "topics_changed": self.topics_changed,
            "membership": self.membership_payload,
        }
        return partial(_encode, head, flat)

    def restore(self, data: bytes) -> None:
        """Become what `snapshot` saw. Raises `ops.NewerVersion` or `ops.ControlError`; the state is undefined then."""
        try:
            raw: Any = cbor2.loads(data)
            version = raw["format"]
        except Exception as problem:
            raise ops.ControlError(f"state snapshot of {len(data)} bytes is malformed: {problem!r}") from problem
        if version != SNAPSHOT_FORMAT:
            raise ops.NewerVersion(f"state snapshot version {version!r}: written by a newer version of this program")
        try:
            for name, table in self._by_name().items():
                table.restore(raw[name])
            self.applied_index = raw["index"]
            self.applied_end = raw["end"]
            self.log_time = raw["log_time"]
            self.topics_changed = raw["topics_changed"]
            payload = raw["membership"]
        except (KeyError, TypeError, ValueError) as problem:
            raise ops.ControlError(f"state snapshot is malformed: {problem!r}") from problem
        self.membership_payload = payload
        self.membership = decode_membership(payload)[1] if payload else None
        self._runs, self._own, self._told = (), (), []
        for tell in (*self.on_membership, *self.on_topics, *self.on_groups):
            tell()

    def _by_name(self) -> dict[str, Any]:  # Any: tables share `restore` only
        return {
            "topics": self.topics,
            "groups": self.groups,
            "offsets": self.offsets,
            "members": self.members,
            "locks": self.locks,
            "pop": self.pop,
            "progress": self.progress,
            "settings": self.settings,
            "timers": self.timers,
            "transactions": self.transactions,
            "producers": self.producers,
            "ids": self.id_window,
        }


_ENCODERS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "topics": Topics.encode,
    "groups": Groups.encode,
    "offsets": Offsets.encode,
    "members": Members.encode,
    "locks": Locks.encode,
    "pop": PopTable.encode,
    "progress": ProgressTable.encode,
    "settings": Settings.encode,
    "timers": Timers.encode,
    "transactions": Transactions.encode,
    "producers": Producers.encode,
    "ids": IdWindow.encode,
}


def _encode(head: Mapping[str, Any], flat: Mapping[str, Any]) -> bytes:
    return cbor2.dumps({**head, **{name: _ENCODERS[name](flat[name]) for name in flat}}, canonical=True)


def run_of(op: ops.ProducerRun, queue_id: int, offset: int, positions: Sequence[int]) -> Run:
    """The run of records that an op 7 names: the place of its first record in the queue, and where all of them lie."""
    return Run(op.first, op.size, queue_id, offset, positions[0], pack_positions(positions[1:]))


def _covered(count: int, runs: Sequence[ops.ProducerRun], own: Sequence[tuple[int, int]]) -> bytearray | None:
    """One byte per record: 1 where it has a producer sequence or is the broker's own. None: all records are covered."""
    marks = bytearray(count)
    for run in runs:
        marks[run.ordinal : run.ordinal + run.size] = b"\x01" * run.size
    for first, length in own:
        marks[first : first + length] = b"\x01" * length
    return marks if 0 in marks else None


def uncovered(
    heads: Sequence[RecordHead], runs: Sequence[ops.ProducerRun], own: Sequence[tuple[int, int]]
) -> Sequence[RecordHead]:
    """The records that belong into the id window."""
    if not runs and not own:
        return heads
    marks = _covered(len(heads), runs, own)
    return () if marks is None else [head for head, mark in zip(heads, marks, strict=True) if not mark]
