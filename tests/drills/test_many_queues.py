"""A thousand queues over three groups: started, written to, restarted; the times and the memory are printed."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

import trimq
from tests.drills.support import local_cluster, quiet, read_and_judge
from trimq.drill.history import History
from trimq.drill.load import Sender, warm_up
from trimq.remoting.client import open_remoting_client
from trimq.remoting.system import AnyioNetwork, SystemClock
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import wait_ready_blocking

QUEUES_PER_GROUP = 334
IN_FLIGHT = 100
READY_WITHIN_S = 20.0
RESIDENT_MAX_MB = 300


def resident_mb(cluster: LocalCluster, node: str) -> int:
    """Resident memory of a node's process."""
    status = Path(f"/proc/{cluster.pids[node]}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


def memory(cluster: LocalCluster) -> str:
    return ", ".join(f"{node} {resident_mb(cluster, node)} MB" for node in cluster.nodes)


async def send_to_all(client: trimq.Client, queues: list[trimq.Queue], history: History) -> None:
    async with client.producer("many") as producer:
        sender = Sender(1, producer, queues, history)
        await sender.send_one()
        room = trio.Semaphore(IN_FLIGHT)

        async def one() -> None:
            await sender.send_one()
            room.release()

        async with trio.open_nursery() as nursery:
            for _ in queues[1:]:
                await room.acquire()
                nursery.start_soon(one)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_thousand_queues_start_take_messages_and_restart(tmp_path: Path) -> None:
    history = History()
    clock = SystemClock()
    queues: list[trimq.Queue] = []

    async def fill(cluster: LocalCluster) -> None:
        async with (
            open_remoting_client(AnyioNetwork()) as asker,
            trimq.connect(cluster.namesrv_address) as client,
        ):
            begun = trio.current_time()
            queues.extend(await warm_up(client, "many", cluster.groups, QUEUES_PER_GROUP))
            print(f"{len(queues)} queues created and routed in {trio.current_time() - begun:.2f} s")
            begun = trio.current_time()
            await send_to_all(client, queues, history)
            print(f"a message to each in {trio.current_time() - begun:.2f} s")
            for group in cluster.groups:
                await quiet(asker, cluster, group)

    async def read(cluster: LocalCluster) -> None:
        async with trimq.connect(cluster.namesrv_address) as client:
            begun = trio.current_time()
            verdict = await read_and_judge(client, cluster, queues, history)
            print(f"all read through every node in {trio.current_time() - begun:.1f} s; acked {verdict.acked}")
            assert verdict.violations == 0, verdict.examples
            assert verdict.acked == len(queues) == 3 * QUEUES_PER_GROUP

    with local_cluster(tmp_path, groups=3) as cluster:
        print(f"empty: {memory(cluster)}")
        trio.run(fill, cluster)
        print(f"filled: {memory(cluster)}")
        for way, stop in (("after a stop", cluster.stop), ("after kill -9", cluster.kill)):
            stop(*cluster.nodes)
            begun_ms = clock.wall_ms()
            cluster.start()
            wait_ready_blocking(cluster)
            took = (clock.wall_ms() - begun_ms) / 1000
            print(f"ready again {way} in {took:.2f} s: {memory(cluster)}")
            assert took < READY_WITHIN_S
        trio.run(read, cluster)
        print(f"read: {memory(cluster)}")
        assert all(resident_mb(cluster, node) < RESIDENT_MAX_MB for node in cluster.nodes)
