"""What pop consumers hold, as the log has it: a function of ops 32 to 36.

Per consumer group and queue there is a `PopQueue` for as long as something is invisible there: where the next pop
begins, and which messages are out under which handle. When the last one is done the queue's state is one number, the
committed consumer offset, and the `PopQueue` goes: consumers that keep up cost no memory between two pops. The
committed offset always is the smallest message that is not done, so lag and offset tools show the truth, and a group
may change between pull and pop.

Ordered consumers (`OrderedBatch`) hold one batch per queue, and nothing else of that queue is given out meanwhile.

The leader's view works on copies: a queue is copied when the first op in flight touches it, since a pop must see what
the pop before it took, committed or not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from broker.metadata.offsets import OffsetsView
from broker.metadata.overlay import Stamp
from broker.metadata.pop_ops import OrderTake, PopDone, PopHide, PopOp, PopTake, RequestMode

__all__ = ["OrderedBatch", "PopOverlay", "PopQueue", "PopTable", "PopView", "Taken"]

Place = tuple[int, int]
"""Consumer group id, queue key."""


class Taken(NamedTuple):
    """What a message that is out is out under."""

    pop_ms: int
    until_ms: int


class PopQueue:
    """The messages of one queue that one consumer group has out."""

    __slots__ = ("_order", "next", "taken")

    def __init__(self, following: int) -> None:
        self.next = following
        """Where the next pop begins."""
        self.taken: dict[int, Taken] = {}
        """Offset → handle. Read only, for others."""
        self._order: deque[int] = deque()

    @property
    def floor(self) -> int:
        """The smallest offset that is not done."""
        order, taken = self._order, self.taken
        while order and order[0] not in taken:
            order.popleft()
        return order[0] if order else self.next

    def take(self, offsets: Iterable[int], taken: Taken, following: int) -> None:
        self.next = max(self.next, following)
        for offset in offsets:
            if offset not in self.taken:
                self._order.append(offset)
            self.taken[offset] = taken

    def copy(self) -> PopQueue:
        other = PopQueue(self.next)
        other.taken = dict(self.taken)
        other._order = deque(self._order)
        return other

    @classmethod
    def of(cls, following: int, rows: Iterable[tuple[int, int, Iterable[int]]]) -> PopQueue:
        """From `(pop_ms, until_ms, offsets)` each."""
        found = cls(following)
        for pop_ms, until_ms, offsets in rows:
            found.taken.update(dict.fromkeys(offsets, Taken(pop_ms, until_ms)))
        found._order.extend(sorted(found.taken))
        return found


@dataclass(frozen=True, slots=True)
class OrderedBatch:
    """What an ordered consumer has out of one queue."""

    pop_ms: int
    until_ms: int
    attempt: str
    offsets: tuple[int, ...]
    done: frozenset[int] = frozenset()
    hidden: Mapping[int, int] = field(default_factory=dict)
    """Offset → visible again at, where that differs from `until_ms`."""
    counts: Mapping[int, int] = field(default_factory=dict)
    """Offset → how often it was given out before."""

    @property
    def floor(self) -> int:
        """The smallest offset that is not done."""
        for offset in self.offsets:
            if offset not in self.done:
                return offset
        return self.offsets[-1] + 1

    @property
    def blocked_until(self) -> int:
        """Until when (log time) nothing else of the queue is given out."""
        return max((self.hidden.get(each, self.until_ms) for each in self.offsets if each not in self.done), default=0)

    def counted(self, offsets: Iterable[int], attempt: str) -> dict[int, int]:
        """How often these messages were given out before the batch that takes them now."""
        if attempt and attempt == self.attempt:
            return dict(self.counts)
        mine = set(self.offsets)
        return {each: self.counts.get(each, 0) + 1 for each in offsets if each in mine}


class PopView(Protocol):
    """What the applied table and the leader's view of it have in common."""

    def queue(self, gid: int, key: int) -> PopQueue | None:
        """Do not change it."""
        ...

    def batch(self, gid: int, key: int) -> OrderedBatch | None: ...
    def mode(self, topic: str, group: str) -> tuple[str, int] | None: ...
    def places(self) -> Iterator[Place]: ...
    def batches(self) -> Iterator[Place]: ...
    def apply(self, op: PopOp, offsets: OffsetsView) -> None: ...
    def drop(self, gid: int, key: int) -> None: ...
    def drop_topic(self, tid: int) -> None: ...
    def drop_group(self, gid: int) -> None: ...


class _Applies(ABC):
    """How ops change the table; the two tables differ in how they get at a queue."""

    __slots__ = ()

    @abstractmethod
    def _change(self, gid: int, key: int) -> PopQueue | None: ...

    @abstractmethod
    def _keep(self, gid: int, key: int, queue: PopQueue | None) -> None: ...

    @abstractmethod
    def batch(self, gid: int, key: int) -> OrderedBatch | None: ...

    @abstractmethod
    def _keep_batch(self, gid: int, key: int, batch: OrderedBatch | None) -> None: ...

    @abstractmethod
    def _keep_mode(self, op: RequestMode) -> None: ...

    def apply(self, op: PopOp, offsets: OffsetsView) -> None:
        """Change the table, and the consumer offsets that follow from it. Offsets never go back here."""
        match op:
            case PopTake():
                self._take(op, offsets)
            case PopDone(rows=rows):
                for gid, tid, queue, done in rows:
                    self._done(gid, tid << 16 | queue, done, offsets)
            case PopHide():
                self._hide(op)
            case OrderTake():
                self._order_take(op, offsets)
            case RequestMode():
                self._keep_mode(op)

    def _take(self, op: PopTake, offsets: OffsetsView) -> None:
        key = op.tid << 16 | op.queue
        queue = self._change(op.gid, key) or PopQueue(op.next)
        queue.take(op.offsets, Taken(op.pop_ms, op.until_ms), op.next)
        self._settle(op.gid, key, queue, offsets)

    def _done(self, gid: int, key: int, done: Iterable[int], offsets: OffsetsView) -> None:
        queue = self._change(gid, key)
        if queue is not None:
            for offset in done:
                queue.taken.pop(offset, None)
            self._settle(gid, key, queue, offsets)
        batch = self.batch(gid, key)
        if batch is not None:
            batch = replace(batch, done=batch.done.union(each for each in done if each in batch.offsets))
            _raise(offsets, gid, key, batch.floor)
            self._keep_batch(gid, key, batch if len(batch.done) < len(batch.offsets) else None)

    def _settle(self, gid: int, key: int, queue: PopQueue, offsets: OffsetsView) -> None:
        _raise(offsets, gid, key, queue.floor)
        self._keep(gid, key, queue if queue.taken else None)

    def _hide(self, op: PopHide) -> None:
        key = op.tid << 16 | op.queue
        queue = self._change(op.gid, key)
        if queue is not None and op.offset in queue.taken:
            queue.taken[op.offset] = Taken(op.pop_ms, op.until_ms)
            self._keep(op.gid, key, queue)
        batch = self.batch(op.gid, key)
        if batch is not None and op.offset in batch.offsets:
            self._keep_batch(op.gid, key, replace(batch, hidden={**batch.hidden, op.offset: op.until_ms}))

    def _order_take(self, op: OrderTake, offsets: OffsetsView) -> None:
        key = op.tid << 16 | op.queue
        if not op.offsets:
            _raise(offsets, op.gid, key, op.next)
            self._keep_batch(op.gid, key, None)
            return
        before = self.batch(op.gid, key)
        counts = before.counted(op.offsets, op.attempt) if before is not None else {}
        _raise(offsets, op.gid, key, op.offsets[0])
        self._keep_batch(
            op.gid, key, OrderedBatch(op.pop_ms, op.until_ms, op.attempt, tuple(op.offsets), counts=counts)
        )


def _raise(offsets: OffsetsView, gid: int, key: int, offset: int) -> None:
    known = offsets.get(gid, key)
    if known is None or known < offset:
        offsets.put(gid, key, offset)


class PopTable(_Applies):
    """The applied table."""

    __slots__ = ("_batches", "_modes", "_queues")

    def __init__(self) -> None:
        self._queues: dict[Place, PopQueue] = {}
        self._batches: dict[Place, OrderedBatch] = {}
        self._modes: dict[tuple[str, str], tuple[str, int]] = {}

    def queue(self, gid: int, key: int) -> PopQueue | None:
        return self._queues.get((gid, key))

    def batch(self, gid: int, key: int) -> OrderedBatch | None:
        return self._batches.get((gid, key))

    def mode(self, topic: str, group: str) -> tuple[str, int] | None:
        return self._modes.get((topic, group))

    def modes(self) -> Mapping[tuple[str, str], tuple[str, int]]:
        """(topic, group) → (mode, share)."""
        return self._modes

    def places(self) -> Iterator[Place]:
        return iter(self._queues)

    def batches(self) -> Iterator[Place]:
        return iter(self._batches)

    @property
    def invisible(self) -> int:
        """Messages that are out."""
        return sum(len(queue.taken) for queue in self._queues.values())

    def _change(self, gid: int, key: int) -> PopQueue | None:
        return self._queues.get((gid, key))

    def _keep(self, gid: int, key: int, queue: PopQueue | None) -> None:
        if queue is None:
            self._queues.pop((gid, key), None)
        else:
            self._queues[gid, key] = queue

    def _keep_batch(self, gid: int, key: int, batch: OrderedBatch | None) -> None:
        if batch is None:
            self._batches.pop((gid, key), None)
        else:
            self._batches[gid, key] = batch

    def _keep_mode(self, op: RequestMode) -> None:
        self._modes[op.topic, op.group] = (op.mode, op.share)

    def drop(self, gid: int, key: int) -> None:
        """The group's offset of this queue was reset: what is out is nobody's any more."""
        self._queues.pop((gid, key), None)
        self._batches.pop((gid, key), None)

    def drop_topic(self, tid: int) -> None:
        for place in [each for each in (*self._queues, *self._batches) if each[1] >> 16 == tid]:
            self.drop(*place)

    def drop_group(self, gid: int) -> None:
        for place in [each for each in (*self._queues, *self._batches) if each[0] == gid]:
            self.drop(*place)

    def flat(self) -> dict[str, Any]:
        return {
            "queues": {place: (queue.next, dict(queue.taken)) for place, queue in self._queues.items()},
            "batches": dict(self._batches),
            "modes": dict(self._modes),
        }

    @staticmethod
    def encode(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "queues": [[*place, following, _runs(taken)] for place, (following, taken) in flat["queues"].items()],
            "batches": [
                [
                    *place,
                    each.pop_ms,
                    each.until_ms,
                    each.attempt,
                    list(each.offsets),
                    sorted(each.done),
                    dict(each.hidden),
                    dict(each.counts),
                ]
                for place, each in flat["batches"].items()
            ],
            "modes": [[*names, *mode] for names, mode in flat["modes"].items()],
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        self._queues = {(gid, key): PopQueue.of(following, rows) for gid, key, following, rows in data["queues"]}
        self._batches = {
            (gid, key): OrderedBatch(pop_ms, until_ms, attempt, tuple(offsets), frozenset(done), hidden, counts)
            for gid, key, pop_ms, until_ms, attempt, offsets, done, hidden, counts in data["batches"]
        }
        self._modes = {(topic, group): (mode, share) for topic, group, mode, share in data["modes"]}


def _runs(taken: Mapping[int, Taken]) -> list[list[Any]]:
    """Offsets by handle: what was taken together stands together."""
    by_handle: dict[Taken, list[int]] = {}
    for offset, handle in taken.items():
        by_handle.setdefault(handle, []).append(offset)
    return [[handle.pop_ms, handle.until_ms, offsets] for handle, offsets in by_handle.items()]


class PopOverlay(_Applies):
    """The table as it will be when everything in flight is applied: copies of what is touched, over the applied one."""

    __slots__ = ("_base", "_batches", "_log", "_modes", "_queues", "_stamp")

    def __init__(self, base: PopTable, stamp: Stamp) -> None:
        self._base = base
        self._stamp = stamp
        self._queues: dict[Place, tuple[PopQueue | None, int]] = {}
        self._batches: dict[Place, tuple[OrderedBatch | None, int]] = {}
        self._modes: dict[tuple[str, str], tuple[tuple[str, int], int]] = {}
        self._log: deque[tuple[int, Place]] = deque()

    def queue(self, gid: int, key: int) -> PopQueue | None:
        own = self._queues.get((gid, key))
        return self._base.queue(gid, key) if own is None else own[0]

    def batch(self, gid: int, key: int) -> OrderedBatch | None:
        own = self._batches.get((gid, key))
        return self._base.batch(gid, key) if own is None else own[0]

    def mode(self, topic: str, group: str) -> tuple[str, int] | None:
        own = self._modes.get((topic, group))
        return self._base.mode(topic, group) if own is None else own[0]

    def places(self) -> Iterator[Place]:
        for place in self._base.places():
            if place not in self._queues:
                yield place
        for place, (queue, _) in self._queues.items():
            if queue is not None:
                yield place

    def batches(self) -> Iterator[Place]:
        for place in self._base.batches():
            if place not in self._batches:
                yield place
        for place, (batch, _) in self._batches.items():
            if batch is not None:
                yield place

    def _change(self, gid: int, key: int) -> PopQueue | None:
        own = self._queues.get((gid, key))
        if own is not None:
            return own[0]
        found = self._base.queue(gid, key)
        return None if found is None else found.copy()

    def _keep(self, gid: int, key: int, queue: PopQueue | None) -> None:
        self._queues[gid, key] = (queue, self._stamp.index)
        self._log.append((self._stamp.index, (gid, key)))

    def _keep_batch(self, gid: int, key: int, batch: OrderedBatch | None) -> None:
        self._batches[gid, key] = (batch, self._stamp.index)
        self._log.append((self._stamp.index, (gid, key)))

    def _keep_mode(self, op: RequestMode) -> None:
        self._modes[op.topic, op.group] = ((op.mode, op.share), self._stamp.index)

    def drop(self, gid: int, key: int) -> None:
        self._keep(gid, key, None)
        self._keep_batch(gid, key, None)

    def drop_topic(self, tid: int) -> None:
        """Ids are never used again, so only what is in hand has to go."""
        for place in [each for each in (*self.places(), *self.batches()) if each[1] >> 16 == tid]:
            self.drop(*place)

    def drop_group(self, gid: int) -> None:
        for place in [each for each in (*self.places(), *self.batches()) if each[0] == gid]:
            self.drop(*place)

    def forget(self, applied: int) -> None:
        """Entries up to `applied` are in the base now.

        A queue with many messages out is kept, though it says the same: to copy it again costs more than its memory.
        """
        log = self._log
        while log and log[0][0] <= applied:
            place = log.popleft()[1]
            own = self._queues.get(place)
            if own is not None and own[1] <= applied and (own[0] is None or len(own[0].taken) <= _COPIED_MAX):
                del self._queues[place]
            batch = self._batches.get(place)
            if batch is not None and batch[1] <= applied:
                del self._batches[place]
        for names in [names for names, (_, index) in self._modes.items() if index <= applied]:
            del self._modes[names]

    def start_over(self) -> None:
        """The base was applied past everything that was laid over it: copies would miss what lies between."""
        self._queues.clear()
        self._batches.clear()
        self._modes.clear()
        self._log.clear()


_COPIED_MAX = 256
