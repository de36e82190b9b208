"""What a producer has in hand: every message from its call until its outcome is known.

There is room for so many messages and bytes; who comes when there is none waits in the lobby, in the order of the
calls, as order keys promise an order. Who has room enters the lane of the chosen queue's replica group. The outcome
comes from there; or nobody waits any more, and then the lane says what is known of the message. Default deadlines have
no timers: one task looks for those that have passed.
"""

from __future__ import annotations

from collections import deque

import anyio
import anyio.abc

from trimq.client.instance import Instance
from trimq.client.lane import GivenUp, Slot
from trimq.client.lane_driver import LaneDriver, forget_queue
from trimq.client.model import Receipt
from trimq.client.spread import Spreads
from trimq.client.timing import EventLoop
from trimq.client.trace import Tracer
from trimq.errors import NotStored, SendUnknown, TrimqError

__all__ = ["InHand"]

SWEEP_S = 0.05
"""How often messages whose default deadline has passed are looked for."""

BYTES_MAX = 64 * 1024 * 1024
"""Bodies of unsettled messages; above it `send` waits, whatever their number."""


class InHand:
    """See the module docstring. `run` is its task."""

    def __init__(
        self,
        instance: Instance,
        group: str,
        tasks: anyio.abc.TaskGroup,
        *,
        pid: str | None,
        batching: bool,
        messages_max: int,
        tracer: Tracer | None,
    ) -> None:
        self.spreads = Spreads(instance, self._is_healthy)
        self._instance = instance
        self._group = group
        self._tasks = tasks
        self._pid = pid
        self._batching = batching
        self._messages_max = messages_max
        self._tracer = tracer
        self._drivers: dict[str, LaneDriver] = {}
        self._entered = 0
        self._bytes_entered = 0
        self._lobby: deque[tuple[Slot, ...]] = deque()
        """Messages (or explicit batches) that wait for room, in the order of their calls."""
        self.loop = EventLoop()
        self._closed = False
        self.stored = self.duplicates = self.not_stored = self.unknown = 0

    @property
    def count(self) -> int:
        """Messages without an outcome, waiting ones included."""
        return self._entered + sum(map(len, self._lobby))

    @property
    def transmitted(self) -> int:
        """Send requests so far, repetitions included."""
        return sum(driver.transmitted for driver in self._drivers.values())

    # The way in

    def check_open(self) -> None:
        """Raises `NotStored` when the producer's block was left."""
        if self._closed:
            raise NotStored("the producer is closed", advice="send inside its `async with` block")

    def submit(self, unit: tuple[Slot, ...]) -> None:
        """Into a lane, or behind those that wait for room: nobody overtakes, since order keys promise an order."""
        self.check_open()
        if self._lobby or not self._has_room():
            self._lobby.append(unit)
        else:
            self._enter(unit)

    def _has_room(self) -> bool:
        return self._entered < self._messages_max and self._bytes_entered < BYTES_MAX

    def _enter(self, unit: tuple[Slot, ...]) -> None:
        queue = unit[0].queue
        if not unit[0].pinned and (spread := self.spreads.known.get(queue.topic)) is not None:
            queue = spread.current  # it may have moved on while they waited
        driver = self._drivers.get(queue.group) or self._open_driver(queue.group)
        for slot in unit:
            slot.queue = queue
            slot.entered = True
            driver.lane.put(slot)
            self._entered += 1
            self._bytes_entered += slot.size
            if slot.stream is not None:
                # Its sender waits for the place only; from here on it has the client's own time.
                slot.deadline = anyio.current_time() + self._instance.default_timeout
                if slot.entry is not None:
                    slot.entry.set()
        driver.poke()

    def _admit_waiting(self) -> None:
        lobby = self._lobby
        while lobby and (lobby[0][0].outcome is not None or self._has_room()):
            unit = lobby.popleft()
            if unit[0].outcome is None:
                self._enter(unit)

    # Lanes

    def _is_healthy(self, group: str) -> bool:
        driver = self._drivers.get(group)
        return driver is None or driver.healthy

    def _open_driver(self, group: str) -> LaneDriver:
        driver = self._drivers[group] = LaneDriver(
            self._instance,
            group,
            producer_group=self._group,
            pid=self._pid,
            batching=self._batching,
            moved_on=self.spreads.moved_on,
            rehome=self._rehome,
        )
        self._tasks.start_soon(driver.run)
        return driver

    def _rehome(self, driver: LaneDriver, slots: list[Slot]) -> None:
        """A group is in trouble: what is not bound to it goes to another one, if there is one."""
        moved = False
        for slot in slots:
            spread = self.spreads.known.get(slot.queue.topic)
            if spread is None:
                driver.lane.put(slot)
                continue
            if not self._is_healthy(spread.current.group) and not self.spreads.advance(spread):
                driver.lane.put(slot)
                continue
            slot.queue = spread.current
            other = self._drivers.get(slot.queue.group) or self._open_driver(slot.queue.group)
            other.lane.put(slot)
            other.wake()
            moved = True
        if not moved:
            driver.wake()

    # The way out

    async def wait_for(self, slot: Slot) -> None:
        """Until the outcome is known; decides it when the deadline passes or the caller is cancelled."""
        event = slot.event = self.loop.event()
        try:
            if slot.outcome is not None:
                await anyio.lowlevel.checkpoint()
            elif not slot.bounded:
                await event.wait()  # the sweep watches the default deadline: no timer per message
            else:
                with anyio.CancelScope(deadline=slot.deadline):
                    await event.wait()
                self.give_up(slot, "no answer before the deadline")
        except BaseException:
            self.give_up(slot, "cancelled")
            raise

    def settled(self, slot: Slot) -> None:
        """The sink of all slots."""
        if slot.entered:
            self._entered -= 1
            self._bytes_entered -= slot.size
        elif slot.entry is not None:
            slot.entry.set()
        outcome = slot.outcome
        if self._tracer is not None:
            self._trace(slot, self._tracer)
        if isinstance(outcome, Receipt):
            self.stored += 1
            if outcome.duplicate:
                self.duplicates += 1
        elif isinstance(outcome, SendUnknown):
            self.unknown += 1
        else:
            self.not_stored += 1
        if slot.event is not None:
            slot.event.set()
        elif slot.stream is not None:
            slot.stream.settled(slot)
        if self._lobby:
            self._admit_waiting()

    def _trace(self, slot: Slot, tracer: Tracer) -> None:
        receipt = slot.outcome if isinstance(slot.outcome, Receipt) else None
        host = receipt.leader if receipt is not None else ""
        tracer.sent(slot.message.message, self._group, host, anyio.current_time() - slot.began, receipt)

    def give_up(self, slot: Slot, why: str) -> None:
        """Nobody waits any more: take it out, and say what is known of it."""
        if slot.outcome is not None:
            return
        known = GivenUp.NOT_STORED
        driver = self._drivers.get(slot.queue.group)
        if driver is not None and slot.entered:
            known = driver.lane.give_up(slot)
            driver.wake()
        reason = f"; last: {driver.last_error.message}" if driver is not None and driver.last_error else ""
        for each in slot.bundle or (slot,):
            message = each.message.message
            error: TrimqError
            if known is GivenUp.NOT_STORED:
                if not each.again:
                    forget_queue(each)
                error = NotStored(f"message {message.id} to {each.queue}: {why}{reason}")
            else:
                error = SendUnknown(f"message {message.id} to {each.queue}: {why}{reason}", id=message.id)
            each.settle(error)

    async def run(self) -> None:
        """Notice silence, and give up what ran out of its default time: one task instead of many timers."""
        while True:
            await anyio.sleep(SWEEP_S)
            now = anyio.current_time()
            for driver in tuple(self._drivers.values()):
                driver.look_at(now)
                for slot in driver.lane.expired(now):
                    self.give_up(slot, "no answer before the deadline")
            while self._lobby and self._lobby[0][0].deadline <= now and self._lobby[0][0].stream is None:
                self.give_up(self._lobby[0][0], f"{self._messages_max} messages are in flight")
                self._admit_waiting()

    def close(self) -> None:
        """Nothing more is sent; whoever still waits is told what is known."""
        self._closed = True
        for unit in list(self._lobby):
            self.give_up(unit[0], "the producer was closed")
        self._lobby.clear()
        for driver in self._drivers.values():
            for slot in driver.lane.everything():
                self.give_up(slot, "the producer was closed")
