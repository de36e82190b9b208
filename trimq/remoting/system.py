"""The real world: wall clock and TCP sockets. The only module of the library that touches them.

Whatever needs time or a network takes a `trimq.env.Clock` or `Network`; `__main__` modules and the public client pass
in the classes below, the simulator passes in its own.

- `SystemClock`: wall time.
- `TrioNetwork`: servers, and clients under Trio.
- `AnyioNetwork`: connecting only, under Trio or asyncio, whichever runs. Under Trio it hands out Trio's own streams,
  since AnyIO's wrapper around them would cost a fifth of every wake-up and give nothing.

Sockets have TCP_NODELAY (both libraries set it: a request waits for its answer, so Nagle's algorithm would only add
40 ms) and the kernel gives up on a silent host after `HOST_DEAD_S`: without that, a machine that lost its power keeps a
connection open for a quarter of an hour.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
import time
from typing import Protocol

import anyio
import anyio.abc
import sniffio
import trio

from trimq.env import Stream, StreamHandler, TaskStatus

__all__ = ["HOST_DEAD_S", "AnyioNetwork", "SystemClock", "TrioNetwork", "address_text", "connection_limit"]

HOST_DEAD_S = 15
"""A peer's kernel that acknowledges nothing for so long is dead. Pulls are held 15 s, but their TCP acks are not."""

KEEPALIVE_IDLE_S = 10
KEEPALIVE_INTERVAL_S = 5
READ_ON_BYTES = 32 << 10
"""Behind a piece of this size there is mostly more."""
LISTEN_BACKLOG = 1024
"""A cluster's clients all return in the same second after a restart."""


class SystemClock:
    """The wall clock of this machine."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000  # noqa: TID251  (the one place where the clock is read)


def connection_limit(reserve: int = 512, most: int = 10_000) -> int:
    """How many clients a server process may accept, keeping `reserve` descriptors for its files and peers.

    Raises the soft limit of descriptors to the hard one first: the usual soft limit of 1,024 is for programs that use
    `select`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (OSError, ValueError):
        pass
    if soft == resource.RLIM_INFINITY:
        return most
    return max(min(most, soft - reserve), soft // 4, 1)


def address_text(address: object) -> str:
    """`ip:port` of a socket address as Python gives it; an IPv6 address stays without brackets, as in RocketMQ."""
    if isinstance(address, tuple) and len(address) >= 2:
        return f"{address[0]}:{address[1]}"
    return "?"


class _HasOptions(Protocol):
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def _tune(sock: _HasOptions) -> None:
    """Options that decide how soon a dead host is noticed. Best effort: a Unix socket has none of them."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, HOST_DEAD_S * 1000)
    except OSError:
        return


class TrioStream:
    """A Trio stream that knows its addresses and raises `OSError` when the link is gone.

    It receives by waiting first: Trio's own way tries first, and whoever has read all that was there pays each time
    for a call that finds nothing, an exception that says so, and a pass of the scheduler when it found something.
    """

    __slots__ = ("_socket", "_stream", "local", "peer")

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._socket = stream.socket
        self.peer = self.local = "?"
        try:
            self.peer = address_text(stream.socket.getpeername())
            self.local = address_text(stream.socket.getsockname())
        except OSError:  # closed by the other side before we looked
            pass

    async def receive_some(self, max_bytes: int) -> bytes:
        while (fd := self._socket.fileno()) >= 0:
            try:
                await trio.lowlevel.wait_readable(fd)
            except trio.ClosedResourceError as error:
                raise _lost(error) from error
            if self._socket.fileno() == fd:  # else closed in this very pass: the number may be another file's by now
                try:
                    return _read(fd, max_bytes)
                except BlockingIOError:  # woken for nothing
                    pass
        raise ConnectionError("connection closed")

    async def send_all(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _lost(error) from error

    def send_now(self, data: bytes) -> int:
        """See `trimq.env.Prompt`."""
        try:
            return os.write(self._socket.fileno(), data)
        except OSError:  # no room, or the link is gone: `send_all` waits, or says so
            return 0

    async def aclose(self) -> None:
        await self._stream.aclose()


def _read(fd: int, max_bytes: int) -> bytes:
    """What is there. A large piece is seldom the last: what was sent together shall be handled together.

    The kernel wakes us at the first 64 KiB of a burst. Taken alone they would become an entry of their own, and the
    rest another one.
    """
    data = os.read(fd, max_bytes)
    if len(data) < READ_ON_BYTES:
        return data
    parts = [data]
    left = max_bytes - len(data)
    while left:
        try:
            more = os.read(fd, left)
        except OSError:  # nothing more for now; or the link broke, as the next read will find
            break
        if not more:
            break
        parts.append(more)
        left -= len(more)
    return b"".join(parts)


class AnyioStream:
    """AnyIO's byte stream as ours."""

    __slots__ = ("_stream", "local", "peer")

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self._stream = stream
        attribute = stream.extra_attributes
        self.peer = address_text(attribute[anyio.abc.SocketAttribute.remote_address]())
        self.local = address_text(attribute[anyio.abc.SocketAttribute.local_address]())

    async def receive_some(self, max_bytes: int) -> bytes:
        try:
            return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise _lost(error) from error

    async def send_all(self, data: bytes) -> None:
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise _lost(error) from error

    async def aclose(self) -> None:
        await self._stream.aclose()


def _lost(error: Exception) -> ConnectionError:
    """The operating system's own words, which the libraries keep as the cause of their error."""
    return ConnectionError(str(error.__cause__ or error) or "connection closed")


def _refused(error: BaseException) -> bool:
    """Whether every attempt behind an error was refused: nobody listens there."""
    if isinstance(error, BaseExceptionGroup):
        return all(_refused(each) for each in error.exceptions)
    if isinstance(error, ConnectionRefusedError):
        return True
    return error.__cause__ is not None and _refused(error.__cause__)


class TrioNetwork:
    """TCP under Trio."""

    async def connect(self, host: str, port: int) -> Stream:
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError as error:
            if _refused(error):
                # Trio reports any failure as a bare OSError; that *nobody listens* means more than that: a peer's
                # process is gone (a hint for an election), whereas a timeout says nothing.
                raise ConnectionRefusedError(errno.ECONNREFUSED, f"{host}:{port} refuses connections") from error
            raise
        _tune(stream.socket)
        return TrioStream(stream)

    async def serve(self, handler: StreamHandler, host: str, port: int, *, task_status: TaskStatus) -> None:
        listeners = await trio.open_tcp_listeners(port, host=host or None, backlog=LISTEN_BACKLOG)
        if port == 0:
            # Several addresses of one name would each get a port of its own; the caller asked for one.
            for surplus in listeners[1:]:
                await surplus.aclose()
            del listeners[1:]

        async def handle(stream: trio.SocketStream) -> None:
            _tune(stream.socket)
            await handler(TrioStream(stream))

        bound: int = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, handle, listeners)
            task_status.started(bound)


class AnyioNetwork:
    """TCP for clients, under the event loop that is running."""

    async def connect(self, host: str, port: int) -> Stream:
        if sniffio.current_async_library() == "trio":
            return await TrioNetwork().connect(host, port)
        stream = await anyio.connect_tcp(host, port)
        _tune(stream.extra_attributes[anyio.abc.SocketAttribute.raw_socket]())
        return AnyioStream(stream)

    async def serve(self, handler: StreamHandler, host: str, port: int, *, task_status: TaskStatus) -> None:
        """Not for servers: they run on Trio. Raises `RuntimeError`."""
        raise RuntimeError("servers run on Trio: pass a TrioNetwork")
