"""Delay levels: messages wait in SCHEDULE_TOPIC_XXXX, one queue per level, and are delivered when they are due.

Within a level every message waits equally long, so each queue is delivered in order and only its head needs a timer.
Delivery is a new message in its real topic, and the queue's progress is logged *in the same entry* (op 11): nothing is
delivered twice or skipped, whoever leads next. Only the ready leader delivers; its term ends the service with it.
Java's counterpart is ScheduleMessageService with delayOffset.json, whose progress can be lost or run ahead.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from broker.metadata.ops import Progress, Scalar, key_of, tid_of
from broker.metadata.state import GroupState
from broker.metrics import Counters
from broker.replication.base import Busy, Outcome, Replicator
from broker.replication.intake import Intake
from broker.replication.requests import PutMessage
from broker.service.delay import DELAY_TOPIC, real_message
from trimq.env import Clock
from trimq.message.record import Record, unpack_records

if TYPE_CHECKING:
    from broker.store.message_store import MessageStore

__all__ = ["PROGRESS_KIND", "ScheduleService"]

log = logging.getLogger(__name__)

PROGRESS_KIND = "delay"
BATCH_MAX = 64
"""Messages delivered in one entry."""
BATCH_BYTES = 512 << 10
FORMING_S = 0.05
"""The first leader of a group creates the topic in a moment; a message for it must not be noticed a second later."""
IDLE_S = 1.0
"""Longest sleep while something waits: the wall clock may jump, and due times are wall-clock times."""


@dataclass(slots=True)
class _Level:
    number: int
    delay_ms: int
    key: int
    next: int
    """The next queue offset to deliver, in flight or not."""


class ScheduleService:
    """Delivers delayed messages of one replica group while this replica is its ready leader."""

    def __init__(
        self,
        delays_ms: Sequence[int],
        state: GroupState,
        store: MessageStore,
        intake: Intake,
        replicator: Replicator,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._delays_ms = delays_ms
        self._state = state
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._clock = clock
        self._counters = counters
        self._tid = 0
        self._failed = False
        self._wake = trio.Event()

    def touched(self, touched: Mapping[int, int]) -> None:
        """Queues got messages: wake up when one of them is ours."""
        if self._tid and not self._wake.is_set() and any(tid_of(key) == self._tid for key in touched):
            self._wake.set()

    def waiting(self) -> dict[int, tuple[int, int]]:
        """Level → (delivered offset, end of its queue), for operators."""
        topic = self._state.topics.get(DELAY_TOPIC.encode())
        if topic is None:
            return {}
        return {
            number: (
                _offset(self._state.progress.get(PROGRESS_KIND, number)),
                self._store.queues.next_offset(key_of(topic.tid, number - 1)),
            )
            for number in range(1, len(self._delays_ms) + 1)
        }

    async def oldest_position(self) -> int | None:
        """Position of the oldest undelivered message: from here on the log is needed, on every replica."""
        topic = self._state.topics.get(DELAY_TOPIC.encode())
        positions: list[int] = []
        for number in range(1, len(self._delays_ms) + 1) if topic is not None else ():
            assert topic is not None
            key, queues = key_of(topic.tid, number - 1), self._store.queues
            first = max(_offset(self._state.progress.get(PROGRESS_KIND, number)), queues.first_offset(key))
            if first < queues.next_offset(key):
                positions.append((await queues.units(key, first, 1))[0])
        return min(positions, default=None)

    async def run_term(self) -> None:
        """Deliver until cancelled, from the logged progress on."""
        levels: list[_Level] = []
        while True:
            topic = self._state.topics.get(DELAY_TOPIC.encode())
            if topic is not None and (topic.tid != self._tid or not levels or self._failed):
                self._tid, self._failed = topic.tid, False
                levels = [self._level(number, topic.tid) for number in range(1, len(self._delays_ms) + 1)]
            self._wake = trio.Event()
            soonest = await self._pass(levels)
            longest = IDLE_S if self._tid else FORMING_S
            with trio.move_on_after(longest if soonest is None else max(0.0, min(soonest, longest))):
                await self._wake.wait()

    def _level(self, number: int, tid: int) -> _Level:
        key = key_of(tid, number - 1)
        return _Level(
            number,
            self._delays_ms[number - 1],
            key,
            max(self._placed(number), self._store.queues.first_offset(key)),
        )

    def _placed(self, number: int) -> int:
        """Delivered, or on its way: the leader's view, so that nothing in flight is delivered again."""
        return _offset(self._intake.view.tables.progress.get(PROGRESS_KIND, number))

    async def _pass(self, levels: Sequence[_Level]) -> float | None:
        """Deliver all that is due; seconds until the next is, None when nothing waits."""
        soonest: float | None = None
        for level in levels:
            due_s = await self._deliver_due(level)
            if due_s is not None and (soonest is None or due_s < soonest):
                soonest = due_s
        return soonest

    async def _deliver_due(self, level: _Level) -> float | None:
        while level.next < self._store.queues.next_offset(level.key):
            await self._replicator.room()
            found = await self._store.get_from_disk(level.key, level.next, BATCH_MAX, BATCH_BYTES, None)
            records = [record for part in found.parts for record in unpack_records(part)]
            if not records:
                level.next = max(level.next + 1, found.next_offset, self._store.queues.first_offset(level.key))
                continue
            now = self._clock.wall_ms()
            # In order: the first that is not due yet holds back the rest.
            due = records[: _due_count(records, now - level.delay_ms)]
            if due:
                self._deliver(level, due)
            if len(due) < len(records):
                return (records[len(due)].store_ms + level.delay_ms - now) / 1000
        return None

    def _deliver(self, level: _Level, records: Sequence[Record]) -> None:
        messages = [message for record in records if (message := self._real(record)) is not None]
        end = records[-1].queue_offset + 1
        try:
            self._intake.put_batch(messages, ops=[Progress(PROGRESS_KIND, level.number, end)], settled=self._settled)
        except Busy:
            return  # asked again after `room`
        level.next = end
        self._counters.delayed_delivered += len(messages)

    def _real(self, record: Record) -> PutMessage | None:
        message = real_message(record)
        if message is None or self._intake.view.topic(message.topic) is None:
            # Its topic was deleted while it waited. An operator did that; there is nowhere to deliver to.
            log.warning(
                "delayed message dropped: its topic does not exist any more",
                extra={"topic": message.topic.decode() if message else "", "position": record.position},
            )
            return None
        return message

    def _settled(self, outcome: Outcome) -> None:
        if not outcome.ok:
            # Start again from what the log says; if this was the end of the term, the next leader does.
            self._failed = True
            self._wake.set()


def _offset(value: Scalar | None) -> int:
    return value if isinstance(value, int) else 0


def _due_count(records: Sequence[Record], stored_until: int) -> int:
    for count, record in enumerate(records):
        if record.store_ms > stored_until:
            return count
    return len(records)
