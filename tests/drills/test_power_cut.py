"""Cut the power of all three nodes under load: every acknowledged message must be there afterwards.

The same drill with nodes whose fsync does nothing must report losses; a drill that cannot fail proves nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import trimq
from tests.drills.loop_disk import LoopDisk, available, loop_disk
from trimq.drill.history import History
from trimq.drill.load import Sender, run_sender, warm_up
from trimq.drill.reader import read_everything
from trimq.drill.verdict import Verdict, judge
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import wait_ready_blocking

LOAD_S = 2.0
RATE = 500.0
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


def cut_under_load(kind: type[LocalCluster], disk: LoopDisk) -> Verdict:
    """Form a cluster on the disk, load it, cut, restart, read everything through every node."""
    cluster = kind.create(disk.mount, base_port=0, groups=2)
    history = History()
    queues: list[trimq.Queue] = []

    async def load() -> None:
        stop = trio.Event()
        async with trimq.connect(cluster.namesrv_address) as client:
            queues.extend(await warm_up(client, "power", cluster.groups, 2))
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(produce, client, number, stop)
                await trio.sleep(LOAD_S)
                await trio.to_thread.run_sync(disk.cut)
                for node in cluster.nodes:
                    cluster.kill(node)
                nursery.cancel_scope.cancel()

    async def produce(client: trimq.Client, number: int, stop: trio.Event) -> None:
        async with client.producer(f"power-{number}") as producer:
            await run_sender(Sender(number, producer, queues, history), RATE, stop)

    async def read_back() -> None:
        async with trimq.connect(cluster.namesrv_address) as client:
            await read_everything(client, cluster, queues, history)

    try:
        cluster.start()
        wait_ready_blocking(cluster)
        trio.run(load)
        cluster.stop()
        disk.restore()
        cluster.write_configuration()
        cluster.start()
        wait_ready_blocking(cluster)
        trio.run(read_back)
    finally:
        cluster.stop()
    return judge(history)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    reason = available(tmp_path / "probe")
    if reason is not None:
        pytest.skip(f"a real power cut {reason}; the simulator's disk covers it")
    with loop_disk(tmp_path / "disk", megabytes=DISK_MB) as found:
        yield found


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_power_cut_of_all_nodes_loses_nothing_acknowledged(disk: LoopDisk) -> None:
    verdict = cut_under_load(LocalCluster, disk)
    print(f"acked {verdict.acked}, unknown {verdict.unknown}, violations {verdict.violations}")
    assert verdict.acked > LOAD_S * RATE
    assert verdict.violations == 0, verdict.examples


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_drill_catches_nodes_that_lie_about_fsync(disk: LoopDisk) -> None:
    try:
        verdict = cut_under_load(LyingCluster, disk)
    except Exception as error:  # the stores refuse to start: that is "caught" too
        print(f"refused: {error}")
        return
    assert verdict.lost > 0
