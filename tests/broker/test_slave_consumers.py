"""Consumers of our client at the slaves: sent there because they lag, and left there while the master is down."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from trio.testing import MockClock

from broker.config import Strategy
from broker.processor.pull_message import PullProcessor
from broker.processor.request import Typed
from broker.replication.base import ReplyTo
from tests.broker.cluster import NAMESRV, in_sync, open_master_slave, until
from tests.broker.support import LoopClock, World, open_user
from trimq import Received, Start
from trimq.client.client import Client, open_client
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.pull import PullHeader

pytestmark = pytest.mark.trio


def connect(world: World, host: str) -> AbstractAsyncContextManager[Client]:
    return open_client(NAMESRV, world.at(host), LoopClock(), random.Random(host), client_id=host)


@pytest.fixture
def pulls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each broker host was asked for messages."""
    counted: Counter[str] = Counter()
    pull = PullProcessor.pull

    def counting(self: PullProcessor, request: Typed[PullHeader], reply: ReplyTo) -> bytes | None:
        counted[reply.local.partition(":")[0]] += 1
        return pull(self, request, reply)

    monkeypatch.setattr(PullProcessor, "pull", counting)
    return counted


async def test_a_consumer_that_lags_reads_from_the_slave_it_is_sent_to(
    autojump_clock: MockClock, pulls: Counter[str]
) -> None:
    world = World(memory_bytes=1 << 20)  # one percent of it is less than the messages below
    async with open_master_slave(Strategy.SYNC, slaves=1, world=world, slave_read=True, memory_ratio=1) as cluster:
        async with open_user(world, cluster.nodes[0].replica().address) as user:
            for _ in range(400):
                assert (await user.send("T", b"x" * 2000)).code == ResponseCode.SUCCESS
        async with connect(world, "10.0.5.1") as client, client.pull() as consumer:
            (queue, *_) = [each for each in await consumer.queues("T") if each.id == 0]
            await consumer.assign({queue: Start.FIRST})
            got = 0
            while got < 400:
                got += len(await consumer.poll(max=4))
        assert pulls["10.0.0.2"] > 0, "the slave was asked"


async def test_consumers_go_on_through_a_slave_and_nothing_is_consumed_again(
    autojump_clock: MockClock, pulls: Counter[str]
) -> None:
    async with open_master_slave(Strategy.SYNC, slaves=1) as cluster:
        world, (master, slave) = cluster.world, cluster.nodes
        async with open_user(world, master.replica().address) as user:
            for number in range(200):
                await user.send("T", b"%d" % number)
        await until(lambda: slave.replica().store.dispatched == master.replica().store.dispatched)
        seen: Counter[bytes] = Counter()
        pace = 0.2

        async def note(message: Received) -> None:
            seen[message.body] += 1
            await trio.sleep(pace)

        async with (
            connect(world, "10.0.5.1") as first,
            connect(world, "10.0.5.2") as second,
            trio.open_nursery() as nursery,
        ):
            async with first.subscribe("T", group="g", start=Start.FIRST) as consumer:
                nursery.start_soon(consumer.run, note)
                await until(lambda: len(seen) > 30)
                await master.kill()
                pulls.clear()
                await until(lambda: len(seen) > 90, 60)
                assert pulls["10.0.0.2"] > 0
            await trio.sleep(60)  # the master is down for minutes; the group's next member starts meanwhile
            before = len(seen)
            async with second.subscribe("T", group="g", start=Start.FIRST) as consumer:
                nursery.start_soon(consumer.run, note)
                await until(lambda: len(seen) > before + 30, 60)
                await master.start()
                await until(lambda: len(in_sync(cluster)) == 2)
                await until(lambda: len(seen) == 200, 120)
                await trio.sleep(10)
        assert set(seen.values()) == {1}, [body for body, times in seen.items() if times > 1]
