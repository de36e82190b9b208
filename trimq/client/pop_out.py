"""Messages that are out: popped, invisible to others for a while, and not acknowledged yet.

Each has a handle, with which the broker knows it; asking for more time or less gives it a new one. What is in a handler
for long can be kept invisible; what nobody has looked at is given back at the end.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import timedelta

import anyio

from trimq.client.handlers import InProcess
from trimq.client.instance import Instance
from trimq.client.offered import Offered
from trimq.client.pop_api import PopApi, Popped
from trimq.client.received import Received
from trimq.client.replies import send_reply
from trimq.client.retries import DEAD_LETTER, Retries
from trimq.errors import BadRequest, TrimqError
from trimq.message.pop import Handle

__all__ = ["INVISIBLE_MAX_S", "Out", "Outstanding", "home_of"]

log = logging.getLogger(__name__)

RETRY_S = (10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200)
"""Waits between attempts: RocketMQ's delay levels from 3 on."""
ORDERED_RETRY_S = 1.0
INVISIBLE_MAX_S = 12 * 3600.0
EARLY = 0.95
"""Of the invisible time: the broker begins to count before its answer arrives here."""


class Outstanding:
    """Everything of one pop consumer that is out."""

    def __init__(
        self,
        instance: Instance,
        api: PopApi,
        group: str,
        retries: Retries,
        offered: Offered,
        *,
        ordered: bool,
        invisible_s: float,
    ) -> None:
        self.instance = instance
        self.api = api
        self.group = group
        self.retries = retries
        self.offered = offered
        self.ordered = ordered
        self.invisible_s = invisible_s
        self.in_process: InProcess[Out, None] = InProcess()

    def popped(self, group: str, found: Iterable[Popped]) -> Iterable[tuple[Popped, Out]]:
        """What a replica group has given us, each with its new home."""
        expires = anyio.current_time() + self.invisible_s * EARLY
        return [(each, Out(self, group, each, expires)) for each in found]

    async def keep_invisible(self) -> None:
        """Extend what is in process and soon visible again, until cancelled."""
        while True:
            await anyio.sleep(self.invisible_s / 6)
            soon = anyio.current_time() + self.invisible_s / 2
            async with anyio.create_task_group() as tasks:
                for out in list(self.in_process.held):
                    for each in (out, *map(home_of, out.batch or ())):
                        if not each.done and each.expires < soon:
                            tasks.start_soon(each.prolong)

    async def give_back(self) -> None:
        """What nobody has looked at is visible to others at once."""
        unseen = [home_of(message) for message in self.offered.ready]
        self.offered.ready.clear()
        with anyio.move_on_after(1.0, shield=True):
            async with anyio.create_task_group() as tasks:
                for out in unseen:
                    tasks.start_soon(out.give_back)


class Out:
    """One message that is out, at its consumer: the home of a `Received`."""

    __slots__ = ("_all", "_group", "_handle", "_topic", "batch", "done", "expires")

    def __init__(self, outstanding: Outstanding, group: str, popped: Popped, expires: float) -> None:
        self.expires = expires
        """On the loop's clock; a little early, since the broker began to count before the answer came."""
        self.done = False
        self.batch: deque[Received] | None = None
        """Ordered: what waits behind this message in its queue."""
        self._all = outstanding
        self._group = group
        self._topic = popped.topic
        self._handle = popped.handle

    def entered(self, message: Received) -> None:
        self._all.in_process.enter(self, None)

    def left(self, message: Received) -> None:
        self._all.in_process.leave(self)

    async def acknowledge(self, message: Received) -> bool:
        if self.done:
            return True
        if await self._all.api.ack(self._group, self._topic, self._handle):
            self.done = True
        else:
            log.warning(
                "message acknowledged too late, it comes again: raise invisible, or extend",
                extra={"topic": message.topic, "id": message.id, "group": self._all.group, "attempt": message.attempt},
            )
        if self.batch:
            self._all.offered.offer([self.batch.popleft()])
        return self.done

    async def extend(self, message: Received, by: timedelta) -> None:
        await self._extend(by.total_seconds())

    async def send_back(self, message: Received, after: timedelta | None) -> None:
        if self.done:
            return
        if self._all.retries.exhausted(message):
            await self.put_aside(message, f"{message.attempt} attempts failed")
            return
        if after is not None:
            wait_s = after.total_seconds()
        else:
            wait_s = ORDERED_RETRY_S if self._all.ordered else RETRY_S[min(message.attempt, len(RETRY_S)) - 1]
        await self._give_up(wait_s)

    async def put_aside(self, message: Received, reason: str) -> None:
        self._all.retries.note_dead_letter(message, reason)
        await self._all.retries.hand_back(message, DEAD_LETTER)
        await self.acknowledge(message)

    async def reply(self, message: Received, body: bytes, tag: str | None, properties: Mapping[str, str]) -> None:
        await send_reply(self._all.instance, message, body, tag=tag, own=properties)

    async def suspend(self, message: Received, after: timedelta) -> None:
        """Giving it back is an attempt here: the broker counts."""
        await self._give_up(after.total_seconds())

    async def prolong(self) -> None:
        """Keep it invisible for another while; said in the log when that is too late."""
        try:
            await self._extend(self._all.invisible_s)
        except TrimqError as error:
            log.info("message not kept invisible", extra={"group": self._all.group, "error": error})

    async def drop(self) -> None:
        """It is not one that was asked for."""
        try:
            await self._all.api.ack(self._group, self._topic, self._handle)
        except TrimqError as error:
            log.info("message that is not wanted not acknowledged", extra={"error": error})

    async def give_back(self) -> None:
        """Nobody here has looked at it."""
        try:
            await self._hide(0)
        except TrimqError as error:
            log.debug("message not given back, it comes again by itself", extra={"error": error})

    async def _extend(self, by_s: float) -> None:
        if not 0 < by_s <= INVISIBLE_MAX_S:
            raise BadRequest(f"extend by {by_s} s: above 0, at most {INVISIBLE_MAX_S:.0f}")
        now = anyio.current_time()
        if await self._hide(by_s) is None:
            raise BadRequest(
                "the message is not ours any more: its invisible time was over", advice="it comes again; extend earlier"
            )
        self.expires = now + by_s * EARLY

    async def _give_up(self, wait_s: float) -> None:
        together = [self]
        if self.batch:  # they may only come behind this one, so they are given back with it
            together += [home_of(each) for each in self.batch]
            self.batch.clear()
        for each in together:
            each.done = await each._hide(min(max(wait_s, 0.0), INVISIBLE_MAX_S)) is not None

    async def _hide(self, seconds: float) -> Handle | None:
        handle = await self._all.api.hide(self._group, self._topic, self._handle, round(seconds * 1000))
        if handle is not None:
            self._handle = handle
        return handle


def home_of(message: Received) -> Out:
    """The home of a pop consumer's message."""
    home = message._home
    assert isinstance(home, Out), "every message of a pop consumer is one that is out"
    return home
