"""Delivery at any time: takes what is due out of the timing wheel (`broker.service.wheel`), and moves on what is far.

One task of the ready leader. It opens the slot of the wheel that is current (`OpenSlot`: from index units, no record is
read), sleeps until its next message is due, and delivers all that are due with op 24 in the same entry. So nothing is
delivered twice or lost, whoever leads next; none is early, since the leader's wall clock decides; and the state that a
failover needs is three numbers for each queue.

The one subtle thing. A message that was admitted a moment ago and is not dispatched yet is not in the slot, and the
cursor must not pass it. So before anything is delivered up to the time T, the queue must be dispatched as far as it had
grown when T was read; what is admitted after that is due later than T, because admission never places a message at or
before the log's time (`Placing`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import trio

from broker.metadata.ops import Op, key_of, queue_of, tid_of
from broker.metadata.state import GroupState
from broker.metadata.timer_ops import TimerDone
from broker.metrics import Counters
from broker.replication.base import Busy, Outcome, Replicator
from broker.replication.intake import Intake
from broker.replication.requests import PutMessage
from broker.service.timed import due_of, real_timed, rolled
from broker.service.timer_slot import OpenSlot
from broker.service.wheel import FAR_QUEUE, SLOT_MS, TIMER_QUEUES, TIMER_TOPIC, Wheel, slot_of
from trimq.env import Clock
from trimq.message.record import Record, unpack_records

if TYPE_CHECKING:
    from broker.store.message_store import MessageStore

__all__ = ["TimerService"]

log = logging.getLogger(__name__)

BATCH_MAX = 256
"""Messages delivered in one entry."""
BATCH_BYTES = 512 << 10
UNITS = 32_768
"""Index units read at a time when a slot is opened."""
OPEN_AHEAD_MS = 20_000
"""A slot is opened so long before its time: a million messages take a second to sort."""
IDLE_S = 1.0
"""Longest sleep while something waits: the wall clock may jump, and due times are wall-clock times."""
FORMING_S = 0.05
"""The first leader of a group creates the timer topic in a moment."""
DISPATCH_POLL_S = 0.002


class TimerService:
    """Delivers timed messages of one replica group while this replica is its ready leader."""

    def __init__(
        self,
        wheel: Wheel,
        state: GroupState,
        store: MessageStore,
        intake: Intake,
        replicator: Replicator,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._wheel = wheel
        self._state = state
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._clock = clock
        self._counters = counters
        self._tid = 0
        self._slots: dict[int, OpenSlot] = {}
        self._ahead: dict[int, int] = {}
        """Queue → number of the slot that waits in it and is not open yet."""
        self._active: set[int] = set()
        """Queues in which something may wait; walked in sorted order."""
        self._failed = False
        self._wake = trio.Event()

    # --- what others ask

    def touched(self, touched: Mapping[int, int]) -> None:
        """Queues got messages: wake up when one of them is ours."""
        if self._tid:
            for key in touched:
                if tid_of(key) == self._tid:
                    self._active.add(queue_of(key))
                    self._wake.set()

    def waiting(self) -> dict[int, tuple[int, int]]:
        """Queue of the timer topic → (first offset not done, end), for those in which something waits."""
        topic = self._state.topics.get(TIMER_TOPIC.encode())
        if topic is None:
            return {}
        found: dict[int, tuple[int, int]] = {}
        for queue in range(min(topic.write_queues, TIMER_QUEUES)):
            key = key_of(topic.tid, queue)
            start = max(self._state.timers.done(queue).start, self._store.queues.first_offset(key))
            end = self._store.queues.next_offset(key)
            if start < end:
                found[queue] = (start, end)
        return found

    async def oldest_position(self) -> int | None:
        """Position of the oldest message that waits: from here on the log is needed, on every replica."""
        topic = self._state.topics.get(TIMER_TOPIC.encode())
        positions = [
            (await self._store.queues.units(key_of(topic.tid, queue), start, 1))[0]
            for queue, (start, _) in self.waiting().items()
            if topic is not None
        ]
        return min(positions, default=None)

    # --- the loop

    async def run_term(self) -> None:
        """Deliver until cancelled, from the logged progress on."""
        self._forget()
        while True:
            topic = self._state.topics.get(TIMER_TOPIC.encode())
            self._wake = trio.Event()
            if topic is not None:
                if topic.tid != self._tid or self._failed:
                    self._tid, self._failed = topic.tid, False
                    self._forget()
                try:
                    pause_s = await self._pass()
                except OSError as error:
                    log.warning("timer: the log cannot be read now", extra={"error": str(error)})
                    self._failed, pause_s = True, IDLE_S
            else:
                pause_s = FORMING_S
            with trio.move_on_after(max(0.0, min(pause_s, IDLE_S))):
                await self._wake.wait()

    def _forget(self) -> None:
        self._slots.clear()
        self._ahead.clear()
        self._active = set(range(TIMER_QUEUES))

    async def _pass(self) -> float:
        """Deliver all that is due; seconds until there may be more to do."""
        soonest = self._clock.wall_ms() + int(IDLE_S * 1000)
        for queue in sorted(self._active):
            if self._failed:
                break
            start, end = self._bounds(queue)
            if start >= end:
                self._active.discard(queue)
            elif queue == FAR_QUEUE:
                soonest = min(soonest, await self._roll(start, end))
            else:
                soonest = min(soonest, await self._serve(queue, start))
        return (soonest - self._clock.wall_ms()) / 1000

    def _bounds(self, queue: int) -> tuple[int, int]:
        """What waits in a queue, by the leader's view: what is on its way already does not."""
        key, queues = key_of(self._tid, queue), self._store.queues
        done = self._intake.view.tables.timers.done(queue)
        return max(done.start, queues.first_offset(key)), queues.next_offset(key)

    # --- one slot

    async def _serve(self, queue: int, start: int) -> int:
        """Deliver what is due of one queue; when to look at it again, in wall-clock milliseconds."""
        now = self._clock.wall_ms()
        slot = self._slots.get(queue)
        if slot is None:
            number = self._ahead.get(queue)
            if number is None:
                units = await self._units(queue, start, 1)
                if not units:
                    return now + 100
                number = self._ahead[queue] = slot_of(units[2])
            if number * SLOT_MS > now + OPEN_AHEAD_MS:
                return number * SLOT_MS - OPEN_AHEAD_MS
            slot = self._slots[queue] = OpenSlot(number, start, self._intake.view.tables.timers.done(queue))
            del self._ahead[queue]
        await self._fill(queue, slot)
        while True:
            until = self._clock.wall_ms()
            due = slot.next_due()
            ended = due is None and until >= slot.end_ms
            if not ended and (due is None or due > until):
                return slot.end_ms if due is None else due
            await self._catch_up(queue, slot)
            if slot.next_due() is None and until >= slot.end_ms:
                self._finish(queue, slot)
                return until
            if not await self._deliver(queue, slot, until):
                return until

    async def _catch_up(self, queue: int, slot: OpenSlot) -> None:
        """Know everything that was admitted up to now. See the module's docstring."""
        self._intake.log_time()
        key = key_of(self._tid, queue)
        end = self._intake.view.next_offset(key)
        while self._store.queues.next_offset(key) < end:  # noqa: ASYNC110  (a few milliseconds, and only under load)
            await trio.sleep(DISPATCH_POLL_S)
        await self._fill(queue, slot)

    async def _fill(self, queue: int, slot: OpenSlot) -> None:
        key = key_of(self._tid, queue)
        while not slot.full and slot.seen < self._store.queues.next_offset(key):
            units = await self._units(queue, slot.seen, UNITS)
            if not units:
                # Gone: nothing that waits is ever removed, so this range was never dispatched here.
                slot.seen = max(slot.seen + 1, self._store.queues.first_offset(key))
                continue
            slot.add(units)
            await trio.lowlevel.checkpoint()

    async def _units(self, queue: int, offset: int, count: int) -> Sequence[int]:
        try:
            return await self._store.queues.units(key_of(self._tid, queue), offset, count)
        except LookupError:
            return ()

    async def _deliver(self, queue: int, slot: OpenSlot, until: int) -> bool:
        """Deliver the next ones; False when it has to wait for room."""
        await self._replicator.room()
        places = slot.take(until, BATCH_MAX)
        records, read = await self._read(queue, places)
        slot.put_back(places[read:])
        places = places[:read]
        cancelled = self._intake.view.tables.timers.cancelled
        skipped = [offset for _, offset in places if (queue, offset) in cancelled]
        now = self._clock.wall_ms()
        messages = [
            message
            for record in records
            if record.queue_offset not in skipped and (message := self._real(record, now)) is not None
        ]
        due, offset = places[-1]
        # With the last one everything seen is done: nothing of it is held back from retention until the slot is over.
        done = TimerDone(queue, slot.first if len(slot) else slot.seen, due, offset, skipped)
        if not self._put(messages, [done]):
            slot.put_back(places)
            return False
        self._counters.timers_delivered += len(messages)
        return True

    async def _read(self, queue: int, places: Sequence[tuple[int, int]]) -> tuple[list[Record], int]:
        """The records at these places, as many as one entry should hold, and how many places that covers."""
        key, records, size, at = key_of(self._tid, queue), list[Record](), 0, 0
        while at < len(places) and (size < BATCH_BYTES or not at):
            run = 1
            while at + run < len(places) and places[at + run][1] == places[at][1] + run:
                run += 1
            found = await self._store.get_from_disk(key, places[at][1], run, BATCH_BYTES, None)
            got = [record for part in found.parts for record in unpack_records(part)]
            if not got:
                log.error("timed message cannot be read", extra={"queue": queue, "offset": places[at][1]})
                at += 1
                continue
            records += got
            size += sum(record.size for record in got)
            at += len(got)
        return records, at

    def _finish(self, queue: int, slot: OpenSlot) -> None:
        """The slot's time is over and everything in it is delivered."""
        start = self._intake.view.tables.timers.done(queue).start
        if start >= slot.seen or self._put([], [TimerDone(queue, slot.seen, 0, 0)]):
            del self._slots[queue]

    # --- the far queue

    async def _roll(self, start: int, end: int) -> int:
        """Place anew what has been far for long enough; when to look again, in wall-clock milliseconds."""
        key = key_of(self._tid, FAR_QUEUE)
        while start < end:
            await self._replicator.room()
            found = await self._store.get_from_disk(key, start, BATCH_MAX, BATCH_BYTES, None)
            records = [record for part in found.parts for record in unpack_records(part)]
            if not records:
                return self._clock.wall_ms() + 100
            now = self._clock.wall_ms()
            aged = [record for record in records if record.store_ms + self._wheel.roll_ms <= now]
            if aged:
                cancelled = self._intake.view.tables.timers.cancelled
                skipped = [r.queue_offset for r in aged if (FAR_QUEUE, r.queue_offset) in cancelled]
                moved = [self._moved(record, now) for record in aged if record.queue_offset not in skipped]
                start = aged[-1].queue_offset + 1
                messages = [message for message in moved if message is not None]
                if not self._put(messages, [TimerDone(FAR_QUEUE, start, 0, 0, skipped)]):
                    return now
                self._counters.timers_rolled += len(messages)
            if len(aged) < len(records):
                return records[len(aged)].store_ms + self._wheel.roll_ms
        return self._clock.wall_ms() + int(IDLE_S * 1000)

    def _moved(self, record: Record, now: int) -> PutMessage | None:
        # Behind the log's time, so that no cursor is at or above it; late by a clock's skew at most.
        if due_of(record) <= max(now, self._intake.log_time()):
            return self._real(record, now)
        return rolled(record, now, self._wheel)

    # --- both

    def _real(self, record: Record, now: int) -> PutMessage | None:
        message = real_timed(record, now)
        if message is None or self._intake.view.topic(message.topic) is None:
            log.warning(
                "timed message dropped: its topic does not exist any more",
                extra={"topic": message.topic.decode() if message else "", "position": record.position},
            )
            return None
        return message

    def _put(self, messages: Sequence[PutMessage], ops: Sequence[Op]) -> bool:
        try:
            self._intake.put_batch(messages, ops=ops, settled=self._settled)
        except Busy:
            return False  # asked again after `room`
        return True

    def _settled(self, outcome: Outcome) -> None:
        if not outcome.ok:
            # Start again from what the log says; if this was the end of the term, the next leader does.
            self._failed = True
            self._wake.set()
