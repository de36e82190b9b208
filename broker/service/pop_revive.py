"""Messages that were popped and not acknowledged in time come back: as a copy in the group's retry topic.

The copy and the end of the original (op 33) are one entry, so a message is never in both places and never in none,
whoever leads next; after the last attempt the copy goes to the dead letters instead. Only the ready leader revives. It
keeps a heap of due times, one entry per pop and not per message; stale ones (everything acknowledged meanwhile) fall
out when they are due, or all at once when there are too many of them.

Batches of ordered consumers stand in the same heap: when they are visible again, whoever waits may have them.

Until when a message is out is log time, which never goes back; how long that is from now is waited for by the
monotonic clock. So a leader whose wall clock was fast, or is set back, keeps nothing invisible for longer than was
asked: log time stands still until the wall clock has caught up, and waiting for that would take as long as the error.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from broker.metadata.group_settings import settings_of
from broker.metadata.ops import Op, TopicPut, queue_of, tid_of
from broker.metadata.pop_ops import PopDone
from broker.metrics import Counters
from broker.replication.base import Busy, NotLeader, Replicator
from broker.replication.intake import Intake
from broker.replication.requests import PutMessage, Refused
from broker.service.delay import copy_of
from broker.store.errors import StoreError
from trimq.env import Clock
from trimq.message import names, properties
from trimq.message.ids import offset_message_id
from trimq.message.pop import FIRST_POP_TIME, POP_CK, pop_retry_topic
from trimq.message.record import Record, unpack_records

if TYPE_CHECKING:
    from broker.store.message_store import MessageStore

__all__ = ["PopRevive"]

log = logging.getLogger(__name__)

BATCH_MAX = 64
"""Messages revived in one entry."""
BATCH_BYTES = 512 << 10
IDLE_S = 1.0
"""Longest sleep."""
AGAIN_MS = 1_000
"""After a read that failed."""
_NEVER_MS = 1 << 63
STALE_MAX = 65_536
"""Entries pushed since the heap was made; beyond it, and beyond its size then, it is made anew."""


@dataclass(slots=True)
class _Batch:
    """What one entry will hold."""

    messages: list[PutMessage] = field(default_factory=list)
    done: dict[tuple[int, int], list[int]] = field(default_factory=lambda: defaultdict(list))
    size: int = 0


class PopRevive:
    """The revive service of one replica."""

    def __init__(
        self, store: MessageStore, intake: Intake, replicator: Replicator, clock: Clock, counters: Counters
    ) -> None:
        self.visible_again: Callable[[int, int], None] = lambda gid, key: None
        """Told of (consumer group id, queue key) when a batch of an ordered consumer is visible again."""
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._clock = clock
        self._counters = counters
        self._heap: list[tuple[float, int, int, int, int, int, Sequence[int]]] = []
        """(due by the monotonic clock, serial, until in log time, consumer group id, queue key, handle, offsets)."""
        self._over: dict[tuple[int, int], int] = {}
        """Ordered consumers' places whose time is over → until when they were blocked, in log time."""
        self._since_ms = _NEVER_MS
        """Log time since which this replica, as leader, knows of everything that came back."""
        self._came_back: set[tuple[int, int, int]] = set()
        """(consumer group id, queue key, offset) of what came back since."""
        self._serial = itertools.count()
        self._pushed = 0
        self._made_of = 0
        self._wake = trio.Event()

    def took(self, until_ms: int, gid: int, key: int, pop_ms: int, offsets: Sequence[int]) -> None:
        """These messages are out under `pop_ms` until then; -1 as `pop_ms`: of an ordered consumer."""
        self._push(until_ms, gid, key, pop_ms, offsets)
        if self._heap[0][-1] is offsets:
            self._wake.set()

    def is_blocked(self, gid: int, key: int, until_ms: int) -> bool:
        """Whether an ordered consumer's batch that is out until then (log time) still keeps its queue from others."""
        return until_ms > self._clock.wall_ms() and self._over.get((gid, key), -1) < until_ms

    def _push(self, until_ms: int, gid: int, key: int, pop_ms: int, offsets: Sequence[int]) -> None:
        due_s = trio.current_time() + max(0, until_ms - self._intake.log_time()) / 1000
        heapq.heappush(self._heap, (due_s, next(self._serial), until_ms, gid, key, pop_ms, offsets))
        self._pushed += 1

    def may_have_come_back(self, gid: int, key: int, offset: int, pop_ms: int) -> bool:
        """Of a message that was popped then and is out no more: False when it surely was acknowledged.

        The log's time does not tell: it may stand still while the monotonic clock, by which messages come back, runs.
        """
        return pop_ms <= self._since_ms or (gid, key, offset) in self._came_back

    def end_term(self) -> None:
        self._heap.clear()
        self._over.clear()
        self._forget(_NEVER_MS)

    def _forget(self, since_ms: int) -> None:
        self._came_back.clear()
        self._since_ms = since_ms

    async def run_term(self) -> None:
        """Revive until cancelled. Begins with what the log says is out."""
        try:
            await self._work()
        except NotLeader:
            await trio.sleep_forever()  # the term is over: this task is about to be cancelled

    async def _work(self) -> None:
        self._forget(self._intake.log_time())
        self._rebuild()
        while True:
            if self._pushed > max(STALE_MAX, self._made_of):
                self._rebuild()
            now_s = trio.current_time()
            if self._heap and self._heap[0][0] <= now_s:
                await self._replicator.room()
                await self._revive(now_s)
                continue
            self._wake = trio.Event()
            wait_s = self._heap[0][0] - now_s if self._heap else IDLE_S
            with trio.move_on_after(min(wait_s, IDLE_S)):
                await self._wake.wait()

    def _rebuild(self) -> None:
        pop = self._intake.view.tables.pop
        self._heap.clear()
        for gid, key in sorted(pop.places()):
            queue = pop.queue(gid, key)
            by_handle: dict[tuple[int, int], list[int]] = {}
            for offset, taken in queue.taken.items() if queue is not None else ():
                by_handle.setdefault(taken, []).append(offset)
            for (pop_ms, until_ms), offsets in by_handle.items():
                self._push(until_ms, gid, key, pop_ms, offsets)
        for gid, key in sorted(pop.batches()):
            batch = pop.batch(gid, key)
            if batch is not None:
                self._push(batch.blocked_until, gid, key, -1, ())
        self._pushed, self._made_of = 0, len(self._heap)

    async def _revive(self, now_s: float) -> None:
        """One entry's worth of what is due."""
        batch = _Batch()
        while self._heap and self._heap[0][0] <= now_s and len(batch.messages) < BATCH_MAX and batch.size < BATCH_BYTES:
            _, _, until_ms, gid, key, pop_ms, offsets = heapq.heappop(self._heap)
            if pop_ms < 0:
                self._look_at_order(gid, key, until_ms)
                continue
            try:
                await self._collect(batch, gid, key, pop_ms, self._still_out(gid, key, pop_ms, offsets))
            except (OSError, StoreError) as error:
                log.warning("popped messages cannot be read, tried again", extra={"error": str(error)})
                self._push(self._intake.log_time() + AGAIN_MS, gid, key, pop_ms, offsets)
        await trio.lowlevel.checkpoint()
        if batch.done:
            self._put(batch)

    def _look_at_order(self, gid: int, key: int, until_ms: int) -> None:
        found = self._intake.view.tables.pop.batch(gid, key)
        if found is not None and found.blocked_until > until_ms:
            self._push(found.blocked_until, gid, key, -1, ())
            return
        if found is not None:
            self._over[gid, key] = until_ms
        else:
            self._over.pop((gid, key), None)
        self.visible_again(gid, key)

    def _still_out(self, gid: int, key: int, pop_ms: int, offsets: Iterable[int]) -> list[int]:
        queue = self._intake.view.tables.pop.queue(gid, key)
        if queue is None:
            return []
        taken = queue.taken
        return sorted(offset for offset in offsets if offset in taken and taken[offset].pop_ms == pop_ms)

    async def _collect(self, batch: _Batch, gid: int, key: int, pop_ms: int, offsets: Sequence[int]) -> None:
        """Read messages that are due; what does not fit into the batch is due again at once."""
        at = 0
        while at < len(offsets):
            if len(batch.messages) >= BATCH_MAX or batch.size >= BATCH_BYTES:
                self._push(0, gid, key, pop_ms, offsets[at:])
                return
            first = offsets[at]
            span = min(offsets[-1] - first + 1, BATCH_MAX)
            found = await self._store.get_from_disk(key, first, span, BATCH_BYTES, None)
            records = {record.queue_offset: record for part in found.parts for record in unpack_records(part)}
            end = max(found.next_offset, first + 1)
            for offset in self._still_out(gid, key, pop_ms, [each for each in offsets[at:] if each < end]):
                batch.done[gid, key].append(offset)  # expired from the log: it is done, there is nothing to copy
                if offset in records:
                    message = self._copy(gid, records[offset], pop_ms)
                    batch.messages.append(message)
                    batch.size += len(message.body) + len(message.properties)
            while at < len(offsets) and offsets[at] < end:
                at += 1

    def _copy(self, gid: int, record: Record, pop_ms: int) -> PutMessage:
        """The message for another attempt, or for the dead letters."""
        info = self._intake.view.tables.groups.by_id.get(gid)
        assert info is not None, "what a deleted group had out is gone with it"
        message = copy_of(record)
        found = properties.parse(record.properties)
        found.pop(POP_CK, None)
        found.setdefault(FIRST_POP_TIME, str(pop_ms))
        topic = record.topic.decode()
        if record.reconsume_times >= settings_of(info.settings).retry_max_times >= 0:
            message.topic = names.dlq_topic(info.name).encode()
            found.setdefault(properties.RETRY_TOPIC, topic.removeprefix(pop_retry_topic("", info.name)))
            found.setdefault(properties.ORIGIN_MESSAGE_ID, offset_message_id(record.store_host, record.position))
            self._counters.dead_letters += 1
        elif not topic.startswith(names.RETRY_PREFIX):
            message.topic = pop_retry_topic(topic, info.name).encode()
        message.queue_id = 0
        message.reconsume_times = record.reconsume_times + 1
        message.properties = properties.format(found).encode()
        return message

    def _put(self, batch: _Batch) -> None:
        """Copies, the topics that are missing for them, and the ends of the originals: one entry."""
        view = self._intake.view
        topics = sorted({message.topic for message in batch.messages if view.topic(message.topic) is None})
        highest = view.tables.topics.highest
        ops: list[Op] = [TopicPut(highest + n, topic.decode(), 1, 1) for n, topic in enumerate(topics, 1)]
        rows = [(gid, tid_of(key), queue_of(key), offsets) for (gid, key), offsets in batch.done.items()]
        ops.append(PopDone(rows))
        try:
            self._intake.put_batch(batch.messages, ops=ops)
        except (Busy, Refused) as error:
            log.info("popped messages wait a moment longer", extra={"error": str(error)})
            now = self._intake.log_time() + AGAIN_MS
            pop = view.tables.pop
            for (gid, key), offsets in batch.done.items():
                queue = pop.queue(gid, key)
                for offset in offsets:
                    if queue is not None and offset in queue.taken:
                        self._push(now, gid, key, queue.taken[offset].pop_ms, [offset])
            return
        if len(self._came_back) > STALE_MAX:
            self._forget(self._intake.log_time())
        self._came_back.update((gid, key, offset) for (gid, key), offsets in batch.done.items() for offset in offsets)
        self._counters.pop_revived += len(batch.messages)
