"""A network in memory for driver tests: hosts with names, connections that can be cut, reset, or refused.

A *cut* loses packets silently: what is sent waits, connecting hangs, until it is healed. A *kill* resets every
connection of a host and takes its listeners away: the next connect is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import trio

from raft.env import Stream, StreamHandler

BUFFER_BYTES = 1 << 20


class _Pipe:
    """One direction of a connection."""

    def __init__(self, net: MemoryNetwork, source: str, target: str) -> None:
        self.source, self.target = source, target
        self.data = bytearray()
        self.ended = False
        self.reset = False
        self.net = net
        self.changed = trio.Event()
        net.pipes.append(self)

    def poke(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    @property
    def flows(self) -> bool:
        return not self.net.is_cut(self.source, self.target)


class MemoryStream:
    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._in, self._out = incoming, outgoing
        self.closed = False

    def send_now(self, data: bytes) -> int:
        """At most `prompt_bytes` at a time, however much room there is."""
        pipe = self._out
        if self.closed or pipe.reset or self._in.reset:
            return 0
        size = min(len(data), pipe.net.prompt_bytes, BUFFER_BYTES - len(pipe.data))
        pipe.data += data[:size]
        pipe.poke()
        return size

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        pipe = self._in
        while True:
            if self.closed:
                raise trio.ClosedResourceError
            if pipe.reset:
                raise ConnectionResetError("connection reset")
            if pipe.flows and pipe.data:
                data = bytes(pipe.data[:max_bytes])
                del pipe.data[:max_bytes]
                pipe.poke()
                return data
            if pipe.flows and pipe.ended:
                return b""
            await pipe.changed.wait()

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        pipe = self._out
        if self.closed:
            raise trio.ClosedResourceError
        if pipe.reset or pipe.ended:
            raise BrokenPipeError("connection lost")
        pipe.data += data
        pipe.poke()
        while len(pipe.data) > BUFFER_BYTES and not pipe.reset:
            await pipe.changed.wait()
            if self.closed:
                raise trio.ClosedResourceError

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            self._out.ended = True
            self._out.poke()
            self._in.poke()
        await trio.lowlevel.checkpoint()


class HostNetwork:
    """The network as one host sees it (`raft.env.Network`)."""

    def __init__(self, net: MemoryNetwork, host: str) -> None:
        self._net, self._host = net, host

    async def connect(self, host: str, port: int) -> Stream:
        await trio.lowlevel.checkpoint()
        net = self._net
        while net.is_cut(self._host, host) or net.is_cut(host, self._host):
            await net.healed.wait()
        handlers = net.listeners.get((host, port))
        if handlers is None:
            raise ConnectionRefusedError(f"{host}:{port}")
        there, back = _Pipe(net, self._host, host), _Pipe(net, host, self._host)
        handlers.send_nowait(MemoryStream(there, back))
        net.connections += 1
        return MemoryStream(back, there)

    async def serve(self, handler: StreamHandler, host: str, port: int, *, task_status: Any) -> None:
        if (host, port) in self._net.listeners:
            raise OSError(98, f"{host}:{port} is in use")
        send, receive = trio.open_memory_channel[MemoryStream](64)
        self._net.listeners[host, port] = send
        try:
            async with trio.open_nursery() as nursery:
                task_status.started(port)
                async for stream in receive:
                    nursery.start_soon(self._handle, handler, stream)
        finally:
            send.close()
            del self._net.listeners[host, port]

    async def _handle(self, handler: StreamHandler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()


class MemoryNetwork:
    def __init__(self) -> None:
        self.listeners: dict[tuple[str, int], trio.MemorySendChannel[MemoryStream]] = {}
        self.pipes: list[_Pipe] = []
        self.connections = 0
        self.prompt_bytes = BUFFER_BYTES
        """What a prompt send takes at once."""
        self.healed = trio.Event()
        self._cuts: set[tuple[str, str]] = set()

    def host(self, name: str) -> HostNetwork:
        return HostNetwork(self, name)

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cuts

    def cut(self, host: str, others: Iterable[str]) -> None:
        """Lose everything between `host` and each of `others`, both ways."""
        for other in others:
            self._cuts |= {(host, other), (other, host)}

    def heal(self) -> None:
        self._cuts.clear()
        self.healed.set()
        self.healed = trio.Event()
        for pipe in self.pipes:
            pipe.poke()

    def reset(self, host: str) -> None:
        """Reset all connections of a host, as the kernel does when its process dies."""
        for pipe in self.pipes:
            if host in (pipe.source, pipe.target):
                pipe.reset = True
                pipe.poke()
        self.pipes = [pipe for pipe in self.pipes if not pipe.reset]
