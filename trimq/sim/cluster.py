"""The machines of a simulation: a name server, broker nodes that die and return, and a place for clients.

A dying node's disk and network refuse its calls *before* its tasks are cancelled: `finally` blocks run at a simulated
crash but not at a real one, and must not be able to save anything. Every life builds its objects anew from the disk.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from broker.config import BrokerConfig, Peer, Strategy
from broker.env import Env
from broker.replica import Replica
from broker.runtime import Broker, StartError, open_broker
from broker.store.fs import FileSystem
from namesrv.config import NamesrvConfig
from namesrv.server import serve_namesrv
from trimq.client.client import Client, open_client
from trimq.message.ids import ID_SOURCE, IdSource
from trimq.sim.deterministic import HOST, Trace, VirtualClock, run_deterministic
from trimq.sim.disk import SimDisk
from trimq.sim.net import HostNetwork, SimNetwork

__all__ = ["CLIENT_IP", "NAMESRV", "SimClock", "SimNode", "SimSettings", "Simulation", "run_simulation"]

START_MS = 1_700_000_000_000
NAMESRV_IP = "10.0.1.1"
NAMESRV = f"{NAMESRV_IP}:9876"
CLIENT_IP = "10.0.2.1"
PEER_PORT = 40911
CLIENT_PORT = 10911
DIES_WITHIN_S = 60.0
"""A dead process's tasks are gone by then, whatever they were at."""
READY_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimSettings:
    """What a simulated cluster is like. Times in milliseconds of simulated time."""

    nodes: int = 3
    groups: int = 1
    latency_ms: float = 0.5
    jitter_ms: float = 0.5
    disk_ms: float = 0.5
    disk_jitter_ms: float = 0.5
    drift: tuple[float, ...] = ()
    """Rate error of each node's wall clock."""
    rates: tuple[float, ...] = ()
    """How fast each node's monotonic clock runs."""
    beat_ms: int = 100
    election_ms: int = 400
    segment_bytes: int = 256 << 10
    retention_s: int = 0
    """Messages are kept so long; 0: for good."""
    broker: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `BrokerConfig` that every broker has besides, by name: `{"delay_levels_ms": (500, 1000)}`."""


class SimClock:
    """A wall clock with a rate error. Nothing may depend on its agreeing with anybody's."""

    def __init__(self, drift: float = 0.0) -> None:
        self.jump_ms = 0
        self._rate = 1000 * (1 + drift)

    def wall_ms(self) -> int:
        return START_MS + self.jump_ms + int(trio.current_time() * self._rate)


class SimNode:
    """One machine: one broker process with a replica of every group."""

    def __init__(self, sim: Simulation, number: int) -> None:
        self.sim = sim
        self.number = number
        self.name = f"n{number}"
        self.ip = f"10.0.0.{number + 1}"
        self.lives = 0
        """Of the process."""
        self.boots = 1
        """Lives of the machine."""
        settings = sim.settings
        self.clock = SimClock(settings.drift[number] if settings.drift else 0.0)
        self.broker: Broker | None = None
        self.up = False
        self.stopping = False
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._down = trio.Event()
        self._down.set()
        self.disks = {
            group: SimDisk(
                sim.clock,
                random.Random(f"{sim.seed}/{self.name}/{group}/disk"),
                latency_s=settings.disk_ms / 1000,
                jitter_s=settings.disk_jitter_ms / 1000,
                segment_bytes=settings.segment_bytes,
            )
            for group in sim.groups
        }

    def replicas(self) -> list[Replica]:
        """What runs on this machine now."""
        if not self.up or self.stopping or self.broker is None:
            return []
        return list(self.broker.replicas)

    async def start(self) -> None:
        """Boot, unless somebody else does; the broker opens in the background. Waits for the old life to end."""
        if not self.up:
            await self._down.wait()  # somebody else may start it meanwhile
        if self.up:
            return
        self.up = True
        self._down = trio.Event()
        self.lives += 1
        self._ended = trio.Event()
        self._scope = trio.CancelScope()
        network = self.sim.net.boot(self.ip)
        self.sim.nursery.start_soon(self._run, network)

    async def kill(self, *, power: bool = False) -> None:
        """The process dies (the page cache survives), or its machine does (unsynced bytes are gone)."""
        assert self.up
        self.up = False
        self.boots += power
        self.sim.dying(self)
        self.sim.clock.resume(self.name)  # SIGKILL ends a stopped process too
        self.sim.net.kill(self.ip, dark=power)
        for disk in self.disks.values():
            disk.off = True
        broker, self.broker = self.broker, None
        if broker is not None:
            broker.abort()
        self._scope.cancel()
        with trio.fail_after(DIES_WITHIN_S):
            await self._ended.wait()
        for disk in self.disks.values():
            disk.heal()
            disk.crash(keep=None if power else 1.0)
        self._down.set()

    async def stop(self) -> bool:
        """A clean stop (SIGTERM): hand over, flush, leave. False when the machine was down, or died meanwhile."""
        if not self.up or self.stopping or self.broker is None:
            return False
        self.stopping = True
        life, ended = self.lives, self._ended
        self._scope.cancel()
        await ended.wait()
        self.stopping = False
        if self.lives != life or not self.up:
            return False
        self._process_ended()
        return True

    def pause(self) -> None:
        """SIGSTOP: nothing runs on it, and nobody is told."""
        self.sim.clock.pause(self.name)

    def resume(self) -> None:
        """SIGCONT."""
        self.sim.clock.resume(self.name)

    def _process_ended(self) -> None:
        self.up = False
        self.broker = None
        self.sim.net.kill(self.ip, dark=False)
        for disk in self.disks.values():
            disk.crash(keep=1.0)
        self._down.set()

    async def _run(self, network: HostNetwork) -> None:
        sim = self.sim
        HOST.set(self.name)
        env = Env(
            clock=self.clock,
            network=network,
            open_fs=self._open_fs,
            seed=f"{sim.seed}/{self.name}/{self.lives}",
            boot_id=f"{self.name}/{self.boots}",
        )
        try:
            with self._scope:
                async with open_broker([self.config(group) for group in sim.groups], env) as broker:
                    self.broker = broker
                    await trio.sleep_forever()
        except Exception as error:
            if not self.up:
                return  # a dead machine may fail in any way
            if not _is_start_error(error):
                sim.failures.append(f"{self.name}: {_text(error)}")
                raise
            sim.trace("process ended", self.name, _text(error))
            self._process_ended()
            sim.nursery.start_soon(self._restart)
        finally:
            self._ended.set()

    async def _restart(self) -> None:
        """What a service manager does with a process that could not start."""
        await trio.sleep(1.0)
        await self.start()

    @asynccontextmanager
    async def _open_fs(self, root: str) -> AsyncIterator[FileSystem]:
        disk = self.disks[root]
        async with trio.open_nursery() as hands:
            disk.hands = hands
            try:
                yield disk
            finally:
                disk.hands = None

    def config(self, group: str) -> BrokerConfig:
        """The configuration of this node's replica of a group."""
        at = self.sim.groups.index(group)
        settings = self.sim.settings
        nodes = range(settings.nodes)
        return BrokerConfig(
            strategy=Strategy.RAFT,
            dleger=True,
            broker_name=group,
            peers=tuple(Peer(f"n{n}", f"10.0.0.{n + 1}", PEER_PORT) for n in nodes),
            self_id=self.name,
            preferred_leader=f"n{at % settings.nodes}",
            listen_port=CLIENT_PORT + 20 * at,
            bind_address=self.ip,
            broker_ip=self.ip,
            namesrv=(NAMESRV,),
            store_dir=group,
            segment_bytes=settings.segment_bytes,
            reserved_s=settings.retention_s,
            heartbeat_ms=settings.beat_ms,
            election_ms=settings.election_ms,
            metrics_port=-1,
            **settings.broker,
        )


class Simulation:
    """Everything there is in one run. Made by `run_simulation`."""

    def __init__(
        self, clock: VirtualClock, trace: Trace, nursery: trio.Nursery, seed: object, settings: SimSettings
    ) -> None:
        self.clock, self.trace, self.nursery, self.seed, self.settings = clock, trace, nursery, seed, settings
        self.rng = random.Random(f"{seed}/scenario")
        """For the scenario's own choices."""
        self.groups = [f"broker-{chr(ord('a') + n)}" for n in range(settings.groups)]
        self.net = SimNetwork(
            clock,
            random.Random(f"{seed}/net"),
            trace,
            latency_ms=settings.latency_ms,
            jitter_ms=settings.jitter_ms,
        )
        self.nodes = [SimNode(self, n) for n in range(settings.nodes)]
        self.failures: list[str] = []
        rates = settings.rates or (1.0,) * settings.nodes
        clock.rates.update({node.name: rate for node, rate in zip(self.nodes, rates, strict=True) if rate != 1.0})
        self._clients: HostNetwork | None = None
        self._client_count = 0

    async def start(self) -> None:
        """Boot the name server and all nodes."""
        namesrv = self.net.boot(NAMESRV_IP)
        await self.nursery.start(serve_namesrv, NamesrvConfig(bind_address=NAMESRV_IP), namesrv)
        for node in self.nodes:
            await node.start()

    def dying(self, node: SimNode) -> None:
        """Called when a node is killed, before anything of it ends: for those who count what a crash hits."""

    def clients(self) -> HostNetwork:
        """The network as the clients' host sees it; that host never dies."""
        if self._clients is None:
            self._clients = self.net.boot(CLIENT_IP)
        return self._clients

    def client(self, *, default_timeout: float = 10.0) -> AbstractAsyncContextManager[Client]:
        """A client of the library on a host of its own, as `trimq.connect` gives it."""
        number = self._client_count
        self._client_count += 1
        if not number:
            ID_SOURCE.set(IdSource(random.Random(f"{self.seed}/ids"), SimClock()))
        return open_client(
            NAMESRV,
            self.clients(),
            SimClock(),
            random.Random(f"{self.seed}/client/{number}"),
            client_id=f"sim-{number}",
            default_timeout=default_timeout,
        )

    def leader(self, group: str) -> SimNode | None:
        """The node with the ready leader of the newest term."""
        found: list[tuple[int, SimNode]] = []
        for node in self.nodes:
            for replica in node.replicas():
                if replica.config.broker_name == group and replica.ready:
                    found.append((replica.replicator.status().term, node))
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def replica(self, node: SimNode, group: str) -> Replica | None:
        return next((r for r in node.replicas() if r.config.broker_name == group), None)

    async def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait for something to be the case, at most so long; whether it is."""
        deadline = trio.current_time() + seconds
        while not holds():
            if trio.current_time() >= deadline:
                return False
            await trio.sleep(0.1)
        return True

    def isolate(self, node: SimNode, *, from_clients: bool = True) -> None:
        """Cut a node off from the others, and from the clients; `heal` ends it."""
        others = [other.ip for other in self.nodes if other is not node]
        for other in (*others, CLIENT_IP) if from_clients else others:
            self.net.cut(node.ip, other)
            self.net.cut(other, node.ip)

    async def heal(self) -> None:
        """Links, disks and machines work again."""
        self.net.heal()
        for node in self.nodes:
            node.resume()
            for disk in node.disks.values():
                disk.heal()
        for node in self.nodes:
            await node.start()


def run_simulation(
    scenario: Callable[[Simulation], Awaitable[None]],
    *,
    seed: int,
    settings: SimSettings | None = None,
    limit_s: float = 3600.0,
    keep: Callable[[str], object] | None = None,
) -> str:
    """Run `scenario` in a cluster that is up and ready; returns the digest of everything that happened.

    `limit_s`: simulated seconds after which it ends with `trio.TooSlowError`. `keep` gets each line of the trace.
    Raises what the scenario raises.
    """
    trace = Trace(keep)

    async def main(clock: VirtualClock) -> None:
        with trio.fail_after(limit_s):
            async with trio.open_nursery() as nursery:
                sim = Simulation(clock, trace, nursery, seed, settings or SimSettings())
                await sim.start()
                if not await sim.until(partial(_all_lead, sim), READY_WITHIN_S):
                    raise trio.TooSlowError("the cluster did not get ready")
                await scenario(sim)
                nursery.cancel_scope.cancel()

    run_deterministic(main, seed)
    return trace.digest


def _all_lead(sim: Simulation) -> bool:
    return all(sim.leader(group) is not None for group in sim.groups)


def _is_start_error(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_start_error(each) for each in error.exceptions)
    return isinstance(error, StartError)


def _text(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
