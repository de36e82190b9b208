"""A message that came, and how it is acknowledged: by leaving its block.

    async for message in consumer:
        async with message:
            ...                       # leaving normally acknowledges

Raising `Retry` asks for it again later, `DeadLetter` puts it aside for good, any other exception counts as a failed
attempt (logged, delivered again later, after `max_attempts` dead-lettered). Cancellation does nothing: the message
is delivered again to whoever reads the queue next.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Protocol, Self

from trimq.client.model import Message, Queue, from_ms
from trimq.client.replies import wants_reply
from trimq.client.telemetry import attach, detach
from trimq.message.ids import host_text

__all__ = ["DeadLetter", "Received", "Retry", "Suspend"]

log = logging.getLogger(__name__)


class Retry(Exception):
    """Raise it in a message's block: deliver this message again, after a while.

    `after` is rounded up to one of the broker's delay levels (1 s, 5 s, 10 s, 30 s, 1 min, ...); without it the wait
    grows with the number of attempts, from 10 s to 2 h.
    """

    def __init__(self, reason: str = "", *, after: timedelta | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Suspend(Exception):
    """Raise it in a message's block: not now. The same message comes again here after a while, and it is no attempt.

    For an ordered consumer the whole queue rests meanwhile (RocketMQ's SUSPEND_CURRENT_QUEUE_A_MOMENT, one second).
    """

    def __init__(self, reason: str = "", *, after: timedelta = timedelta(seconds=1)) -> None:
        super().__init__(reason)
        self.after = after


class DeadLetter(Exception):
    """Raise it in a message's block: this message can never be processed; move it to the group's dead letters."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Home(Protocol):
    """Where a message came from and goes back to: the consumer that handed it out."""

    def entered(self, message: Received) -> None: ...

    def left(self, message: Received) -> None: ...

    async def acknowledge(self, message: Received) -> bool: ...

    async def extend(self, message: Received, by: timedelta) -> None: ...

    async def send_back(self, message: Received, after: timedelta | None) -> None: ...

    async def put_aside(self, message: Received, reason: str) -> None: ...

    async def reply(self, message: Received, body: bytes, tag: str | None, properties: Mapping[str, str]) -> None: ...

    async def suspend(self, message: Received, after: timedelta) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Received(Message):
    """A message as it was stored."""

    queue: Queue
    """Where it was read; its `topic` stays the original one when it comes back through a retry queue."""
    offset: int
    """Its place in that queue."""
    attempt: int
    """1 for the first delivery, one more for each retry."""
    position: int
    """Its place in the replica group's log."""
    born_ms: int
    stored_ms: int
    born_host_bytes: bytes
    offset_id: str
    """RocketMQ's offset message id."""
    all_properties: dict[str, str] = field(repr=False)
    """Every property as stored, RocketMQ's own included."""
    _home: Home = field(repr=False, compare=False)
    _context: object = field(default=None, init=False, repr=False, compare=False)
    """The sender's telemetry context, while the message's block runs."""

    @property
    def born_at(self) -> datetime:
        """When the producer made it, by the producer's clock (UTC)."""
        return from_ms(self.born_ms)

    @property
    def stored_at(self) -> datetime:
        """When it was stored, by the leader's clock (UTC)."""
        return from_ms(self.stored_ms)

    @property
    def born_host(self) -> str:
        """`ip:port` of the producer as the broker saw it."""
        return host_text(self.born_host_bytes)

    async def ack(self) -> bool:
        """This message is done with. Acknowledging twice is harmless.

        A pop consumer's acknowledgement is durable when this returns True; False says that it came too late and the
        message comes again. Of one that was acknowledged before, a leader newer than its pop says False as well: it
        cannot tell the two apart. Raises `TrimqError` when the outcome is not known.
        """
        return await self._home.acknowledge(self)

    async def extend(self, by: timedelta) -> None:
        """Keep it for so long from now on (pop consumers: longer invisible to others). Raises `TrimqError`.

        What a push consumer holds it holds for as long as it reads the queue: there is nothing to extend.
        """
        await self._home.extend(self, by)

    async def retry(self, after: timedelta | None = None) -> None:
        """Hand it back, to be delivered again later; see `Retry`. Raises `TrimqError` when the broker did not take it.

        Cancelled meanwhile: it stays unacknowledged and is delivered again.
        """
        await self._home.send_back(self, after)

    async def dead_letter(self, reason: str = "") -> None:
        """Move it to the consumer group's dead letters."""
        await self._home.put_aside(self, reason)

    @property
    def wants_reply(self) -> bool:
        """Whether it is a request: somebody waits for `reply`."""
        return wants_reply(self)

    async def reply(
        self, body: bytes | str, *, tag: str | None = None, properties: Mapping[str, str] | None = None
    ) -> None:
        """Answer a request (`Client.request`): returns when the client that asked has the reply.

        Sent again until then, as long as the caller's deadline allows. Raises `BadRequest` when nobody waits for one,
        `BrokerError` when the client that asked is gone.
        """
        data = body.encode() if isinstance(body, str) else body
        await self._home.reply(self, data, tag, properties or {})

    async def __aenter__(self) -> Self:
        self._home.entered(self)
        object.__setattr__(self, "_context", attach(self.all_properties))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        home = self._home
        try:
            if error is None:
                await home.acknowledge(self)
                return False
            if isinstance(error, DeadLetter):
                await home.put_aside(self, error.reason)
            elif isinstance(error, Suspend):
                await home.suspend(self, error.after)
            elif isinstance(error, Retry):
                await home.send_back(self, error.after)
            elif isinstance(error, Exception):
                log.warning(
                    "handler failed, message is delivered again later",
                    extra={"topic": self.topic, "id": self.id, "queue": str(self.queue), "attempt": self.attempt},
                    exc_info=error,
                )
                await home.send_back(self, None)
            else:
                return False  # cancelled, or the process is going down
            return True
        finally:
            detach(self._context)
            home.left(self)
