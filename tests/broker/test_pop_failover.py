"""Pop in a replicated group: what was taken, acknowledged and prolonged is the same under the next leader."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from tests.broker.cluster import Cluster, open_cluster, until
from tests.broker.pop_user import Popped, PopUser
from tests.broker.support import open_user
from tests.broker.test_pop import create, send
from trimq.errors import Disconnected

pytestmark = pytest.mark.trio


async def settled(cluster: Cluster) -> None:
    """All replicas have applied the same."""
    await until(lambda: len({node.replica().store.dispatched for node in cluster.nodes if node.broker}) == 1)


async def test_handles_and_acknowledgements_survive_a_failover(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        async with open_user(cluster.world, leader.replica().address) as user:
            await create(user, "T", 4)
            consumer = PopUser(user, "g", "T")
            await send(consumer, 20)
            taken = await consumer.pop(20, invisible_ms=20_000)
            assert await consumer.ack_all(taken[:8]) == 0
            assert await consumer.hide(taken[8], 120_000) == 0
        await leader.kill()
        successor = await cluster.ready()
        assert successor is not leader
        async with open_user(cluster.world, successor.replica().address) as user:
            consumer = PopUser(user, "g", "T")
            assert await consumer.pop() == [], "still invisible"
            assert [await consumer.ack(each) for each in taken[9:14]] == [0] * 5, "the handles count"
            back: list[Popped] = []
            with trio.move_on_after(40):
                while len(back) < 6:
                    back += await consumer.pop(hold_ms=10_000, invisible_ms=60_000)
            assert sorted(each.body for each in back) == sorted(each.body for each in taken[14:])
            assert await consumer.ack(taken[8]) == 0, "prolonged before the failover"
            assert await consumer.ack_all(back) == 0
            await trio.sleep(1)
            assert cluster.nodes[0] is not None
            assert successor.replica().state.pop.invisible == 0
        await leader.start()
        await settled(cluster)
        assert leader.replica().state.pop.flat() == successor.replica().state.pop.flat()


async def test_a_pop_that_waits_is_let_go_when_its_leader_is_deposed(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        async with open_user(cluster.world, leader.replica().address) as user:
            await create(user, "T", 4)
            consumer = PopUser(user, "g", "T")
            answers: list[tuple[int, str]] = []

            async def wait() -> None:
                answer = await consumer.ask(hold_ms=25_000)
                answers.append((answer.code, answer.ext.get("leaderId", "")))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(1)
                await leader.replica().replicator.transfer()
                await trio.sleep(1)
                assert answers
                assert answers[0][0] == 210
        assert trio.current_time() < 10


async def test_a_pop_at_a_follower_is_passed_on(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        await cluster.ready()
        follower = cluster.followers()[0]
        async with open_user(cluster.world, follower.replica().address) as user:
            await create(user, "T", 4)
            consumer = PopUser(user, "g", "T")
            await send(consumer, 3)
            taken = await consumer.pop(hold_ms=1_000)
            assert len(taken) == 3
            assert await consumer.ack_all(taken) == 0
            began = trio.current_time()
            assert await consumer.pop(hold_ms=25_000) == []
            assert 9 < trio.current_time() - began < 12, "no longer than the other replica waits for an answer"


async def test_ordered_batches_survive_a_failover(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        async with open_user(cluster.world, leader.replica().address) as user:
            await create(user, "T", 1)
            consumer = PopUser(user, "g", "T")
            await send(consumer, 6, queues=1)
            taken = await consumer.pop(3, order=True, invisible_ms=15_000)
            assert await consumer.ack(taken[0]) == 0
        await leader.kill()
        successor = await cluster.ready()
        async with open_user(cluster.world, successor.replica().address) as user:
            consumer = PopUser(user, "g", "T")
            assert await consumer.pop(3, order=True) == []
            assert await consumer.ack(taken[1]) == 0
            again = await consumer.pop(3, order=True, hold_ms=25_000)
            assert [(each.body, each.count) for each in again] == [(b"2", 1), (b"3", 0), (b"4", 0)]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
async def test_kills_lose_nothing_and_bring_nothing_back(autojump_clock: MockClock, seed: int) -> None:
    """Consumers die with messages in hand, leaders are killed: each message gets done, and once told stays so."""
    rng = random.Random(f"pop/{seed}")
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        count = 40 if not seed else 200
        told: set[bytes] = set()
        processed: dict[bytes, int] = {}
        async with open_user(cluster.world, leader.replica().address) as user:
            await create(user, "T", 4)
            await send(PopUser(user, "g", "T"), count)

        async def consume(number: int) -> None:
            while len(told) < count:
                node = cluster.leader() or rng.choice([each for each in cluster.nodes if each.broker is not None])
                try:
                    async with open_user(
                        cluster.world, node.replica().address, host=f"10.0.8.{number + 1}"
                    ) as connection:
                        await some(PopUser(connection, "g", "T"))
                except Disconnected:
                    await trio.sleep(0.1)

        async def some(consumer: PopUser) -> None:
            for _ in range(rng.randrange(1, 6)):
                answer = await consumer.ask(rng.randrange(1, 5), invisible_ms=3_000, hold_ms=500)
                for each in consumer.taken(answer) if answer.code == 0 else ():
                    assert each.body not in told, "what was told to be done came back"
                    processed[each.body] = processed.get(each.body, 0) + 1
                    if rng.random() < 0.15:
                        return  # dies with what it has in hand
                    if await consumer.ack(each) == 0:
                        told.add(each.body)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(consume, number)
            for _ in range(3 if seed else 2):
                await trio.sleep(1.5)
                victim = await cluster.ready()
                await victim.kill()
                await cluster.ready()
                await victim.start()
        assert len(told) == count
        assert len(processed) == count
        now = await cluster.ready()
        await trio.sleep(5)
        assert now.replica().state.pop.invisible == 0, "nothing is invisible for ever"
