"""Connections of a client to any number of servers, each opened when it is first needed.

`RemotingClient` keeps one `Channel` per address. Callers that arrive while it is being opened share the attempt, which
runs in a task of the client: a caller that gives up does not spoil it for the others. A lost channel is forgotten; the
next call opens a new one. Nothing is retried here: whether a request may be sent again only its sender knows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc

from trimq.env import Network
from trimq.errors import ConnectFailed
from trimq.remoting.channel import Channel, Reply, ReplyCallback, RequestHandler
from trimq.remoting.websocket import PORT_OFFSET, SCHEME, open_websocket
from trimq.wire.command import Command, encode

__all__ = [
    "Channel",
    "RemotingClient",
    "Reply",
    "ReplyCallback",
    "RequestHandler",
    "open_remoting_client",
    "split_addr",
]

log = logging.getLogger(__name__)

CONNECT_S = 3.0
"""RocketMQ's connect timeout."""


def split_addr(addr: str) -> tuple[str, int]:
    """Cut `host:port` at the last colon (so IPv6 needs no brackets). Raises `ConnectFailed` for anything else."""
    host, colon, port = addr.strip().rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConnectFailed(f"{addr!r} is no address: host:port is needed, as in 127.0.0.1:9876")
    return host.removeprefix("[").removesuffix("]"), int(port)


class _Attempt:
    """A connection being made; `done` is set when `channel` or `error` is there."""

    __slots__ = ("channel", "done", "error")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.channel: Channel | None = None
        self.error: ConnectFailed | None = None


class RemotingClient:
    """Sends requests to servers by address. Made by `open_remoting_client`."""

    def __init__(
        self,
        network: Network,
        group: anyio.abc.TaskGroup,
        on_request: RequestHandler | None,
        through_gateways: bool = False,
    ) -> None:
        self._network = network
        self._through_gateways = through_gateways
        self._group = group
        self._on_request = on_request
        self._channels: dict[str, Channel] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._close_callbacks: list[Callable[[str, str], None]] = []
        self._closing = False

    async def invoke(self, addr: str, command: Command) -> Command:
        """Send a request and wait for its answer, whatever its code; `command.opaque` is set here.

        The deadline is the caller's cancel scope. Raises `ConnectFailed` (nothing was sent) or `Disconnected`
        (the server may have acted).
        """
        return await (await self.channel(addr)).invoke(command)

    async def oneway(self, addr: str, command: Command) -> None:
        """Queue a request that gets no answer. Raises `ConnectFailed`; a later loss goes unnoticed."""
        channel = await self.channel(addr)
        await channel.room()
        command.opaque = channel.next_opaque()
        command.flag |= 2
        channel.send(encode(command))

    def reply(self, addr: str, response: Command) -> bool:
        """Answer a request of the server later than in its handler; False when that connection is gone."""
        channel = self._channels.get(addr)
        if channel is None:
            return False
        channel.send(encode(response))
        return True

    def open_channel(self, addr: str) -> Channel | None:
        """The channel to `addr` if one is open now."""
        return self._channels.get(addr)

    async def channel(self, addr: str) -> Channel:
        """The open channel to `addr`, connecting first if need be. Raises `ConnectFailed`."""
        channel = self._channels.get(addr)
        if channel is not None:
            return channel
        if self._closing:
            raise ConnectFailed("the client is closed")
        attempt = self._attempts.get(addr)
        if attempt is None:
            self._target(addr)
            attempt = self._attempts[addr] = _Attempt()
            self._group.start_soon(self._run_channel, addr, attempt)
        await attempt.done.wait()
        if attempt.channel is None:
            # Several callers may wait: each gets an exception object (and traceback) of its own.
            raise ConnectFailed(attempt.error.message if attempt.error else "") from attempt.error
        return attempt.channel

    def close_channel(self, addr: str, reason: str) -> None:
        """Drop the connection to `addr`; the next call opens a new one."""
        channel = self._channels.get(addr)
        if channel is not None:
            channel.close(reason)

    def on_channel_closed(self, callback: Callable[[str, str], None]) -> None:
        """Call back with (address, reason) whenever a channel that was open is lost."""
        self._close_callbacks.append(callback)

    def close(self) -> None:
        """Close every channel; later calls fail. `open_remoting_client` does this on the way out."""
        self._closing = True
        for channel in list(self._channels.values()):
            channel.close("client closed")

    async def _run_channel(self, addr: str, attempt: _Attempt) -> None:
        """Connect, then carry the channel's bytes for as long as it lives."""
        try:
            channel = await self._connect(addr)
        except ConnectFailed as error:
            attempt.error = error
            return
        else:
            attempt.channel = channel
            self._channels[addr] = channel
            channel.on_closed(lambda reason: self._forget(channel, reason))
        finally:
            if attempt.channel is None and attempt.error is None:
                attempt.error = ConnectFailed("the client is closed")
            del self._attempts[addr]
            attempt.done.set()
        await channel.run()

    async def _connect(self, addr: str) -> Channel:
        host, port, websocket = self._target(addr)
        try:
            with anyio.fail_after(CONNECT_S):
                stream = await self._network.connect(host, port)
                if websocket:
                    stream = await open_websocket(stream, host, port)
        except TimeoutError as error:
            raise ConnectFailed(f"cannot connect to {addr}: no answer within {CONNECT_S:g} s") from error
        except OSError as error:
            raise ConnectFailed(f"cannot connect to {addr}: {_why(error)}") from error
        return Channel(addr, stream, self._on_request)

    def _target(self, addr: str) -> tuple[str, int, bool]:
        """Host, port, and whether WebSocket is spoken there. Raises `ConnectFailed` for what is no address."""
        if addr.startswith(SCHEME):
            return *split_addr(addr.removeprefix(SCHEME).rstrip("/")), True
        if addr.startswith("wss://"):
            raise ConnectFailed(f"{addr}: TLS is not built yet, so there is ws:// only")
        host, port = split_addr(addr)
        return (host, port + PORT_OFFSET, True) if self._through_gateways else (host, port, False)

    def _forget(self, channel: Channel, reason: str) -> None:
        if self._channels.get(channel.addr) is channel:
            del self._channels[channel.addr]
        for callback in self._close_callbacks:
            callback(channel.addr, reason)


def _why(error: OSError) -> str:
    """The innermost text: both libraries wrap what the system said about one address, or a group about several."""
    cause: BaseException = error
    while True:
        if isinstance(cause, BaseExceptionGroup) and cause.exceptions:
            cause = cause.exceptions[0]
        elif cause.__cause__ is not None:
            cause = cause.__cause__
        else:
            break
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
        return os.strerror(cause.errno)
    return str(cause) or type(cause).__name__


@asynccontextmanager
async def open_remoting_client(
    network: Network, *, on_request: RequestHandler | None = None, through_gateways: bool = False
) -> AsyncIterator[RemotingClient]:
    """A client whose connections live as long as the block; under Trio or asyncio.

    `on_request(addr, command)` handles what servers ask of us (consumer list changed, check a transaction, ...).
    An address `ws://host:port` is a WebSocket gateway; with `through_gateways` a plain `host:port`, as routes and
    leader hints hold it, stands for the gateway that belongs to it.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        client = RemotingClient(network, group, on_request, through_gateways)
        try:
            yield client
        except Exception as error:  # kept out of the group: our tasks never raise, so there is nothing to group it with
            failure = error
        finally:
            client.close()
            group.cancel_scope.cancel()
    if failure is not None:
        raise failure
