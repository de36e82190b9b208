"""The machines of a simulation: a name server, broker nodes that die and return, and a place for clients.

A dying node's disk and network refuse its calls *before* its tasks are cancelled: `finally` blocks run at a simulated
crash but not at a real one, and must not be able to save anything. Every life builds its objects anew from the disk.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from broker.config import BrokerConfig, Peer, Strategy
from broker.env import Env
from broker.replica import Replica
from broker.replication.raft_group import RaftReplicator
from broker.runtime import Broker, StartError, open_broker
from broker.store.fs import FileSystem
from namesrv.config import NamesrvConfig
from namesrv.server import serve_namesrv
from raft.core import Role, VoteReply
from tests.sim.deterministic import HOST, Trace, VirtualClock
from tests.sim.disk import SimDisk
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
        self.jump_ms = 0
        self._rate = 1000 * (1 + drift)

    def wall_ms(self) -> int:
        return START_MS + self.jump_ms + int(trio.current_time() * self._rate)


class Node:
    """One machine: one broker process with a replica of every group."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.name = f"n{number}"
        self.ip = f"10.0.0.{number + 1}"
        self.lives = 0
        self.clock = SimClock(world.plan.drift[number])
        self.broker: Broker | None = None
        self.up = False
        self.stopping = False
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._down = trio.Event()
        self._down.set()
        plan = world.plan
        self.disks = {
            group: SimDisk(
                world.clock,
                random.Random(f"{plan.seed}/{self.name}/{group}/disk"),
                latency_s=plan.disk_ms / 1000,
                jitter_s=plan.disk_jitter_ms / 1000,
                segment_bytes=plan.segment_bytes,
            )
            for group in world.groups
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
        network = self.world.net.boot(self.ip)
        self.world.nursery.start_soon(self._run, network)

    async def kill(self, *, power: bool) -> None:
        """The process dies (the page cache survives), or its machine does (unsynced bytes are gone)."""
        assert self.up
        self.up = False
        self._note_crash()
        self.world.clock.resume(self.name)  # SIGKILL ends a stopped process too
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
        self.up = False
        self.broker = None
        self.world.net.kill(self.ip, dark=False)
        for disk in self.disks.values():
            disk.crash(keep=1.0)
        self._down.set()
        return True

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
        HOST.set(self.name)
        env = Env(
            clock=self.clock,
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
            reserved_s=self.world.plan.retention_s,
            heartbeat_ms=self.world.plan.beat_ms,
            election_ms=self.world.plan.election_ms,
            metrics_port=-1,
        )


class World:
    """Everything there is in one run."""

    def __init__(self, clock: VirtualClock, plan: Plan, trace: Trace, oracle: Oracle, nursery: trio.Nursery) -> None:
        self.clock = clock
        self.plan, self.trace, self.oracle, self.nursery = plan, trace, oracle, nursery
        self.groups = [f"broker-{chr(ord('a') + n)}" for n in range(plan.groups)]
        self.net = SimNetwork(
            clock, random.Random(f"{plan.seed}/net"), trace, latency_ms=plan.latency_ms, jitter_ms=plan.jitter_ms
        )
        self.nodes = [Node(self, n) for n in range(NODES)]
        self.failures: list[str] = []
        self.kills = 0
        self._lineages: dict[str, int] = {}
        clock.rates.update({node.name: rate for node, rate in zip(self.nodes, plan.rates, strict=True) if rate != 1.0})
        oracle.disk_of = self._disk_of
        oracle.lineage_of = self.lineage

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

    async def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait for something to be the case, at most so long; whether it is."""
        deadline = trio.current_time() + seconds
        while not holds():
            if trio.current_time() >= deadline:
                return False
            await trio.sleep(0.1)
        return True

    def lineage(self, group: str) -> int:
        """Of the group's log; 0 before it is formed."""
        if not self._lineages.get(group):
            for node in self.nodes:
                replica = self.replica(node, group)
                if replica is not None and replica.store.log.lineage:
                    self._lineages[group] = replica.store.log.lineage
        return self._lineages.get(group, 0)

    def _disk_of(self, node: str, lineage: int) -> SimDisk | None:
        for group in self.groups:
            if self.lineage(group) == lineage:
                return self.nodes[int(node[1:])].disks[group]
        return None

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
