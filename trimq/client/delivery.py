"""Delivery: what was read and is not finished. Between the readers, which bring messages, and the handlers.

How far readers may read ahead is decided here (`Limits`), so is what is offered next: with `ordered` one message per
queue at a time. A message that was not processed goes back to the brokers, or is offered again in its place.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta

import anyio
import anyio.abc

from trimq.client.handlers import InProcess
from trimq.client.instance import Instance
from trimq.client.limits import Limits
from trimq.client.model import Queue
from trimq.client.offered import Offered
from trimq.client.outgoing import delay_level
from trimq.client.reader import Holding, Reader
from trimq.client.received import Received
from trimq.client.replies import send_reply
from trimq.client.retries import DEAD_LETTER, Retries
from trimq.client.running import Running
from trimq.errors import TrimqError

__all__ = ["Delivery"]

log = logging.getLogger(__name__)

QUEUE_ROOM_MIN = 8
"""Messages that each queue may read ahead, however many queues share the prefetch."""

REDELIVER_S = 1.0
"""An ordered queue waits so long before it offers a failed message again (RocketMQ's suspendCurrentQueueTimeMillis)."""


class Delivery:
    """The `Sink` of a push consumer's readers. `readers`: those of the queues that are held now."""

    def __init__(
        self,
        instance: Instance,
        group: str,
        readers: Mapping[Queue, Reader],
        running: Running,
        retries: Retries,
        tasks: anyio.abc.TaskGroup,
        *,
        broadcast: bool,
        ordered: bool,
        limits: Limits,
    ) -> None:
        self.offered = Offered()
        self.in_process: InProcess[tuple[Holding, int], tuple[Received, float]] = InProcess()
        """(holding, offset) → the message in a handler, and since when."""
        self._instance = instance
        self._group = group
        self._readers = readers
        self._running = running
        self._retries = retries
        self._tasks = tasks
        self._broadcast = broadcast
        self._ordered = ordered
        self._limits = limits
        self._settled = anyio.Event()
        self._bytes_held = 0
        self._paused: set[Queue] = set()

    # For the consumer

    def pause(self, queues: Iterable[Queue]) -> None:
        """Stop reading these queues."""
        self._paused.update(queues)
        for queue, reader in self._readers.items():
            if queue in self._paused:
                reader.interrupt()

    def resume(self, queues: Iterable[Queue]) -> None:
        """Undo `pause`, for these queues or (none named) for all."""
        self._paused.difference_update(tuple(queues) or tuple(self._paused))
        self._nudge_all()

    def rebalanced(self, lost: Iterable[Queue]) -> None:
        """Queues came or went: the others have another share of the room."""
        self._paused.difference_update(lost)
        self._nudge_all()

    def stop(self) -> None:
        """Read nothing more and hand out nothing more; iterations end."""
        self.offered.ready.clear()
        for reader in self._readers.values():
            reader.scope.cancel()
        self.offered.close()

    def _nudge_all(self) -> None:
        for reader in self._readers.values():
            reader.nudge()

    # For the readers

    def _share(self) -> int:
        return max(self._limits.messages // max(len(self._readers), 1), QUEUE_ROOM_MIN)

    def room(self, reader: Reader) -> int:
        return self._share() - len(reader.process)

    def has_room(self, reader: Reader) -> bool:
        # Half of the share must be free: many small reads would cost more than they bring.
        return (
            self.room(reader) * 2 >= self._share()
            and self._bytes_held < self._limits.bytes
            and (self._ordered or reader.process.span < self._limits.span)
            and reader.queue not in self._paused
        )

    def arrived(self, holding: Holding, messages: list[Received]) -> None:
        self._running.pulled(holding.reader, len(messages))
        self._bytes_held += sum(len(message.body) for message in messages)
        if not self._ordered:
            self.offered.offer(messages)
        elif holding.behind is not None:
            holding.behind.extend(messages)
        elif self._in_hand(holding.reader.queue):
            holding.behind, holding.waits = deque(messages), True
        else:
            holding.behind = deque(messages[1:])
            self.offered.offer(messages[:1])

    def forgot(self, holding: Holding) -> None:
        self._bytes_held -= holding.process.bytes_held

    # For the messages

    def entered(self, message: Received) -> None:
        now = anyio.current_time()
        self.in_process.enter((_holding(message), message.offset), (message, now))
        self._running.entered(message, now)

    def left(self, message: Received) -> None:
        holding = _holding(message)
        self.in_process.leave((holding, message.offset))
        self._running.left(message)
        if self._ordered:
            self._let_next(holding.reader.queue)

    def _let_next(self, queue: Queue) -> None:
        """The only message of an ordered queue has left its handler: whoever waited for that may go on."""
        if self._in_hand(queue):
            return
        if self._settled.statistics().tasks_waiting:
            self._settled.set()
            self._settled = anyio.Event()
        reader = self._readers.get(queue)
        if reader is not None and reader.holding.waits and reader.holding.behind:
            reader.holding.waits = False
            self.offered.offer([reader.holding.behind.popleft()])

    def _in_hand(self, queue: Queue) -> bool:
        """Is something of this queue in a handler, be it from before a seek?"""
        return any(busy.reader.queue == queue for busy, _ in self.in_process.held)

    def finished(self, holding: Holding, message: Received) -> None:
        process = holding.process
        before = len(process)
        process.finish(message.offset, len(message.body))
        if len(process) == before:
            return
        self._running.handled(message, ok=True)
        was_full = self._bytes_held >= self._limits.bytes
        self._bytes_held -= len(message.body)
        if was_full and self._bytes_held < self._limits.bytes:
            self._nudge_all()
        elif holding.reader.waiting and self.has_room(holding.reader):
            holding.reader.nudge()
        if holding.behind:
            self.offered.offer([holding.behind.popleft()])
        else:
            holding.behind = None

    async def suspend(self, holding: Holding, message: Received, after: timedelta) -> None:
        if not holding.process.is_finished(message.offset):
            await self._offer_later(holding, message, after.total_seconds(), attempt=message.attempt)

    async def settle(self, holding: Holding) -> None:
        holding.leaving = True
        holding.behind = None
        self.offered.keep(lambda message: message._home is not holding)
        while not self.is_settled(holding):
            await self._settled.wait()

    def is_settled(self, holding: Holding) -> bool:
        return not self._in_hand(holding.reader.queue)

    async def send_back(self, holding: Holding, message: Received, after: timedelta | None) -> None:
        if holding.process.is_finished(message.offset):
            return  # it took too long and was handed back meanwhile
        self._running.handled(message, ok=False)
        if self._retries.exhausted(message):
            await self.put_aside(holding, message, f"{message.attempt} attempts failed")
        elif self._ordered:
            await self._offer_later(holding, message, REDELIVER_S if after is None else after.total_seconds())
        else:
            await self._hand_back(holding, message, 0 if after is None else delay_level(after))

    async def put_aside(self, holding: Holding, message: Received, reason: str) -> None:
        self._retries.note_dead_letter(message, reason)
        await self._hand_back(holding, message, DEAD_LETTER)

    async def reply(self, message: Received, body: bytes, tag: str | None, properties: Mapping[str, str]) -> None:
        await send_reply(self._instance, message, body, tag=tag, own=properties)

    async def _hand_back(self, holding: Holding, message: Received, level: int) -> None:
        if self._broadcast:
            holding.finished(message)  # every member reads for itself: there is nobody to hand it back to
            return
        try:
            await self._retries.hand_back(message, level)
        except TrimqError as error:
            log.warning("message not handed back, offered again here", extra={"id": message.id, "error": error})
            await self._offer_later(holding, message, REDELIVER_S)
        else:
            holding.finished(message)

    async def _offer_later(
        self, holding: Holding, message: Received, delay_s: float, *, attempt: int | None = None
    ) -> None:
        """Offer the same message again after a moment; until then its queue's commit offset stays below it."""

        async def later() -> None:
            await anyio.sleep(delay_s)
            if not holding.process.dropped and not holding.leaving:
                self.offered.offer([replace(message, attempt=message.attempt + 1 if attempt is None else attempt)])

        self._tasks.start_soon(later)
        await anyio.lowlevel.checkpoint()

    async def watch_handlers(self) -> None:
        """Hand back what is in a handler for too long, until cancelled."""
        while True:
            await anyio.sleep(min(self._limits.process_s / 4, 60.0))
            before = anyio.current_time() - self._limits.process_s
            held = self.in_process.held.items()
            for holding, message in [(holding, message) for (holding, _), (message, since) in held if since < before]:
                if holding.process.dropped or holding.process.is_finished(message.offset):
                    continue
                log.warning(
                    "message is in its handler for too long, it comes again elsewhere",
                    extra={"topic": message.topic, "id": message.id, "group": self._group},
                )
                await self._hand_back(holding, message, 0)


def _holding(message: Received) -> Holding:
    home = message._home
    assert isinstance(home, Holding), "every message of a consumer belongs to a holding"
    return home
