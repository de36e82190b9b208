"""Three replicas of several groups in one test: real core, drivers and CommitLogs; network and disks in memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import trio

from broker.replication.base import GroupFailed, NotLeader, ReplyTo
from broker.replication.ha.config import HaConfig
from broker.replication.raft_group import GroupConfig, Peer, RaftReplicator
from broker.store.fs_memory import MemoryFileSystem
from raft.node import NodeConfig, RaftNode
from tests.raft.memory_net import MemoryNetwork
from tests.replication.small import SEGMENT_BYTES, SmallSource, SmallStore, memory_fs, open_small_store

PORT = 40911


async def until(what: Callable[[], object], seconds: float) -> None:
    """Look every 10 ms (of test time); TooSlowError after `seconds`."""
    with trio.fail_after(seconds):
        while not what():  # noqa: ASYNC110 - there is no event for "anything in the cluster has changed"
            await trio.sleep(0.01)


class Replica:
    """One replica of one group, while its machine runs."""

    def __init__(self, store: SmallStore, source: SmallSource, replicator: RaftReplicator) -> None:
        self.store, self.source, self.replicator = store, source, replicator
        self.served: list[bytes] = []
        replicator.forwarder.serve = self._serve

    def _serve(self, reply: ReplyTo, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.served.append(frame)
            reply.send(b"answer:" + frame)


class Machine:
    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.disks: dict[str, MemoryFileSystem] = {
            group: memory_fs(f"{cluster.seed}/{name}/{group}") for group in cluster.groups
        }
        self.replicas: dict[str, Replica] = {}
        self.lives = 0
        self.boots = 1
        self.failures: list[str] = []
        self._scope = trio.CancelScope()
        self._down = trio.Event()
        self._down.set()

    @property
    def up(self) -> bool:
        return not self._down.is_set()

    async def start(self) -> None:
        assert self._down.is_set()
        self._down = trio.Event()
        self._scope = trio.CancelScope()
        self.lives += 1
        await self.cluster.nursery.start(self._run)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        cluster = self.cluster
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    node = RaftNode(
                        cluster.net.host(self.name),
                        random.Random(f"{cluster.seed}/{self.name}/{self.lives}/node"),
                        cluster.node_config,
                    )
                    await nursery.start(node.run)
                    for group in cluster.groups:
                        await nursery.start(self._run_group, node, group)
                    task_status.started()
        except* OSError:
            if not self._scope.cancel_called:  # else the last words of a process that was killed
                raise
        finally:
            self.replicas.clear()
            self._down.set()

    async def _run_group(self, node: RaftNode, group: str, *, task_status: trio.TaskStatus[None]) -> None:
        cluster = self.cluster
        disk = self.disks[group]
        async with open_small_store(disk, str(self.boots)) as store:
            source = SmallSource()
            source.log = store.log
            replicator = RaftReplicator(
                node,
                store,
                source,
                cluster.config(self.name, group),
                disk,
                random.Random(f"{cluster.seed}/{self.name}/{self.lives}/{group}"),
            )
            self.replicas[group] = Replica(store, source, replicator)
            try:
                async with trio.open_nursery() as nursery:
                    if cluster.strategy != "raft":
                        nursery.start_soon(self._join, replicator, group)
                    await replicator.run(task_status=task_status)
            except* GroupFailed as errors:
                if not cluster.reopens:
                    await trio.sleep_forever()
                self.failures.append(str(errors.exceptions[0]))
        if not self._scope.cancel_called:
            await self._run_group(node, group, task_status=trio.TASK_STATUS_IGNORED)

    async def _join(self, replicator: RaftReplicator, group: str) -> None:
        """What a broker does through the name server: an empty master founds, an empty slave asks the master."""
        while True:
            await trio.sleep(0.05)
            others = [r.replicator for r in self.cluster.replicas(group) if r.replicator is not replicator]
            if replicator.formed:
                return
            replicator.may_found = replicator.config.ha.founds and not any(other.formed for other in others)
            for other in others:
                if other.is_ready:
                    with suppress(NotLeader):
                        other.admit_slave(replicator.introduction())
                        replicator.follow(other.introduction())

    def wipe(self) -> None:
        """The disk was replaced: whoever starts here next is another store."""
        assert not self.up
        self.disks = {
            group: memory_fs(f"{self.cluster.seed}/{self.name}/{group}/{self.lives}") for group in self.cluster.groups
        }

    async def kill(self, *, keep: float | None = 1.0) -> None:
        """kill -9 (`keep=1.0`: the page cache survives) or a power cut (0.0, None)."""
        self.boots += keep != 1.0
        for disk in self.disks.values():
            disk.crash(keep=keep)
        self.cluster.net.reset(self.name)
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._down.wait()


class Cluster:
    def __init__(self, nursery: trio.Nursery, names: Sequence[str], groups: Sequence[str], seed: int) -> None:
        self.nursery, self.seed = nursery, seed
        self.names, self.groups = tuple(names), tuple(groups)
        self.net = MemoryNetwork()
        self.node_config = NodeConfig()
        self.config_cluster = "test"
        self.strategy = "raft"
        self.ha: dict[str, object] = {}
        """HaConfig's fields, where they are not the defaults."""
        self.reopens = False
        """Whether a group that ended is opened again, as a broker does."""
        self.machines = {name: Machine(self, name) for name in names}

    def config(self, name: str, group: str) -> GroupConfig:
        if self.strategy != "raft":
            return self._slave_config(name, group)
        at = self.groups.index(group) % len(self.names)
        return GroupConfig(
            cluster=self.config_cluster,
            group=group,
            node_id=name,
            peers=tuple(Peer(other, other, PORT) for other in self.names),
            client_addr=f"{name}:10911",
            segment_bytes=SEGMENT_BYTES,
            preferred_leader=self.names[at],
            boot_id=str(self.machines[name].boots),
        )

    def _slave_config(self, name: str, group: str) -> GroupConfig:
        rank = self.names.index(name)
        return GroupConfig(
            cluster=self.config_cluster,
            group=group,
            node_id=name,
            peers=(Peer(name, name, PORT),),
            client_addr=f"{name}:10911",
            segment_bytes=SEGMENT_BYTES,
            strategy=self.strategy,
            ha=HaConfig(**{"rank": rank, "founds": rank == 0, "flush_sync": True, **self.ha}),  # type: ignore[arg-type]
            boot_id=str(self.machines[name].boots),
        )

    async def start(self) -> None:
        for name in self.names:
            await self.machines[name].start()

    async def grow(self, name: str) -> Machine:
        """Start a machine that belongs to no group yet."""
        self.names = (*self.names, name)
        self.machines[name] = Machine(self, name)
        await self.machines[name].start()
        return self.machines[name]

    def replicas(self, group: str) -> list[Replica]:
        return [machine.replicas[group] for machine in self.machines.values() if group in machine.replicas]

    def leader(self, group: str) -> Replica | None:
        """The ready leader of the highest term."""
        ready = [r for r in self.replicas(group) if r.replicator.is_ready]
        return max(ready, key=lambda r: r.replicator.role.term, default=None)

    def isolate(self, replica: Replica) -> None:
        """Cut a replica's machine off from all others."""
        name = replica.replicator.node_id
        self.net.cut(name, [other for other in self.names if other != name])

    async def until(self, what: Callable[[], object], seconds: float = 5.0) -> None:
        await until(what, seconds)

    async def ready(self, group: str, *, besides: str = "", seconds: float = 5.0) -> Replica:
        found: list[Replica] = []

        def look() -> bool:
            leader = self.leader(group)
            if leader is not None and leader.replicator.node_id != besides:
                found.append(leader)
            return bool(found)

        await self.until(look, seconds)
        return found[0]

    async def settled(self, group: str, seconds: float = 5.0) -> None:
        """All running replicas have dispatched the same log."""

        def equal() -> bool:
            replicas = self.replicas(group)
            ends = {r.store.dispatched for r in replicas}
            return len(ends) == 1 and all(r.store.log.last.index == r.store.dispatched for r in replicas)

        await self.until(equal, seconds)
        first, *others = self.replicas(group)
        for other in others:
            common = min(len(first.store.entries), len(other.store.entries))
            assert first.store.entries[-common:] == other.store.entries[-common:]


@asynccontextmanager
async def cluster(
    names: Sequence[str] = ("n0", "n1", "n2"),
    groups: Sequence[str] = ("g",),
    *,
    seed: int = 1,
    start: bool = True,
    strategy: str = "raft",
    **ha: object,
) -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        made = Cluster(nursery, names, groups, seed)
        made.strategy = strategy
        made.ha = ha
        if start:
            await made.start()
        yield made
        nursery.cancel_scope.cancel()
