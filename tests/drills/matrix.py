"""Flush × replication × fault: what is promised of acknowledged messages, and what was observed.

`python -m tests.drills.matrix` runs every cell and prints the table of docs/operations.md. A cell is a master and a
slave as whole brokers, on disks whose unsynced bytes can be taken away and a network that can be cut. With `--processes
DIR` the cells that need no power cut (kill -9 of the master; its folder deleted as well) are run again by processes on
this machine, their slave killed where the link would be cut.

1. 60 messages while the slave follows, then 20 while the link to it is cut; only code 0 counts as acknowledged.
2. The fault. Whatever was not synced goes with a power cut, everything with a machine.
3. What an operator would do: start again what can be started; if nobody leads then, promote the slave (`--force` only
   where the refusal says that nothing else is left).
4. Both replicas are read from the beginning: what was acknowledged and is missing was lost; they must be equal.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import trio
import trio.testing

import trimq
from broker.config import FlushDiskType, Strategy
from broker.replication.ha.promotion import PromotionRefused
from broker.replication.raft_group import RaftReplicator
from tests.broker.cluster import Cluster, in_sync, open_master_slave, until
from tests.broker.support import drained, open_user
from tests.drills import slaves
from tests.drills.support import quiet
from trimq.remoting.client import RemotingClient, open_remoting_client
from trimq.remoting.system import AnyioNetwork
from trimq.testing import status
from trimq.testing.local_cluster import LocalCluster
from trimq.wire.codes import ResponseCode

FOLLOWED = 60
CUT_OFF = 20


class Blow(Enum):
    CRASH = "process crash of the master"
    POWER = "power cut of the master"
    BLACKOUT = "power cut of all"
    MACHINE = "loss of the master's machine"


@dataclass(frozen=True, slots=True)
class Cell:
    flush: FlushDiskType
    strategy: Strategy
    blow: Blow

    @property
    def promised(self) -> str:
        """Of acknowledged messages."""
        if self.strategy is Strategy.SYNC:
            if self.blow is Blow.BLACKOUT and self.flush is FlushDiskType.ASYNC_FLUSH:
                return "the last half second may be lost"
            return "none lost"
        if self.blow is Blow.MACHINE:
            return "what had not reached the slave is lost"
        if self.blow is Blow.CRASH or self.flush is FlushDiskType.SYNC_FLUSH:
            return "none lost"
        return "the last half second, or what had not reached the slave, may be lost"

    @property
    def may_lose(self) -> bool:
        return self.promised != "none lost"


@dataclass(frozen=True, slots=True)
class Observed:
    acked: int
    lost: int
    steps: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.lost} of {self.acked} lost; {', '.join(self.steps)}"


def cells() -> Iterator[Cell]:
    for strategy in (Strategy.SYNC, Strategy.ASYNC):
        for flush in (FlushDiskType.SYNC_FLUSH, FlushDiskType.ASYNC_FLUSH):
            for blow in Blow:
                yield Cell(flush, strategy, blow)


def replicator(cluster: Cluster, number: int) -> RaftReplicator:
    found = cluster.nodes[number].replica().replicator
    assert isinstance(found, RaftReplicator)
    return found


async def run_cell(cell: Cell) -> Observed:
    """One cell, on test time."""
    async with open_master_slave(cell.strategy, slaves=1, flush_disk_type=cell.flush) as cluster:
        acked = await _load(cluster)
        steps = await _strike_and_mend(cluster, cell.blow)
        await until(lambda: len(in_sync(cluster)) == 2, 30)
        await until(lambda: len({node.replica().store.dispatched for node in cluster.nodes}) == 1, 30)
        readings = []
        for node in cluster.nodes:
            async with open_user(cluster.world, node.replica().address) as user:
                info = node.replica().state.topics.get(b"T")
                assert info is not None
                end = node.replica().store.queues.next_offset(info.tid << 16)
                readings.append([message.body for message in await drained(user, "T", 0, end)])
        assert readings[0] == readings[1], "the replicas differ"
        return Observed(len(acked), sum(1 for body in acked if body not in readings[0]), tuple(steps))


async def _load(cluster: Cluster) -> list[bytes]:
    master = cluster.nodes[0]
    acked: list[bytes] = []

    async def send(number: int) -> None:
        body = b"%d" % number
        async with open_user(cluster.world, master.replica().address) as user:
            if (await user.send("T", body)).code == ResponseCode.SUCCESS:
                acked.append(body)

    for number in range(FOLLOWED):
        await send(number)
        await trio.sleep(0.02)
    cluster.world.network.cut("10.0.0.2", ["10.0.0.1"])
    async with trio.open_nursery() as nursery:
        for number in range(FOLLOWED, FOLLOWED + CUT_OFF):
            nursery.start_soon(send, number)
        await trio.sleep(0.01)  # no time for a flush in the background
        nursery.cancel_scope.cancel()
    return acked


async def _strike_and_mend(cluster: Cluster, blow: Blow) -> list[str]:
    master, slave = cluster.nodes
    keep = 1.0 if blow is Blow.CRASH else 0.0
    await master.kill(keep=keep)
    if blow is Blow.BLACKOUT:
        await slave.kill(keep=keep)
    cluster.world.network.heal()
    if blow is Blow.MACHINE:
        del cluster.world.disks["n0/broker-a"]
    if blow is Blow.BLACKOUT:
        await slave.start()
    await master.start()
    await trio.sleep(6)
    if cluster.leader() is not None:
        return ["the master went on"]
    try:
        await replicator(cluster, 1).promote()
    except PromotionRefused:
        await replicator(cluster, 1).promote(force=True)
        return ["slave promoted by force"]
    return ["slave promoted"]


async def run_cell_by_processes(cell: Cell, cluster: LocalCluster) -> Observed:
    """One cell, on this machine: `cluster` is ready and has a master on n0 and a slave on n1."""
    (group,) = cluster.groups
    async with trimq.connect(cluster.namesrv_address) as client, open_remoting_client(AnyioNetwork()) as asker:
        (queue,) = await slaves.make_topic(client, cluster, 1)
        acked = await slaves.send(client, queue, [b"%d" % number for number in range(FOLLOWED)])
        await quiet(asker, cluster, group)
        cluster.kill("n1")
        await trio.sleep(1)
        acked += await slaves.send(client, queue, [b"%d" % n for n in range(FOLLOWED, FOLLOWED + CUT_OFF)])
        cluster.kill("n0")
        if cell.blow is Blow.MACHINE:
            shutil.rmtree(cluster.store_path("n0", group))
        cluster.start("n1")
        await slaves.formed(asker, cluster, "n1")
        cluster.start("n0")
        steps = await _mend_processes(asker, cluster)
        await slaves.whole(asker, cluster)
        await quiet(asker, cluster, group)
        readings = [await slaves.read_through(client, cluster, node, queue) for node in cluster.nodes]
    assert readings[0] == readings[1], "the replicas differ"
    return Observed(len(acked), len(set(acked) - set(readings[0])), tuple(steps))


async def _mend_processes(asker: RemotingClient, cluster: LocalCluster) -> list[str]:
    with trio.move_on_after(6):
        while True:
            if (await status.ask(asker, cluster))[cluster.groups[0]].leader is not None:
                return ["the master went on"]
            await trio.sleep(0.1)
    if not await slaves.promote(asker, cluster, "n1"):
        return ["slave promoted"]
    refusal = await slaves.promote(asker, cluster, "n1", force=True)
    assert not refusal, refusal
    return ["slave promoted by force"]


def table(results: dict[Cell, Observed]) -> str:
    """Markdown."""
    lines = ["| replication | flush | fault | promised | observed |", "|---|---|---|---|---|"]
    lines += [
        f"| {cell.strategy.value} | {cell.flush.value} | {cell.blow.value} | {cell.promised} | {seen} |"
        for cell, seen in results.items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.drills.matrix")
    parser.add_argument("--processes", type=Path, metavar="DIR", help="on real processes, whose files go there")
    folder = parser.parse_args().processes
    results: dict[Cell, Observed] = {}
    for number, cell in enumerate(cells()):
        if folder is None:
            results[cell] = trio.run(run_cell, cell, clock=trio.testing.MockClock(autojump_threshold=0))
        elif cell.blow in (Blow.CRASH, Blow.MACHINE):
            flush = "sync" if cell.flush is FlushDiskType.SYNC_FLUSH else "async"
            place = folder / str(number)
            with slaves.master_and_slaves(place, cell.strategy.value, nodes=2, flush=flush) as cluster:
                results[cell] = trio.run(run_cell_by_processes, cell, cluster)
            print(f"{cell.strategy.value} {cell.flush.value} {cell.blow.value}: {results[cell]}", flush=True)
    print(table(results))
    sys.exit(any(seen.lost and not cell.may_lose for cell, seen in results.items()))


if __name__ == "__main__":
    main()
