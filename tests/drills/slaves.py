"""Master and slaves as processes: what a slave does while the master is down, and what becomes of a given-up tail.

`python -m tests.drills.slaves reads DIR [--down 130]`: three nodes under `sync`; consumers of our client at a fixed
pace; the master is killed (kill -9) and stays down for so many seconds. Two members of one group go on through a slave;
of a second group one member leaves meanwhile and another one takes its place. The master returns. No message may be
consumed twice or never, and the pause of the consumers is printed.

`python -m tests.drills.slaves tail DIR`: a master and a slave, under `sync` and under `async`; the slave is killed,
the master takes 50 messages more, dies, the slave is made the master and takes others; the old master returns. It is
read all the while from its first sign of life on: none of the tail may be served; then both logs are compared byte by
byte.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import trio

import trimq
from tests.drills.support import compare_logs, log_lines, quiet
from trimq import Client, Limits, Message, Queue, Received, Start
from trimq.client.model import SendStatus
from trimq.errors import NotStored, SendUnknown, TrimqError
from trimq.remoting.client import RemotingClient, open_remoting_client
from trimq.remoting.system import AnyioNetwork
from trimq.testing import status
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import wait_ready_blocking
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.group import PromoteMasterHeader

TOPIC = "slaves"
QUEUES = 4
PACE = 25.0
"""Messages a second of one consumer."""
TAIL = 50


@contextmanager
def master_and_slaves(directory: Path, strategy: str, *, nodes: int, flush: str = "sync") -> Iterator[LocalCluster]:
    """A ready cluster of one group whose master is on n0; gone when the block ends."""
    extra = {"mapedFileSizeCommitLog": str(8 << 20)}
    cluster = LocalCluster.create(
        directory, base_port=0, groups=1, nodes=nodes, strategy=strategy, flush=flush, extra=extra
    )
    try:
        cluster.start()
        wait_ready_blocking(cluster)
        yield cluster
    finally:
        cluster.stop()


async def promote(asker: RemotingClient, cluster: LocalCluster, node: str, *, force: bool = False) -> str:
    """Order a node to be the master; "" when it is, else the refusal."""
    (group,) = cluster.groups
    header = PromoteMasterHeader(group=group, node=node, force=force)
    command = Command(code=RequestCode.PROMOTE_MASTER, ext=header.to_ext())
    try:
        answer = await asker.invoke(cluster.client_address(node, group), command)
    except TrimqError as error:
        return str(error)
    return "" if answer.code == ResponseCode.SUCCESS else answer.remark or str(answer.code)


async def formed(asker: RemotingClient, cluster: LocalCluster, node: str, *, within_s: float = 30.0) -> None:
    """Wait until the replica on a node answers and belongs to its group."""
    with trio.fail_after(within_s):
        while True:
            if (await status.ask(asker, cluster))[cluster.groups[0]].replicas[node]["role"] not in ("down", "unformed"):
                return
            await trio.sleep(0.05)


async def whole(asker: RemotingClient, cluster: LocalCluster, *, within_s: float = 40.0) -> None:
    """Wait until a master counts every node in sync."""
    with trio.fail_after(within_s):
        while True:
            if len((await status.ask(asker, cluster))[cluster.groups[0]].in_sync) == len(cluster.nodes):
                return
            await trio.sleep(0.05)


async def send(client: Client, queue: Queue, bodies: list[bytes]) -> list[bytes]:
    """Send all at once, in order; returns what was acknowledged in the promise's sense (code 0) within 2 s."""
    acked: list[bytes] = []
    async with client.producer("slaves-drill") as producer:

        async def one(body: bytes) -> None:
            try:
                receipt = await producer.send(Message(topic=queue.topic, body=body), queue=queue)
            except (NotStored, SendUnknown):
                return  # the client knows of our 2 s: it may end a send by its own word before it is cancelled
            if receipt.status is SendStatus.OK:
                acked.append(body)

        with trio.move_on_after(2):
            async with trio.open_nursery() as nursery:
                for body in bodies:
                    nursery.start_soon(one, body)
                    await trio.lowlevel.checkpoint()
    return acked


async def read_through(client: Client, cluster: LocalCluster, node: str, queue: Queue) -> list[bytes]:
    """Every message of a queue that a node gives."""
    found: list[bytes] = []
    address = cluster.client_address(node, queue.group)
    async with client.pull() as consumer:
        offset = 0
        while True:
            batch = await consumer.read(queue, offset, max=256, wait=0.3, replica=address)
            if not batch.messages and batch.next_offset == offset:
                return found
            found += [message.body for message in batch.messages]
            offset = batch.next_offset


async def make_topic(client: Client, cluster: LocalCluster, queues: int) -> list[Queue]:
    """The drill's topic, known to the name server."""
    await client.admin.create_topic(TOPIC, queues=queues, groups=list(cluster.groups))
    return list((await client.admin.route(TOPIC)).write_queues)


# reads


@dataclass
class Reads:
    """What `reads` prints."""

    sent: int = 0
    down_s: float = 0.0
    consumed_while_down: int = 0
    consumed: int = 0
    again: int = 0
    """Messages that a consumer group got more than once."""
    never: int = 0
    longest_pause_ms: float = 0.0
    """Of the pair of consumers, at their pace, from before the kill to the end."""
    examples: list[str] = field(default_factory=list)


async def serve_reads(cluster: LocalCluster, down_s: float) -> Reads:
    figures = Reads(down_s=down_s)
    seen: dict[str, Counter[bytes]] = {"pair": Counter(), "relay": Counter()}
    times: list[float] = []
    count = round(2 * PACE * (down_s + 40))

    async def consume(client: Client, group: str, stop: trio.Event) -> None:
        async def note(message: Received) -> None:
            seen[group][message.body] += 1
            if group == "pair":
                times.append(trio.current_time())

        limits = Limits(per_second=PACE if group == "pair" else PACE / 2)
        async with (
            client.subscribe(TOPIC, group=group, start=Start.FIRST, limits=limits) as consumer,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(consumer.run, note)
            await stop.wait()
            nursery.cancel_scope.cancel()

    async with (
        trimq.connect(cluster.namesrv_address) as one,
        trimq.connect(cluster.namesrv_address) as two,
        open_remoting_client(AnyioNetwork()) as asker,
    ):
        queues = await make_topic(one, cluster, QUEUES)
        bodies = [b"%d" % number for number in range(count)]
        for number, queue in enumerate(queues):
            assert len(await send(one, queue, bodies[number::QUEUES])) == len(bodies[number::QUEUES])
        figures.sent = count
        over, first_leaves = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume, one, "pair", over)
            nursery.start_soon(consume, two, "pair", over)
            nursery.start_soon(consume, one, "relay", first_leaves)
            await trio.sleep(10)
            killed = trio.current_time()
            cluster.kill("n0")
            before = sum(len(each) for each in seen.values())
            await trio.sleep(down_s / 2)
            first_leaves.set()
            await trio.sleep(5)
            nursery.start_soon(consume, two, "relay", over)
            await trio.sleep_until(killed + down_s)
            figures.consumed_while_down = sum(len(each) for each in seen.values()) - before
            cluster.start("n0")
            await whole(asker, cluster)
            with trio.move_on_after(80):
                while len(seen["pair"]) < count:  # noqa: ASYNC110 - the counters are plain values
                    await trio.sleep(0.2)
            over.set()
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    figures.longest_pause_ms = round(max(pauses) * 1000, 1)
    figures.consumed = sum(len(each) for each in seen.values())
    for group, each in seen.items():
        again = [body for body, times_seen in each.items() if times_seen > 1]
        figures.again += len(again)
        figures.examples += [f"{group}: {body!r}" for body in again[:5]]
    figures.never = count - len(seen["pair"])
    return figures


# tail


@dataclass
class Tail:
    """What `tail` prints, per strategy."""

    strategy: str
    acked: int
    tail: int
    tail_acked: int
    """Acknowledged by the old master alone: `async` may, `sync` may not."""
    lost: int
    """Acknowledged before the tail and not found."""
    looks: int
    """Answers of the old master to readers, from its first one on."""
    served: int
    """Messages of the tail in them."""
    compared_bytes: int
    reopened: bool


async def give_up_a_tail(cluster: LocalCluster) -> Tail:
    (group,) = cluster.groups
    async with (
        trimq.connect(cluster.namesrv_address) as client,
        open_remoting_client(AnyioNetwork()) as asker,
    ):
        (queue,) = await make_topic(client, cluster, 1)
        acked = await send(client, queue, [b"both %d" % number for number in range(100)])
        await quiet(asker, cluster, group)
        cluster.kill("n1")
        await trio.sleep(1)
        tail = [b"tail %d" % number for number in range(TAIL)]
        tail_acked = await send(client, queue, tail)
        cluster.kill("n0")
        cluster.start("n1")
        await formed(asker, cluster, "n1")
        refusal = await promote(asker, cluster, "n1")
        if refusal:
            assert cluster.strategy == "async", refusal
            assert not await promote(asker, cluster, "n1", force=True)
        acked += await send(client, queue, [b"new %d" % number for number in range(100)])
        old_log = cluster.log_path("n0").stat().st_size
        served: set[bytes] = set()
        looks = 0
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal looks
                address = cluster.client_address("n0", group)
                async with client.pull() as consumer:
                    while True:
                        for offset in (0, 100):
                            try:
                                batch = await consumer.read(queue, offset, max=256, wait=0, replica=address)
                            except TrimqError:
                                continue
                            looks += 1
                            served.update(message.body for message in batch.messages)
                        await trio.sleep(0.005)

            nursery.start_soon(watch)
            cluster.start("n0")
            await whole(asker, cluster)
            end = await quiet(asker, cluster, group)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        found = [await read_through(client, cluster, node, queue) for node in cluster.nodes]
    assert found[0] == found[1], "the replicas differ"
    said = log_lines(cluster, "n0", since=old_log)
    cluster.stop("n0", "n1")
    return Tail(
        strategy=cluster.strategy,
        acked=len(acked),
        tail=TAIL,
        tail_acked=len(tail_acked),
        lost=len(set(acked) - set(found[0])),
        looks=looks,
        served=len(served & set(tail)),
        compared_bytes=compare_logs(cluster, group, "n0", "n1", end),
        reopened="goes another way" in said,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.drills.slaves")
    parser.add_argument("what", choices=["reads", "tail"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--down", type=float, default=130.0, help="seconds without a master")
    arguments = parser.parse_args()
    bad = False
    if arguments.what == "reads":
        with master_and_slaves(arguments.directory, "sync", nodes=3) as cluster:
            figures = trio.run(serve_reads, cluster, arguments.down)
        print(json.dumps(asdict(figures)))
        bad = bool(figures.again or figures.never)
    else:
        for strategy in ("sync", "async"):
            with master_and_slaves(arguments.directory / strategy, strategy, nodes=2) as cluster:
                tail = trio.run(give_up_a_tail, cluster)
            print(json.dumps(asdict(tail)), flush=True)
            bad = bad or bool(tail.served or tail.lost) or (strategy == "sync" and tail.tail_acked > 0)
    sys.exit(bad)


if __name__ == "__main__":
    main()
