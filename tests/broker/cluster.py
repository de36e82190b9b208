"""Several broker processes in one test: each a host of its own, with replicas of the same groups."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from broker.config import BrokerConfig, BrokerRole, FlushDiskType, Peer, Strategy
from broker.replication.raft_group import RaftReplicator
from broker.runtime import Broker, Replica, open_broker
from namesrv.config import NamesrvConfig
from namesrv.server import serve_namesrv
from tests.broker.support import World

PEER_PORT = 40911
NAMESRV = "10.0.1.1:9876"
CLIENT_PORT = 10911


def node_ip(number: int) -> str:
    return f"10.0.0.{number + 1}"


def raft_config(number: int, group: int = 0, *, nodes: int = 3, **changes: object) -> BrokerConfig:
    """The replica of a group on one node."""
    name = f"broker-{chr(ord('a') + group)}"
    fields: dict[str, object] = {
        "strategy": Strategy.RAFT,
        "dleger": True,
        "broker_name": name,
        "peers": tuple(Peer(f"n{each}", node_ip(each), PEER_PORT) for each in range(nodes)),
        "self_id": f"n{number}",
        "preferred_leader": f"n{group % nodes}",
        "listen_port": CLIENT_PORT + 20 * group,
        "broker_ip": node_ip(number),
        "store_dir": f"n{number}/{name}",
        "segment_bytes": 8 << 20,
        "metrics_port": -1,
    }
    return BrokerConfig(**{**fields, **changes})  # type: ignore[arg-type]  # keywords of the caller


def slave_config(number: int, group: int = 0, *, strategy: Strategy, **changes: object) -> BrokerConfig:
    """Node 0 has the master, the others its slaves."""
    name = f"broker-{chr(ord('a') + group)}"
    fields: dict[str, object] = {
        "broker_role": (BrokerRole.SYNC_MASTER if strategy is Strategy.SYNC else BrokerRole.ASYNC_MASTER)
        if number == 0
        else BrokerRole.SLAVE,
        "broker_id": number,
        "flush_disk_type": FlushDiskType.SYNC_FLUSH,
        "broker_name": name,
        "namesrv": (NAMESRV,),
        "listen_port": CLIENT_PORT + 20 * group,
        "ha_listen_port": PEER_PORT,
        "broker_ip": node_ip(number),
        "store_dir": f"n{number}/{name}",
        "segment_bytes": 8 << 20,
        "metrics_port": -1,
    }
    return BrokerConfig(**{**fields, **changes})  # type: ignore[arg-type]  # keywords of the caller


class Node:
    """A machine: its process may be killed and started again."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.broker: Broker | None = None
        self.boots = 1
        """Lives of the machine, which power cuts end."""
        self._done = trio.Event()
        self._stop = trio.Event()

    async def start(self) -> None:
        self._stop = trio.Event()
        self._done = trio.Event()
        self.broker = await self.cluster.nursery.start(self._run)

    async def _run(self, task_status: trio.TaskStatus[Broker]) -> None:
        cluster = self.cluster
        configs = [cluster.config(self.number, group) for group in range(cluster.groups)]
        try:
            async with open_broker(configs, cluster.world.env(node_ip(self.number), str(self.boots))) as broker:
                task_status.started(broker)
                await self._stop.wait()
        finally:
            self._done.set()

    async def stop(self) -> None:
        """SIGTERM."""
        self._stop.set()
        await self._done.wait()
        self.broker = None

    async def kill(self, *, keep: float = 1.0) -> None:
        """kill -9 (`keep` 1.0: the page cache survives) or a power cut (0.0)."""
        assert self.broker is not None
        self.boots += keep != 1.0
        for group in range(self.cluster.groups):
            self.cluster.world.disk(f"n{self.number}/broker-{chr(ord('a') + group)}").crash(keep=keep)
        self.cluster.world.network.reset(node_ip(self.number))
        self.broker.abort()
        self._stop.set()
        await self._done.wait()
        self.broker = None

    def replica(self, group: int = 0) -> Replica:
        assert self.broker is not None
        return self.broker.replicas[group]


class Cluster:
    def __init__(
        self,
        world: World,
        nursery: trio.Nursery,
        groups: int,
        changes: dict[str, Any],
        strategy: Strategy = Strategy.RAFT,
        count: int = 3,
    ) -> None:
        self.world = world
        self.nursery = nursery
        self.groups = groups
        self.changes = changes
        self.strategy = strategy
        self.nodes = [Node(self, number) for number in range(count)]

    def config(self, number: int, group: int) -> BrokerConfig:
        if self.strategy is Strategy.RAFT:
            return raft_config(number, group, **self.changes)
        return slave_config(number, group, strategy=self.strategy, **self.changes)

    def leader(self, group: int = 0) -> Node | None:
        """The node whose replica is the ready leader."""
        for node in self.nodes:
            if node.broker is not None and len(node.broker.replicas) > group and node.replica(group).ready:
                return node
        return None

    async def ready(self, group: int = 0) -> Node:
        await until(lambda: self.leader(group))
        found = self.leader(group)
        assert found is not None
        return found

    def followers(self, group: int = 0) -> list[Node]:
        leader = self.leader(group)
        return [node for node in self.nodes if node.broker is not None and node is not leader]


async def until(what: Callable[[], object], seconds: float = 10.0) -> None:
    """Look every 10 ms of test time; TooSlowError after `seconds`."""
    with trio.fail_after(seconds):
        while not what():  # noqa: ASYNC110  (nothing tells of "anything changed")
            await trio.sleep(0.01)


@asynccontextmanager
async def open_cluster(groups: int = 1, *, world: World | None = None, **changes: Any) -> AsyncIterator[Cluster]:
    """Three started nodes; ready leaders are the test's to wait for."""
    async with trio.open_nursery() as nursery:
        cluster = Cluster(world or World(), nursery, groups, changes)
        for node in cluster.nodes:
            await node.start()
        yield cluster
        for node in cluster.nodes:
            if node.broker is not None:
                await node.stop()


@asynccontextmanager
async def open_master_slave(
    strategy: Strategy, *, slaves: int = 2, world: World | None = None, **changes: Any
) -> AsyncIterator[Cluster]:
    """A name server, a master on node 0 and its slaves, in sync."""
    world = world or World()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_namesrv, NamesrvConfig(), world.at(NAMESRV.partition(":")[0])))
        cluster = Cluster(world, nursery, 1, changes, strategy, 1 + slaves)
        for node in cluster.nodes:
            await node.start()
        await until(lambda: len(in_sync(cluster)) == 1 + slaves)
        yield cluster
        for node in cluster.nodes:
            if node.broker is not None:
                await node.stop()
        nursery.cancel_scope.cancel()


def in_sync(cluster: Cluster) -> tuple[str, ...]:
    """What the master says."""
    master = cluster.leader()
    if master is None:
        return ()
    replicator = master.replica().replicator
    assert isinstance(replicator, RaftReplicator)
    return replicator.in_sync
