"""Questions that this broker asks a client, on the client's own connection.

A connection carries requests both ways, and each side numbers its own, so an answer is told from a request by the
response bit and belongs to the question that we asked with its number on that very connection. Who asks waits in a
lane of its own; a client that is silent costs that lane's worker for `within_s` and nothing else. Whoever is connected
here can be asked, whatever the replica's role: clients heartbeat to every replica.

Used for 307 and 309 (what an operator's tool wants to know of a consumer); Java's counterpart is Broker2Client.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio
from msgspec.structs import replace

from broker.metadata.clients import Link
from trimq.wire.command import Command, encode

__all__ = ["ClientCalls", "ClientSilent"]


class ClientSilent(Exception):
    """The client did not answer in time, or its connection ended meanwhile."""


@dataclass(slots=True)
class _Call:
    done: trio.Event = field(default_factory=trio.Event)
    answer: Command | None = None


class ClientCalls:
    """The open questions of one replica."""

    def __init__(self) -> None:
        self._opaque = 0
        self._open: dict[Link, dict[int, _Call]] = {}

    async def ask(self, link: Link, command: Command, *, within_s: float) -> Command:
        """Send `command` (its opaque is ours to choose) and wait for the answer. Raises `ClientSilent`."""
        self._opaque = (self._opaque + 1) & 0x7FFFFFFF
        opaque, call = self._opaque, _Call()
        self._open.setdefault(link, {})[opaque] = call
        try:
            link.send(encode(replace(command, opaque=opaque)))
            with trio.move_on_after(within_s):
                await call.done.wait()
        finally:
            calls = self._open.get(link, {})
            calls.pop(opaque, None)
            if not calls:
                self._open.pop(link, None)
        if call.answer is None:
            raise ClientSilent(f"{link.peer} did not answer within {within_s:g} s, or left")
        return call.answer

    def answered(self, link: Link, command: Command) -> None:
        """A response came on a connection; one that nobody waits for (any more) is dropped."""
        call = self._open.get(link, {}).get(command.opaque)
        if call is not None:
            call.answer = command
            call.done.set()

    def closed(self, link: Link) -> None:
        """A connection ended: nobody will answer on it."""
        for call in self._open.pop(link, {}).values():
            call.done.set()
