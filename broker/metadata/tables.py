"""The tables that ops change, and the one place that says how.

The applied state and the leader's view hold the same set of tables, the view over overlays; both change by `apply`.
Producer sequences and message ids are not here: they depend on the records of the entry as well.
"""

from __future__ import annotations

from typing import Protocol

from broker.metadata.groups import Groups
from broker.metadata.locks import Locks
from broker.metadata.members import Members
from broker.metadata.offsets import Offsets, OffsetsOverlay, OffsetsView
from broker.metadata.ops import (
    ConfigPut,
    Feature,
    GroupDel,
    GroupPut,
    InSync,
    MembersPut,
    OffsetsPut,
    Op,
    OwnRecords,
    Producers,
    Progress,
    Reset,
    TopicDel,
    TopicPut,
    key_of,
)
from broker.metadata.ops import Locks as LocksOp
from broker.metadata.overlay import OverlayDict, Stamp
from broker.metadata.pop import PopOverlay, PopTable, PopView
from broker.metadata.pop_ops import OrderTake, PopDone, PopHide, PopTake, RequestMode
from broker.metadata.progress import ProgressTable
from broker.metadata.settings import Settings
from broker.metadata.timer_ops import TimerCancel, TimerDone
from broker.metadata.timers import Timers
from broker.metadata.topics import Topics
from broker.metadata.transaction_ops import Half, HalfChecked, HalfEnd
from broker.metadata.transactions import Transactions

__all__ = ["Applied", "Overlaid", "Tables"]


class Tables:
    """One set of tables."""

    __slots__ = (
        "groups",
        "locks",
        "members",
        "offsets",
        "pop",
        "progress",
        "settings",
        "timers",
        "topics",
        "transactions",
    )

    topics: Topics
    groups: Groups
    offsets: OffsetsView
    members: Members
    locks: Locks
    pop: PopView
    progress: ProgressTable
    settings: Settings
    timers: Timers
    transactions: Transactions

    def apply(self, op: Op, log_time: int) -> None:
        """Change the tables as `op` says. Never refuses: whether an op may be written was decided before."""
        match op:
            case OffsetsPut(offsets=rows):
                for gid, tid, queue, offset in rows:
                    self.offsets.put(gid, key_of(tid, queue), offset)
            case TopicPut():
                self.topics.put(op)
            case TopicDel(tid=tid):
                self.topics.delete(tid)
                self.offsets.drop_topic(tid)
                self.locks.drop_topic(tid)
                self.pop.drop_topic(tid)
            case GroupPut():
                self.groups.put(op)
            case GroupDel(gid=gid, drop_offsets=drop):
                self.groups.delete(gid, drop_offsets=drop)
                self.members.drop_group(gid)
                self.locks.drop_group(gid)
                self.pop.drop_group(gid)
                if drop:
                    self.offsets.drop_group(gid)
            case Reset(gid=gid, offsets=resets):
                self.offsets.expire(log_time)
                for tid, queue, offset in resets:
                    self.offsets.reset(gid, key_of(tid, queue), offset, log_time)
                    self.pop.drop(gid, key_of(tid, queue))
            case MembersPut(gid=gid, clients=clients):
                self.members.put(gid, clients)
            case LocksOp(gid=gid, client=client, queues=queues):
                self.locks.put(gid, client, [key_of(tid, queue) for tid, queue in queues])
            case Progress(kind=kind, key=key, value=value):
                self.progress.put(kind, key, value)
            case ConfigPut(key=name, value=text):
                self.settings.put(name, text)
            case InSync():
                self.settings.put_in_sync(op)
            case Feature(level=level):
                self.settings.raise_feature(level)
            case Half() | HalfEnd() | HalfChecked():
                self.transactions.apply(op, log_time)
            case TimerDone() | TimerCancel():
                self.timers.apply(op)
            case PopTake() | PopDone() | PopHide() | OrderTake() | RequestMode():
                self.pop.apply(op, self.offsets)
            case Producers() | OwnRecords():
                pass  # with the records of the entry


class Applied(Tables):
    """The tables of the applied state."""

    __slots__ = ()

    offsets: Offsets
    pop: PopTable

    def __init__(self) -> None:
        self.topics = Topics()
        self.groups = Groups()
        self.offsets = Offsets()
        self.members = Members()
        self.locks = Locks()
        self.pop = PopTable()
        self.progress = ProgressTable()
        self.settings = Settings()
        self.timers = Timers()
        self.transactions = Transactions()


class _Forgetful(Protocol):
    def forget(self, applied: int) -> None: ...


class Overlaid(Tables):
    """The tables as they will be: `base` plus what entries above it change (the stamp says which entry)."""

    __slots__ = ("_base", "_overlays", "topic_names")

    offsets: OffsetsOverlay
    pop: PopOverlay

    def __init__(self, base: Applied, stamp: Stamp) -> None:
        topics, groups = base.topics, base.groups
        self._base = base
        names = self.topic_names = OverlayDict(topics.by_name, stamp)
        ids = OverlayDict(topics.by_id, stamp)
        self.topics = Topics(names, ids, topics.highest)
        group_names = OverlayDict(groups.by_name, stamp)
        group_ids = OverlayDict(groups.by_id, stamp)
        retired = OverlayDict(groups.retired, stamp)
        self.groups = Groups(group_names, group_ids, retired, groups.highest)
        self.offsets = OffsetsOverlay(base.offsets, stamp)
        members = OverlayDict(base.members.sets, stamp)
        self.members = Members(members)
        owners = OverlayDict(base.locks.owners, stamp)
        self.locks = Locks(owners)
        self.pop = PopOverlay(base.pop, stamp)
        values = OverlayDict(base.progress.values, stamp)
        self.progress = ProgressTable(values)
        settings = OverlayDict(base.settings.values, stamp)
        self.settings = Settings(settings)
        halves = OverlayDict(base.transactions.open, stamp)
        ended = OverlayDict(base.transactions.ended, stamp)
        self.transactions = Transactions(halves, ended)
        wheel = OverlayDict(base.timers.queues, stamp)
        cancelled = OverlayDict(base.timers.cancelled, stamp)
        self.timers = Timers(wheel, cancelled)
        self._overlays: list[_Forgetful] = [
            names, ids, group_names, group_ids, retired, members, owners, values, settings, halves, ended,
            wheel, cancelled, self.offsets, self.pop,
        ]  # fmt: skip

    def catch_up(self) -> None:
        """The base holds entries that were never laid over it: take over what is not looked up but counted."""
        self.topics.highest = max(self.topics.highest, self._base.topics.highest)
        self.groups.highest = max(self.groups.highest, self._base.groups.highest)

    def forget(self, applied: int) -> None:
        """The base holds every entry up to `applied` now."""
        for overlay in self._overlays:
            overlay.forget(applied)
