"""A network of bounded pipes for the driver tests: like sockets, a send waits while the other side does not read."""

from __future__ import annotations

import trio

from trimq.env import Stream, StreamHandler, TaskStatus

__all__ = ["MemoryNetwork", "PipeEnd", "pipe"]


class PipeEnd:
    """One end of a connection. Raises Trio's own errors, as a `trio.SocketStream` does."""

    def __init__(self, local: str, peer: str, max_buffer: int) -> None:
        self.local = local
        self.peer = peer
        self.other = self
        self._max_buffer = max_buffer
        self._inbox = bytearray()
        self._closed = False
        self._changed = trio.Event()

    def _tell(self) -> None:
        for end in (self, self.other):
            end._changed.set()
            end._changed = trio.Event()

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._inbox:
            if self._closed:
                raise trio.ClosedResourceError
            if self.other._closed:
                return b""
            await self._changed.wait()
        data = bytes(self._inbox[:max_bytes])
        del self._inbox[:max_bytes]
        self._tell()
        return data

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        at = 0
        while at < len(data):
            if self._closed:
                raise trio.ClosedResourceError
            if self.other._closed:
                raise trio.BrokenResourceError
            room = self._max_buffer - len(self.other._inbox)
            if room <= 0:
                await self._changed.wait()
                continue
            self.other._inbox += data[at : at + room]
            at += room
            self._tell()

    async def aclose(self) -> None:
        self._closed = True
        self._tell()
        await trio.lowlevel.checkpoint()


def pipe(client: str, server: str, max_buffer: int = 1 << 30) -> tuple[PipeEnd, PipeEnd]:
    """Both ends of a connection that holds `max_buffer` unread bytes in each direction."""
    here, there = PipeEnd(client, server, max_buffer), PipeEnd(server, client, max_buffer)
    here.other, there.other = there, here
    return here, there


class MemoryNetwork:
    """Connects clients to the server that listened here first; what listens beside it is never found."""

    def __init__(self) -> None:
        self._send, self._accept = trio.open_memory_channel[PipeEnd](10_000)
        self._clients = 0
        self._taken = False

    async def open(self, max_buffer: int = 1 << 30) -> PipeEnd:
        """A new connection; returns the client's end."""
        self._clients += 1
        client, server = pipe(f"client:{self._clients}", "server:1", max_buffer)
        await self._send.send(server)
        return client

    async def connect(self, host: str, port: int) -> Stream:
        return await self.open()

    async def serve(self, handler: StreamHandler, host: str, port: int, *, task_status: TaskStatus) -> None:
        async with trio.open_nursery() as nursery:
            task_status.started(port)
            if self._taken:
                await trio.sleep_forever()
            self._taken = True
            async for stream in self._accept:
                nursery.start_soon(handler, stream)
