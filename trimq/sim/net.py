"""A network that behaves as TCP does, on a seed.

Bytes arrive in order or not at all; each piece takes the link's latency. A *cut* is silence: what is under way waits
and arrives some time after healing, connecting hangs, and a sender whose bytes stay unacknowledged for 15 s loses the
connection. A killed process is a reset for whoever was connected and a refusal for whoever tries; a machine without
power is silence until it is back, and then a reset. Writes may arrive in pieces.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Iterable
from enum import Enum
from functools import partial

import trio

from trimq.env import Stream, StreamHandler, TaskStatus
from trimq.sim.deterministic import Trace, VirtualClock

__all__ = ["HostNetwork", "SimNetwork", "SimStream"]

WINDOW_BYTES = 256 << 10
"""What a sender may have under way and unread on one connection."""
YIELD_SHARE = 0.25
"""How often a send lets others run first, although there is room: a real one always does, and it costs a turn."""
SHORT_SHARE = 0.05
"""How often a prompt send takes less than there is room for."""
DEAD_AFTER_S = 15.0
"""A connection whose bytes are not acknowledged for so long is reset, as by TCP_USER_TIMEOUT."""


class _Kind(Enum):
    DATA = "data"
    END = "end"
    RESET = "reset"
    GIVE_UP = "give up"


class _Pipe:
    """One direction of a connection."""

    def __init__(self, source: str, target: str) -> None:
        self.source, self.target = source, target
        self.arrived = bytearray()
        self.under_way = 0
        self.ended = False
        self.reset = False
        self.arrives_at = 0.0
        self.held: list[tuple[_Kind, bytes]] = []
        self.holds = 0
        self.other: _Pipe = self
        self.waiting = trio.lowlevel.ParkingLot()

    def poke(self) -> None:
        if self.waiting:
            self.waiting.unpark_all()


class SimStream:
    """One end of a connection."""

    def __init__(self, net: SimNetwork, incoming: _Pipe, outgoing: _Pipe, local: str, peer: str) -> None:
        self._net, self._in, self._out = net, incoming, outgoing
        self._closed = False
        self.local, self.peer = local, peer

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        pipe = self._in
        waited = False
        data = b""
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if pipe.arrived:
                data = bytes(pipe.arrived[:max_bytes])
                del pipe.arrived[:max_bytes]
                pipe.poke()
                break
            if pipe.reset:
                raise ConnectionResetError("connection reset by peer")
            if pipe.ended:
                break
            waited = True
            await pipe.waiting.park()
        if not waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def send_all(self, data: bytes) -> None:
        if self._net.rng.random() < YIELD_SHARE:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        pipe = self._out
        view = memoryview(data)
        while view:
            if self._closed:
                raise trio.ClosedResourceError
            if pipe.reset or self._in.reset:
                raise BrokenPipeError("connection lost")
            room = WINDOW_BYTES - pipe.under_way - len(pipe.arrived)
            if room <= 0:
                await pipe.waiting.park()
                continue
            self._net.transmit(pipe, bytes(view[:room]))
            view = view[room:]

    def send_now(self, data: bytes) -> int:
        """See `trimq.env.Prompt`: a full window, or a part now and then, leaves the rest to `send_all`."""
        pipe = self._out
        if self._closed or pipe.reset or self._in.reset:
            return 0
        size = min(len(data), max(0, WINDOW_BYTES - pipe.under_way - len(pipe.arrived)))
        if size and self._net.rng.random() < SHORT_SHARE:
            size = self._net.rng.randrange(size)
        if size:
            self._net.transmit(pipe, data[:size])
        return size

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._net.finish(self._out)
            self._in.poke()
            self._out.poke()
        await trio.lowlevel.cancel_shielded_checkpoint()


class HostNetwork:
    """The network as one life of one host sees it."""

    def __init__(self, net: SimNetwork, host: str) -> None:
        self._net, self.host = net, host
        self.dead = False

    def _alive(self) -> None:
        if self.dead:
            raise OSError("the host is gone")

    async def connect(self, host: str, port: int) -> Stream:
        self._alive()
        net = self._net
        await trio.sleep(net.latency(self.host, host))
        while not net.reaches(self.host, host) or not net.reaches(host, self.host):
            await net.changed.wait()
            await trio.sleep(net.rng.uniform(0.01, 0.4))
        await trio.sleep(net.latency(host, self.host))
        self._alive()
        accept = net.listeners.get((host, port))
        if accept is None:
            raise ConnectionRefusedError(111, f"{host}:{port} refuses")
        there, back = _Pipe(self.host, host), _Pipe(host, self.host)
        there.other, back.other = back, there
        net.pipes += [there, back]
        net.ports += 1
        local = f"{self.host}:{net.ports}"
        accept.send_nowait(SimStream(net, there, back, f"{host}:{port}", local))
        return SimStream(net, back, there, local, f"{host}:{port}")

    async def serve(self, handler: StreamHandler, host: str, port: int, *, task_status: TaskStatus) -> None:
        self._alive()
        net, address = self._net, (self.host, port)
        if address in net.listeners:
            raise OSError(98, f"{self.host}:{port} is in use")
        send, receive = trio.open_memory_channel[SimStream](math.inf)
        net.listeners[address] = send
        try:
            async with trio.open_nursery() as nursery:
                task_status.started(port)
                async for stream in receive:
                    nursery.start_soon(self._handle, handler, stream)
        finally:
            if net.listeners.get(address) is send:
                del net.listeners[address]

    async def _handle(self, handler: StreamHandler, stream: SimStream) -> None:
        try:
            await handler(stream)
        finally:
            await stream.aclose()


class SimNetwork:
    """All hosts and links. What is under way is in the clock's heap."""

    def __init__(
        self, clock: VirtualClock, rng: random.Random, trace: Trace, *, latency_ms: float, jitter_ms: float
    ) -> None:
        self.clock, self.rng, self.trace = clock, rng, trace
        self.latency_s, self.jitter_s = latency_ms / 1000, jitter_ms / 1000
        self.listeners: dict[tuple[str, int], trio.MemorySendChannel[SimStream]] = {}
        self.pipes: list[_Pipe] = []
        self.ports = 32768
        self.changed = trio.Event()
        """Set when links or hosts come back."""
        self.slow: dict[tuple[str, str], float] = {}
        """Extra seconds a link takes."""
        self.thin: dict[tuple[str, str], float] = {}
        """Bytes a second that a link carries; without an entry there is no limit."""
        self._cuts: set[tuple[str, str]] = set()
        self._dark: set[str] = set()
        self._hosts: dict[str, HostNetwork] = {}

    # -- what hosts and faults ask --------------------------------------------------------------------------------

    def boot(self, host: str) -> HostNetwork:
        """A new life of a host. What still believed in the old one learns better."""
        self._dark.discard(host)
        self._reset_all(host)
        self._hosts[host] = HostNetwork(self, host)
        self._came_back()
        return self._hosts[host]

    def kill(self, host: str, *, dark: bool) -> None:
        """The process dies: its connections are reset; or, with `dark`, its machine does: silence."""
        self._hosts[host].dead = True
        for address in [a for a in self.listeners if a[0] == host]:
            del self.listeners[address]
        if dark:
            self._dark.add(host)
        else:
            self._reset_all(host)
        for pipe in self.pipes:
            if host in (pipe.source, pipe.target):
                pipe.poke()

    def cut(self, source: str, target: str) -> None:
        """Lose everything from `source` to `target`."""
        self._cuts.add((source, target))

    def mend(self, pairs: Iterable[tuple[str, str]]) -> None:
        """These links work again."""
        for pair in pairs:
            self._cuts.discard(pair)
            self.slow.pop(pair, None)
            self.thin.pop(pair, None)
        self._came_back()

    def heal(self) -> None:
        """All links work again."""
        self._cuts.clear()
        self.slow.clear()
        self.thin.clear()
        self._came_back()

    def reset(self, one: str, other: str) -> int:
        """Break every connection between two hosts; returns how many there were."""
        broken = [p for p in self.pipes if {p.source, p.target} == {one, other} and not p.reset]
        for pipe in broken:
            self._break(pipe)
        return len(broken) // 2

    def reaches(self, source: str, target: str) -> bool:
        return (source, target) not in self._cuts and source not in self._dark and target not in self._dark

    def latency(self, source: str, target: str) -> float:
        if source == target:
            return 0.00005
        extra = self.slow.get((source, target), 0.0)
        return self.latency_s + extra + self.rng.expovariate(1.0) * self.jitter_s

    # -- transport ------------------------------------------------------------------------------------------------

    def transmit(self, pipe: _Pipe, data: bytes) -> None:
        pipe.under_way += len(data)
        if len(data) > 1 and self.rng.random() < 0.02:
            middle = self.rng.randrange(1, len(data))
            self._schedule(pipe, _Kind.DATA, data[:middle])
            data = data[middle:]
        self._schedule(pipe, _Kind.DATA, data)

    def finish(self, pipe: _Pipe) -> None:
        if not pipe.reset:
            self._schedule(pipe, _Kind.END, b"")

    def _schedule(self, pipe: _Pipe, kind: _Kind, data: bytes) -> None:
        arrives = self.clock.now + self.latency(pipe.source, pipe.target)
        if self.thin:
            rate = self.thin.get((pipe.source, pipe.target))
            if rate is not None:  # behind what this connection has under way
                arrives = max(arrives, pipe.arrives_at + len(data) / rate)
        pipe.arrives_at = max(pipe.arrives_at, arrives)
        self._push(pipe.arrives_at, pipe, kind, data)

    def _push(self, at: float, pipe: _Pipe, kind: _Kind, data: bytes) -> None:
        self.clock.at(at, partial(self._deliver, pipe, kind, data))

    def _deliver(self, pipe: _Pipe, kind: _Kind, data: bytes) -> None:
        if pipe.reset:
            return
        if kind is _Kind.GIVE_UP:
            if pipe.held and pipe.holds == int.from_bytes(data, "big"):
                self.trace("give up", pipe.source, pipe.target)
                self._break(pipe)
                self._break(pipe.other)
            return
        if pipe.held or not self.reaches(pipe.source, pipe.target):
            if not pipe.held:
                pipe.holds += 1
                self._push(self.clock.now + DEAD_AFTER_S, pipe, _Kind.GIVE_UP, pipe.holds.to_bytes(8, "big"))
            pipe.held.append((kind, data))
            return
        self.trace("net", pipe.source, pipe.target, kind.value, len(data), zlib.crc32(data))
        if kind is _Kind.DATA:
            pipe.under_way -= len(data)
            pipe.arrived += data
        elif kind is _Kind.END:
            pipe.ended = True
            if pipe.other.ended or pipe.other.reset:
                self._forget(pipe)
        else:
            self._break(pipe)
        pipe.poke()

    def _forget(self, pipe: _Pipe) -> None:
        """Both directions are over: nobody asks for them any more."""
        self.pipes = [p for p in self.pipes if p is not pipe and p is not pipe.other]

    def _break(self, pipe: _Pipe) -> None:
        pipe.reset = True
        pipe.held.clear()
        pipe.poke()

    def _reset_all(self, host: str) -> None:
        """Each peer of the host hears of it, if the link works, when the news arrives."""
        for pipe in self.pipes:
            if host == pipe.target:
                self._break(pipe)
        for pipe in self.pipes:
            if host == pipe.source and not pipe.reset:
                self._schedule(pipe, _Kind.RESET, b"")
        self.pipes = [p for p in self.pipes if not (p.reset and p.other.reset)]

    def _came_back(self) -> None:
        """Give what was held another chance, a retransmission later."""
        for pipe in self.pipes:
            if pipe.held and self.reaches(pipe.source, pipe.target):
                held, pipe.held = pipe.held, []
                at = self.clock.now + self.rng.uniform(0.01, 0.4)
                for kind, data in held:
                    at = max(at, pipe.arrives_at)
                    self._push(at, pipe, kind, data)
                pipe.arrives_at = at
        self.changed.set()
        self.changed = trio.Event()
