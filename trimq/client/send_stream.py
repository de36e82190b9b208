"""Sending without waiting for each receipt, with all errors together at the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from trimq.client.lane import Slot
from trimq.client.model import Message, Queue
from trimq.errors import TrimqError

__all__ = ["SendStream"]


class SendStream:
    """Messages on their way whose receipts nobody waits for one by one. Made by `Producer.stream`."""

    def __init__(
        self,
        admit: Callable[[Message, Queue | None, SendStream], Awaitable[Slot]],
        give_up: Callable[[Slot, str], None],
    ) -> None:
        self._admit = admit
        self._give_up = give_up
        self._pending: dict[Slot, None] = {}
        self._idle: anyio.Event | None = None
        self._errors: list[TrimqError] = []
        self.stored = 0
        """Messages acknowledged so far."""

    async def send(self, message: Message, /, *, queue: Queue | None = None) -> None:
        """Queue one message; waits only while the producer has its `max_in_flight` in hand."""
        slot = await self._admit(message, queue, self)
        if slot.outcome is not None:
            self._count(slot)
            return
        self._pending[slot] = None
        if slot.entered:
            return
        slot.entry = anyio.Event()
        try:
            await slot.entry.wait()
        except BaseException:
            if not slot.entered:
                self._pending.pop(slot, None)
                slot.stream = None
                self._give_up(slot, "cancelled")
            raise

    async def drain(self) -> None:
        """Wait until everything queued so far is acknowledged. Raises an `ExceptionGroup` of what failed since the
        last time."""
        if self._pending:
            self._idle = anyio.Event()
            await self._idle.wait()
        else:
            await anyio.lowlevel.checkpoint()
        if self._errors:
            errors, self._errors = self._errors, []
            raise ExceptionGroup(f"{len(errors)} messages were not acknowledged", errors)

    def settled(self, slot: Slot) -> None:
        """For the producer: this message has its outcome."""
        self._pending.pop(slot, None)
        self._count(slot)
        if not self._pending and self._idle is not None:
            self._idle.set()
            self._idle = None

    def _count(self, slot: Slot) -> None:
        outcome = slot.outcome
        if isinstance(outcome, TrimqError):
            self._errors.append(outcome)
        else:
            self.stored += 1

    def abandon(self) -> None:
        """Leaving early: what is still on its way is given up."""
        for slot in list(self._pending):
            self._give_up(slot, "its stream was left")
