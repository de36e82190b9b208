"""A follower that was away for so long that the leader's retention has removed what it needs: it is given the files.

The messages that only the removed segments held are gone by the operator's own rule; everything that the leader still
has must be readable through the follower, and the log files of both must be equal byte by byte.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

import trimq
from tests.drills.support import (
    SEGMENT_BYTES,
    compare_logs,
    local_cluster,
    log_lines,
    quiet,
    segments,
    send_bulk,
    told_by,
    until,
)
from trimq.drill.history import History, Value, read_body
from trimq.drill.load import warm_up
from trimq.remoting.client import open_remoting_client
from trimq.remoting.system import AnyioNetwork
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import ask, wait_ready

GROUP = "broker-a"
RESERVED_S = 5


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_follower_whose_entries_are_gone_is_installed_and_catches_up(tmp_path: Path) -> None:
    with local_cluster(tmp_path, groups=1, fileReservedSeconds=str(RESERVED_S)) as cluster:
        trio.run(away_for_too_long, cluster)


async def away_for_too_long(cluster: LocalCluster) -> None:
    history = History()
    async with (
        open_remoting_client(AnyioNetwork()) as asker,
        trimq.connect(cluster.namesrv_address) as client,
    ):
        queues = await warm_up(client, "install", cluster.groups, 2)
        await send_bulk(client, queues, history, number=1, megabytes=6)
        await quiet(asker, cluster, GROUP)
        leader = (await ask(asker, cluster))[GROUP].leader
        away, *others = [node for node in cluster.nodes if node != leader]
        await trio.to_thread.run_sync(cluster.stop, away)
        had = int((await told_by(asker, cluster, others[0], GROUP))["last"])

        await send_bulk(client, queues, history, number=2, megabytes=40)
        # A clean stop writes a snapshot; retention needs two that cover what it removes.
        staying = [node for node in cluster.nodes if node != away]
        for number in (3, 4):
            await send_bulk(client, queues, history, number=number, megabytes=1)
            await trio.to_thread.run_sync(cluster.stop, *staying)
            cluster.start(*staying)
            with trio.fail_after(30):
                await wait_ready(asker, cluster)
        for node in staying:
            await until(partial(_begins_late, cluster, node), f"{node} removes segments")
        first = min([int((await told_by(asker, cluster, node, GROUP))["first"]) for node in staying])
        assert first > had + 1, "the follower could still be given entries"

        await send_bulk(client, queues, history, number=5, megabytes=2)
        log_at = cluster.log_path(away).stat().st_size
        begun = trio.current_time()
        cluster.start(away)
        end = await quiet(asker, cluster, GROUP)
        took = trio.current_time() - begun
        assert log_lines(cluster, away, since=log_at).count(" installed from a peer ") == 1
        leader = (await ask(asker, cluster))[GROUP].leader or ""
        compared = compare_logs(cluster, GROUP, away, leader, end)

        await same_messages(client, cluster, queues, away, leader)
        await send_bulk(client, queues, history, number=6, megabytes=1)  # and it goes on by entries
        end = await quiet(asker, cluster, GROUP)
        compare_logs(cluster, GROUP, away, leader, end)
        sent = len(history.sends)
        print(
            f"installed after {took:.1f} s: it had {had} entries, the others begin at {first}; "
            f"{compared:,} bytes equal, {sent} sent"
        )


def _begins_late(cluster: LocalCluster, node: str) -> bool:
    return segments(cluster, node, GROUP)[0] > SEGMENT_BYTES


async def same_messages(
    client: trimq.Client, cluster: LocalCluster, queues: list[trimq.Queue], one: str, other: str
) -> None:
    """What one node gives of each queue, from the first offset that both have, the other gives too."""
    async with client.pull() as consumer:
        for queue in queues:
            _, end = await consumer.bounds(queue)
            readings = []
            for node in (one, other):
                address, offset = cluster.client_address(node, queue.group), 0
                found: dict[int, Value | None] = {}
                with trio.fail_after(30):
                    while offset < end:
                        batch = await consumer.read(queue, offset, max=256, wait=0.5, replica=address)
                        found |= {message.offset: read_body(message.body) for message in batch.messages}
                        # A replica that does not lead corrects nobody's offset; it does say where its own log begins.
                        offset = max(batch.next_offset, batch.first_offset)
                readings.append(found)
            left, right = readings
            common = range(max(min(left), min(right)), end)
            assert len(common) > 20
            assert [left[at] for at in common] == [right[at] for at in common]
            assert None not in left.values()
