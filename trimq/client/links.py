"""Connections to brokers: what is at the other end, and whether it still lives.

On each new connection HELLO goes first. A broker of ours answers with what it can do; Apache's answer that they do
not know it, and then nothing of ours is ever sent to them. A frozen process keeps its connections, so those with
requests in flight are asked for a sign of life each second and closed when there is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from trimq.errors import Disconnected
from trimq.remoting.client import Channel, RemotingClient
from trimq.wire.body.group import Hello
from trimq.wire.codes import VERSION_5, RequestCode, ResponseCode
from trimq.wire.command import Command, encode

__all__ = ["Link", "Links"]

log = logging.getLogger(__name__)

HELLO_S = 1.0
"""A server that does not answer HELLO in this time is frozen or gone."""

PING_S = 1.0
"""A connection with requests in flight is asked for a sign of life this often (brokers of ours only)."""

DEAD_S = 3.0
"""One that gives none for so long is closed."""


@dataclass(frozen=True, slots=True)
class Link:
    """An open connection to a broker, and what that broker can do."""

    addr: str
    channel: Channel
    ours: bool
    """It answered HELLO: sequences, leader fields and our codes are understood."""
    timers: bool = True
    """It can deliver at any time, or refuses to; Apache's before 5.0 overlook the wish and deliver at once."""


@dataclass(slots=True)
class _Greeting:
    """A connection that is being made: its failure is that of all who wait for it, or each would try for himself."""

    done: anyio.Event = field(default_factory=anyio.Event)
    failure: str | None = None


class Links:
    """One link per address, opened when first needed. `introduce` is called with each new one."""

    def __init__(self, remoting: RemotingClient, client_id: str, introduce: Callable[[Link], None]) -> None:
        self._remoting = remoting
        self._client_id = client_id
        self._introduce = introduce
        self._links: dict[str, Link] = {}
        self._greeting: dict[str, _Greeting] = {}
        self._pinged: dict[str, float] = {}
        """Address to the time of a ping that has no answer yet."""

    @property
    def all(self) -> tuple[Link, ...]:
        """The links that are open now."""
        return tuple(link for link in self._links.values() if not link.channel.closed)

    def open(self, addr: str) -> Link | None:
        """The link to this address if it is open now."""
        link = self._links.get(addr)
        return None if link is None or link.channel.closed else link

    async def get(self, addr: str) -> Link:
        """An open link to a broker; on a new connection HELLO goes first. Raises `Disconnected`."""
        while True:
            link = self.open(addr)
            if link is not None:
                return link
            greeting = self._greeting.get(addr)
            if greeting is None:
                return await self._greet(addr)
            await greeting.done.wait()
            if greeting.failure is not None:
                raise Disconnected(greeting.failure)

    async def _greet(self, addr: str) -> Link:
        greeting = self._greeting[addr] = _Greeting()
        try:
            channel = await self._remoting.channel(addr)
            hello = Command(code=RequestCode.HELLO, body=Hello.ours(self._client_id).to_json())
            try:
                with anyio.fail_after(HELLO_S):
                    answer = await channel.invoke(hello)
            except TimeoutError as error:
                channel.close(f"{addr} did not answer HELLO within {HELLO_S:g} s")
                raise Disconnected(channel.close_reason) from error
            ours = answer.code == ResponseCode.SUCCESS and "sequences" in Hello.from_json(answer.body).features
            link = self._links[addr] = Link(addr, channel, ours, ours or answer.version >= VERSION_5)
            self._introduce(link)
            return link
        except Disconnected as error:
            greeting.failure = error.message
            raise
        finally:
            del self._greeting[addr]
            greeting.done.set()

    async def run(self) -> None:
        """Close connections that have gone silent, so that whoever waits on them goes elsewhere; until cancelled."""
        while True:
            await anyio.sleep(PING_S)
            now = anyio.current_time()
            for addr, link in list(self._links.items()):
                if link.channel.closed:
                    del self._links[addr]
                    self._pinged.pop(addr, None)
                elif (since := self._pinged.get(addr)) is None:
                    if link.ours and link.channel.in_flight:
                        self._ping(link, now)
                elif now - since >= DEAD_S:
                    del self._pinged[addr]
                    log.info("silent broker left", extra={"addr": addr})
                    link.channel.close(f"{addr} gives no sign of life")

    def _ping(self, link: Link, now: float) -> None:
        command = Command(code=RequestCode.HELLO, body=Hello.ours(self._client_id).to_json())
        command.opaque = link.channel.next_opaque()
        self._pinged[link.addr] = now
        link.channel.submit(encode(command), command.opaque, lambda _reply: self._alive(link.addr))

    def _alive(self, addr: str) -> None:
        self._pinged.pop(addr, None)
