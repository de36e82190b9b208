"""Cut the power of all three nodes under load: every acknowledged message must be there afterwards.

The same drill with nodes whose fsync does nothing must report losses; a drill that cannot fail proves nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

import trimq
from tests.drills.loop_disk import LoopDisk, available, loop_disk
from trimq.drill.history import History
from trimq.drill.load import Sender, run_sender, warm_up
from trimq.drill.reader import read_everything
from trimq.drill.verdict import Verdict, judge
from trimq.testing.local_cluster import ClusterError, LocalCluster
from trimq.testing.status import wait_ready_blocking

LOAD_S = 2.0
RATE_EACH = 250.0
PRODUCERS = 4
DISK_MB = 1200
LIAR = (
    "import os, runpy, sys\n"
    "os.fsync = os.fdatasync = lambda descriptor: None\n"
    "sys.argv[0] = 'broker'\n"
    "runpy.run_module('broker', run_name='__main__')\n"
)


class LyingCluster(LocalCluster):
    """Nodes that tell everybody that their bytes are on disk and never put them there."""

    def command(self, process: str) -> list[str]:
        command = super().command(process)
        if process == "namesrv":
            return command
        return [sys.executable, "-c", LIAR, *command[3:]]


def cut_under_load(kind: type[LocalCluster], scratch: Path, disk: LoopDisk, *, keep_formation: bool) -> Verdict:
    """Form a cluster whose stores lie on the disk, load it, cut, restart, read everything through every node.

    `keep_formation` brings the still empty, formed groups to the disk by other means than the nodes' own syncs: then
    what is missing afterwards are the messages alone. The cluster's own papers (ports, pids, logs) stay off the disk.
    """
    stores = disk.mount / "store"
    stores.mkdir()
    synced(disk)
    scratch.mkdir()
    (scratch / "store").symlink_to(stores)
    cluster = kind.create(scratch, base_port=0, groups=2)
    history = History()
    queues: list[trimq.Queue] = []

    async def load() -> None:
        stop = trio.Event()
        async with trimq.connect(cluster.namesrv_address) as client:
            queues.extend(await warm_up(client, "power", cluster.groups, 2))
            if keep_formation:
                await trio.to_thread.run_sync(synced, disk)
            async with trio.open_nursery() as nursery:
                for number in range(PRODUCERS):
                    nursery.start_soon(produce, client, number, stop)
                await trio.sleep(LOAD_S)
                await trio.to_thread.run_sync(disk.cut)
                for node in cluster.nodes:
                    with suppress(ClusterError):  # it may have given up by itself
                        cluster.kill(node)
                nursery.cancel_scope.cancel()

    async def produce(client: trimq.Client, number: int, stop: trio.Event) -> None:
        async with client.producer(f"power-{number}") as producer:
            sender = Sender(number, producer, queues, history)
            await sender.send_one()  # the route is known from here on: sends begun together keep their order
            await run_sender(sender, RATE_EACH, stop)

    async def read_back() -> None:
        async with trimq.connect(cluster.namesrv_address) as client:
            await read_everything(client, cluster, queues, history)

    try:
        cluster.start()
        wait_ready_blocking(cluster)
        trio.run(load)
        cluster.stop()
        disk.restore()
        cluster.start()
        wait_ready_blocking(cluster)
        trio.run(read_back)
    finally:
        cluster.stop()
    return judge(history)


def synced(disk: LoopDisk) -> None:
    """Everything that is on the mounted disk now will be there after a cut."""
    subprocess.run(["sync", "-f", str(disk.mount)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    reason = available(tmp_path / "probe")
    if reason is not None:
        pytest.skip(f"a real power cut {reason}; the simulator's disk covers it")
    with loop_disk(tmp_path / "disk", megabytes=DISK_MB) as found:
        yield found


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_power_cut_of_all_nodes_loses_nothing_acknowledged(tmp_path: Path, disk: LoopDisk) -> None:
    verdict = cut_under_load(LocalCluster, tmp_path / "cluster", disk, keep_formation=False)
    print(f"power cut: acked {verdict.acked}, unknown {verdict.unknown}, violations {verdict.violations}")
    assert verdict.acked > LOAD_S * RATE_EACH
    assert verdict.violations == 0, verdict.examples


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_drill_catches_nodes_that_lie_about_fsync(tmp_path: Path, disk: LoopDisk) -> None:
    """The formed groups survive, the messages do not: the drill must count them as lost, not fail to start."""
    verdict = cut_under_load(LyingCluster, tmp_path / "cluster", disk, keep_formation=True)
    print(f"lying fsync: acked {verdict.acked}, lost {verdict.lost}")
    assert verdict.acked > LOAD_S * RATE_EACH
    assert verdict.lost > 0
