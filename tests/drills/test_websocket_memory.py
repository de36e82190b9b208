"""Consumers that ask by WebSocket and never read, at a real broker: its memory stays bounded, others do not notice."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import BytesMessage, Request

import trimq
from tests.drills.support import local_cluster, send_bulk
from trimq.drill.history import History
from trimq.remoting.websocket import PORT_OFFSET
from trimq.testing.status import query
from trimq.wire.codes import RequestCode
from trimq.wire.command import Command, encode
from trimq.wire.headers.pull import PullFlag, PullHeader

DEAF = 6
PULLS = 2_000
MEGABYTES = 16
BOUND_BYTES = 8 << 20
"""Of answers that wait for one client, nothing more is read from it (Limits.queued_high_bytes)."""


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


async def ask_and_never_read(port: int, queue: trimq.Queue, asked: list[int]) -> None:
    """Pull the same quarter of a MiB again and again."""
    ws = WSConnection(ConnectionType.CLIENT)
    header = PullHeader(
        consumer_group="deaf",
        topic=queue.topic,
        queue_id=queue.id,
        queue_offset=0,
        max_msg_nums=32,
        sys_flag=int(PullFlag.SUBSCRIPTION),
        commit_offset=0,
        suspend_timeout_millis=0,
        subscription="*",
    )
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(ws.send(Request(host="h", target="/")))
        ws.receive_data(await stream.receive_some(65536))
        for opaque in range(PULLS):
            frame = encode(Command(code=RequestCode.PULL_MESSAGE, opaque=opaque, ext=header.to_ext()))
            await stream.send_all(ws.send(BytesMessage(data=frame)))
            asked[0] += 1
            if opaque % 16 == 15:
                await trio.sleep(0.02)  # so that the broker sees some, and not all, at once
        await trio.sleep_forever()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_consumers_that_never_read_do_not_fill_the_brokers_memory(tmp_path: Path) -> None:
    with local_cluster(tmp_path, groups=1) as cluster:
        leader = query(cluster)["broker-a"].leader
        assert leader is not None
        pid, port = cluster.pids[leader], cluster.layout.client(cluster.nodes.index(leader), 0) + PORT_OFFSET

        async def main() -> None:
            async with trimq.connect(cluster.namesrv_address) as client:
                await client.admin.create_topic("deaf", queues=1)
                queue = trimq.Queue("deaf", "broker-a", 0)
                await send_bulk(client, [queue], History(), number=1, megabytes=MEGABYTES)
                before, asked, most = resident_bytes(pid), [0], 0
                async with trio.open_nursery() as nursery:
                    for _ in range(DEAF):
                        nursery.start_soon(ask_and_never_read, port, queue, asked)
                    for number in range(200):
                        assert (await client.send("hearing", b"%d" % number)).offset >= 0
                        most = max(most, resident_bytes(pid))
                        await trio.sleep(0.02)
                    nursery.cancel_scope.cancel()
                grown = most - before
                wanted = asked[0] * (256 << 10)
                print(f"asked for {wanted >> 20:,} MiB and never read; the broker grew by {grown >> 20} MiB")
                assert wanted > 4 * DEAF * BOUND_BYTES, "enough was asked for to prove something"
                # Twice: answers of one pass come on top, and what Python's allocator keeps.
                assert grown < 2 * DEAF * BOUND_BYTES

        trio.run(main)
