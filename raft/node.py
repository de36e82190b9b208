"""The process's share of Raft: one clock tick for all groups, and the listeners and links they share.

`RaftNode` owns what is per process; `RaftGroup` (raft/group.py) is one group at work. Ticks come from one task for all
groups, so the beats of all groups to one node leave in one frame. Before each tick the tasks that have something to
read get their turn: after a stall the news in the sockets count before the time that has passed, and a late tick
counts as one, so that a stalled replica neither deposes a live leader nor closes healthy links.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import trio

from raft.env import Network
from raft.transport import Address, PeerTransport, TransportConfig

__all__ = ["NodeConfig", "RaftNode", "Ticked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Timing of all groups of the process, in milliseconds."""

    tick_ms: int = 20
    beat_ms: int = 100
    election_ms: int = 400
    transport: TransportConfig = field(default_factory=TransportConfig)


class Ticked(Protocol):
    """What the tick task calls."""

    def tick(self) -> None: ...


class RaftNode:
    """One per process. `run` first, then start groups; stop the groups before it."""

    def __init__(self, network: Network, rng: random.Random, config: NodeConfig | None = None) -> None:
        self.config = config or NodeConfig()
        self._network = network
        self._rng = rng
        self._transports: dict[Address, PeerTransport] = {}
        self._groups: dict[str, Ticked] = {}
        self._nursery: trio.Nursery | None = None
        self._starting = trio.Lock()

    @staticmethod
    def now_ms() -> int:
        """Trio's clock in whole milliseconds: monotonic, and a test clock drives it."""
        return int(trio.current_time() * 1000)

    async def transport(self, address: Address, listen_host: str | None = None) -> PeerTransport:
        """The transport that listens on `address`, started when it is first asked for.

        Raises OSError when the address cannot be bound.
        """
        assert self._nursery is not None, "the node runs before its groups do"
        async with self._starting:
            known = self._transports.get(address)
            if known is not None:
                return known
            rng = random.Random(self._rng.getrandbits(64))
            transport = PeerTransport(self._network, rng, address, self.config.transport, listen_host=listen_host)
            await self._nursery.start(transport.run)
            self._transports[address] = transport
            return transport

    def add(self, group: str, ticked: Ticked) -> Callable[[], None]:
        """Let a group be ticked; returns what ends that."""
        assert group not in self._groups, f"group {group} runs twice in this process"
        self._groups[group] = ticked

        def remove() -> None:
            del self._groups[group]

        return remove

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tick until cancelled; `started()` at once."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._tick)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _tick(self) -> None:
        interval = self.config.tick_ms / 1000
        steady = trio.current_time()
        due = steady + interval
        while True:
            await trio.sleep_until(due)
            late = trio.current_time() - due
            # Whoever was woken together with this task reads its socket first; after a stall, twice.
            await trio.lowlevel.checkpoint()
            if late > interval:
                await trio.lowlevel.checkpoint()
            steady += interval
            for transport in list(self._transports.values()):
                transport.tick(steady)
            for group in list(self._groups.values()):
                group.tick()
            due += interval
            if due <= trio.current_time():
                due = trio.current_time() + interval
