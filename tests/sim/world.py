"""The machines of a simulation: a name server, broker nodes that die and return, and a place for clients.

A dying node's disk and network refuse its calls *before* its tasks are cancelled: `finally` blocks run at a simulated
crash but not at a real one, and must not be able to save anything. Every life builds its objects anew from the disk.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from broker.config import BrokerConfig, Peer, Strategy
from broker.env import Env
from broker.replica import Replica
from broker.replication.raft_group import RaftReplicator
from broker.runtime import Broker, StartError, open_broker
from broker.store.fs import FileSystem
from broker.store.fs_memory import MemoryFileSystem
from namesrv.config import NamesrvConfig
from namesrv.server import serve_namesrv
from raft.core import Role, VoteReply
from tests.sim.deterministic import Trace, VirtualClock, wait_s
from tests.sim.net import HostNetwork, SimNetwork
from tests.sim.oracle import Oracle
from tests.sim.plan import Plan

__all__ = ["NAMESRV", "Node", "SimClock", "World"]

START_MS = 1_700_000_000_000
NAMESRV_IP = "10.0.1.1"
NAMESRV = f"{NAMESRV_IP}:9876"
CLIENT_IP = "10.0.2.1"
PEER_PORT = 40911
CLIENT_PORT = 10911
NODES = 3
DIES_WITHIN_S = 60.0
"""A dead process's tasks are gone by then, whatever they were at."""


class SimClock:
    """A wall clock with a rate error. Nothing may depend on its agreeing with anybody's."""

    def __init__(self, drift: float = 0.0) -> None:
        self._rate = 1000 * (1 + drift)

    def wall_ms(self) -> int:
        return START_MS + int(trio.current_time() * self._rate)


class SimDisk(MemoryFileSystem):
    """A disk whose calls last on the simulation's clock."""

    def __init__(self, clock: VirtualClock, rng: random.Random, *, latency_s: float, jitter_s: float) -> None:
        super().__init__(rng, latency_s=latency_s, jitter_s=jitter_s)
        self._clock = clock

    async def _take(self, seconds: float, *, shielded: bool) -> None:
        if shielded and seconds:
            await wait_s(self._clock, seconds)
        else:
            await super()._take(seconds, shielded=shielded)


class Node:
    """One machine: one broker process with a replica of every group."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.name = f"n{number}"
        self.ip = f"10.0.0.{number + 1}"
        self.lives = 0
        self.broker: Broker | None = None
        self.up = False
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._down = trio.Event()
        self._down.set()
        plan = world.plan
        self.disks = {
            group: SimDisk(
                world.clock, random.Random(f"{plan.seed}/{self.name}/{group}/disk"),
                latency_s=plan.disk_ms / 1000,
                jitter_s=plan.disk_jitter_ms / 1000,
            )
            for group in world.groups
        }

    def replicas(self) -> list[Replica]:
        """What runs on this machine now."""
        return list(self.broker.replicas) if self.up and self.broker is not None else []

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
        network = self.world.net.boot(self.ip)
        self.world.nursery.start_soon(self._run, network)

    async def kill(self, *, power: bool) -> None:
        """The process dies (the page cache survives), or its machine does (unsynced bytes are gone)."""
        assert self.up
        self.up = False
        self._note_crash()
        self.world.net.kill(self.ip, dark=power)
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

    def _note_crash(self) -> None:
        reached = self.world.oracle.reached
        for replica in self.replicas():
            assert isinstance(replica.replicator, RaftReplicator)
            core = replica.replicator._core
            if core is None:
                continue
            if core.role is Role.LEADER:
                self.world.oracle.deposed(core.last.index - core.commit)
            if any(isinstance(m, VoteReply) for batch in core.writes._taken for m in batch.release):
                reached["crash before a grant"] += 1
        if any(disk.unsynced(path) for disk in self.disks.values() for path in disk.paths()):
            reached["crash with unsynced bytes"] += 1

    async def _run(self, network: HostNetwork) -> None:
        world = self.world
        env = Env(
            clock=SimClock(world.plan.drift[self.number]),
            network=network,
            open_fs=self._open_fs,
            seed=f"{world.plan.seed}/{self.name}/{self.lives}",
        )
        configs = [self._config(group) for group in world.groups]
        try:
            with self._scope:
                async with open_broker(configs, env) as broker:
                    self.broker = broker
                    await trio.sleep_forever()
        except Exception as error:
            if not self.up:
                return  # a dead machine may fail in any way
            if not _is_start_error(error):
                world.failures.append(f"{self.name}: {_text(error)}")
                raise
            world.trace("process ended", self.name, _text(error))
            self.up = False
            world.net.kill(self.ip, dark=False)
            for disk in self.disks.values():
                disk.crash(keep=1.0)
            self._down.set()
            world.nursery.start_soon(self._restart)
        finally:
            self._ended.set()

    async def _restart(self) -> None:
        """What a service manager does with a process that could not start."""
        await trio.sleep(1.0)
        await self.start()

    @asynccontextmanager
    async def _open_fs(self, root: str) -> AsyncIterator[FileSystem]:
        yield self.disks[root]

    def _config(self, group: str) -> BrokerConfig:
        at = self.world.groups.index(group)
        nodes = range(NODES)
        return BrokerConfig(
            strategy=Strategy.RAFT,
            dleger=True,
            broker_name=group,
            peers=tuple(Peer(f"n{n}", f"10.0.0.{n + 1}", PEER_PORT) for n in nodes),
            self_id=self.name,
            preferred_leader=f"n{at % NODES}",
            listen_port=CLIENT_PORT + 20 * at,
            bind_address=self.ip,
            broker_ip=self.ip,
            namesrv=(NAMESRV,),
            store_dir=group,
            segment_bytes=self.world.plan.segment_bytes,
            metrics_port=-1,
        )


class World:
    """Everything there is in one run."""

    def __init__(
        self, clock: VirtualClock, plan: Plan, trace: Trace, oracle: Oracle, nursery: trio.Nursery
    ) -> None:
        self.clock = clock
        self.plan, self.trace, self.oracle, self.nursery = plan, trace, oracle, nursery
        self.groups = [f"broker-{chr(ord('a') + n)}" for n in range(plan.groups)]
        self.net = SimNetwork(
            clock, random.Random(f"{plan.seed}/net"), trace, latency_ms=plan.latency_ms, jitter_ms=plan.jitter_ms
        )
        self.nodes = [Node(self, n) for n in range(NODES)]
        self.failures: list[str] = []
        self.kills = 0

    async def start(self) -> None:
        namesrv = self.net.boot(NAMESRV_IP)
        config = NamesrvConfig(bind_address=NAMESRV_IP)
        await self.nursery.start(serve_namesrv, config, namesrv)
        for node in self.nodes:
            await node.start()

    def clients(self) -> HostNetwork:
        """The clients' host; called once."""
        return self.net.boot(CLIENT_IP)

    def leader(self, group: str) -> Node | None:
        """The node with the ready leader of the newest term."""
        found: list[tuple[int, Node]] = []
        for node in self.nodes:
            for replica in node.replicas():
                if replica.config.broker_name == group and replica.ready:
                    found.append((replica.replicator.status().term, node))
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def replica(self, node: Node, group: str) -> Replica | None:
        return next((r for r in node.replicas() if r.config.broker_name == group), None)


def _is_start_error(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_start_error(each) for each in error.exceptions)
    return isinstance(error, StartError)


def _text(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
