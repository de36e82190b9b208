"""A message that came, and the wait for the next one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Self

import anyio

from trimq.blocking.portal import Portal
from trimq.client.model import Queue
from trimq.client.received import Received as AsyncReceived

__all__ = ["Received", "next_message"]


class Received:
    """A message that came; see `trimq.Received`. Leaving its `with` block acknowledges it."""

    def __init__(self, message: AsyncReceived, portal: Portal) -> None:
        self.message = message
        """The message as the asynchronous client delivers it: every field is there."""
        self._portal = portal

    @property
    def topic(self) -> str:
        return self.message.topic

    @property
    def body(self) -> bytes:
        return self.message.body

    @property
    def tag(self) -> str | None:
        return self.message.tag

    @property
    def keys(self) -> Sequence[str]:
        return self.message.keys

    @property
    def order_key(self) -> str | None:
        return self.message.order_key

    @property
    def properties(self) -> Mapping[str, str]:
        return self.message.properties

    @property
    def id(self) -> str:
        return self.message.id

    @property
    def queue(self) -> Queue:
        return self.message.queue

    @property
    def offset(self) -> int:
        return self.message.offset

    @property
    def attempt(self) -> int:
        return self.message.attempt

    @property
    def stored_at(self) -> datetime:
        return self.message.stored_at

    @property
    def born_at(self) -> datetime:
        return self.message.born_at

    def ack(self) -> bool:
        """This message is done with; False: too late, it comes again."""
        return self._portal.call(self.message.ack)

    def extend(self, by: timedelta) -> None:
        """Keep it for so long from now on."""
        self._portal.call(partial(self.message.extend, by))

    def retry(self, after: timedelta | None = None) -> None:
        """Hand it back, to be delivered again later."""
        self._portal.call(partial(self.message.retry, after))

    @property
    def wants_reply(self) -> bool:
        return self.message.wants_reply

    def reply(self, body: bytes | str, *, tag: str | None = None, properties: Mapping[str, str] | None = None) -> None:
        """Answer a request."""
        self._portal.call(partial(self.message.reply, body, tag=tag, properties=properties))

    def dead_letter(self, reason: str = "") -> None:
        """Move it to the consumer group's dead letters."""
        self._portal.call(partial(self.message.dead_letter, reason))

    def __enter__(self) -> Self:
        self._portal.call(self.message.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self._portal.call(partial(self.message.__aexit__, kind, error, trace))

    def __repr__(self) -> str:
        return repr(self.message)


def next_message(
    consumer: AsyncIterator[AsyncReceived], portal: Portal, *, timeout: float | None = None
) -> Received | None:
    """The next message; None when none comes within `timeout` seconds, or when the consumer's block was left."""

    async def within() -> AsyncReceived | None:
        with anyio.move_on_after(timeout):
            return await anext(consumer, None)
        return None

    message = portal.call(within)
    return None if message is None else Received(message, portal)
