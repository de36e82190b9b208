"""Strict order in a replicated group, on a clock that jumps: producers and consumers of the library itself.

1 producer, 64 keys, 8 queues, ordered consumers joining and leaving, leaders killed. Consumer lists and lock owners are
compared before and after each kill. (The same on real processes: `tests/drills/test_order.py`.)
"""

from __future__ import annotations

import random
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from broker.runtime import Replica
from tests.broker.cluster import Cluster, open_cluster, until
from tests.broker.support import LoopClock, World
from tests.broker.test_registration import NAMESRV, name_server
from tests.support.order_history import OrderHistory
from trimq import Client, Message, PushConsumer, Received, Start
from trimq.client.allocate import allocate_averagely
from trimq.client.client import open_client
from trimq.client.model import Queue

pytestmark = pytest.mark.trio

KEYS, QUEUES, RATE = 64, 8, 40
TOPIC, GROUP = "ordered", "orderly"


class Member:
    def __init__(self, world: World, name: str, history: OrderHistory) -> None:
        self.name = name
        self.consumer: PushConsumer | None = None
        self._world = world
        self._history = history
        self._leave = trio.Event()
        self._left = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(connect(self._world, self.name))
            self.consumer = await stack.enter_async_context(
                client.subscribe(TOPIC, group=GROUP, ordered=True, start=Start.FIRST)
            )
            nursery = await stack.enter_async_context(trio.open_nursery())
            await nursery.start(self.consumer.run, self._handle)
            task_status.started()
            await self._leave.wait()
            self.consumer.stop()
        self._left.set()

    async def _handle(self, message: Received) -> None:
        key, number = message.body.decode().split(":")
        self._history.enter(message.queue, self.name)
        await trio.sleep(0.01)
        self._history.leave(message.queue, self.name, key, int(number))

    async def leave(self) -> None:
        self._leave.set()
        await self._left.wait()

    @property
    def queues(self) -> list[int]:
        assert self.consumer is not None
        return sorted(queue.id for queue in self.consumer.assignment if queue.topic == TOPIC)


def connect(world: World, name: str) -> AbstractAsyncContextManager[Client]:
    host = f"10.0.7.{sum(map(ord, name)) % 200 + 1}"
    return open_client(NAMESRV, world.at(host), LoopClock(), random.Random(name), client_id=name)


def owners(replica: Replica) -> dict[int, str]:
    """Queue → who holds its lock, by the log."""
    info = replica.state.topics.get(TOPIC.encode())
    assert info is not None
    found = replica.state.locks.all()
    return {key & 0xFFFF: owner for (_, key), owner in found if key >> 16 == info.tid}


class Drill:
    def __init__(self, cluster: Cluster, rounds: int) -> None:
        self.cluster, self.rounds = cluster, rounds
        self.history = OrderHistory()
        self.sent = {f"k{number}": 0 for number in range(KEYS)}
        self.members: list[Member] = []
        self._rng = random.Random(f"order/{rounds}")
        self._names = 0
        self._stop = trio.Event()

    async def run(self) -> None:
        world = self.cluster.world
        async with connect(world, "producer") as mq, trio.open_nursery() as nursery:
            await mq.admin.create_topic(TOPIC, queues=QUEUES)
            await self._join(nursery)
            await self._join(nursery)
            nursery.start_soon(self._produce, mq)
            for _ in range(self.rounds):
                if len(self.members) > 2 and (len(self.members) > 4 or self._rng.random() < 0.5):
                    await self.members.pop(self._rng.randrange(len(self.members))).leave()
                else:
                    await self._join(nursery)
                await until(self._settled, 30)
                await self._kill()
            self._stop.set()
            await until(lambda: not self.history.missing(self.sent), 90)
            for member in self.members:
                await member.leave()
            nursery.cancel_scope.cancel()

    async def _join(self, nursery: trio.Nursery) -> None:
        self._names += 1
        member = Member(self.cluster.world, f"member-{self._names:02}", self.history)
        await nursery.start(member.run)
        self.members.append(member)

    async def _produce(self, mq: Client) -> None:
        async with mq.producer() as producer, producer.stream() as stream:
            while not self._stop.is_set():
                key = f"k{self._rng.randrange(KEYS)}"
                await stream.send(Message(topic=TOPIC, body=f"{key}:{self.sent[key]}".encode(), order_key=key))
                self.sent[key] += 1
                await trio.sleep(1 / RATE)

    def _settled(self) -> bool:
        """Every member reads its share, and is the owner of the locks by the log."""
        leader = self.cluster.leader()
        if leader is None:
            return False
        wanted = {queue: member.name for member in self.members for queue in member.queues}
        listed = sorted(member.name for member in self.members)
        queues = [Queue(TOPIC, "broker-a", each) for each in range(QUEUES)]
        shares = {queue.id: name for name in listed for queue in allocate_averagely(queues, listed, name)}
        info = leader.replica().state.groups.get(GROUP)
        assert info is not None
        logged = sorted(leader.replica().state.members.sets.get(info.gid, ()))
        return owners(leader.replica()) == wanted == shares and logged == listed

    async def _kill(self) -> None:
        leader = await self.cluster.ready()
        before = owners(leader.replica())
        wanted = {member.name: member.queues for member in self.members}
        await leader.kill()
        successor = await self.cluster.ready()
        assert successor is not leader
        assert owners(successor.replica()) == before, "the owners of the locks are in the log"
        await trio.sleep(self._rng.uniform(0.5, 2))
        assert self._settled(), "nobody took a queue that had an owner, and nobody is missing"
        assert {member.name: member.queues for member in self.members} == wanted
        await leader.start()
        await until(lambda: leader.replica().replicator.leader.leader_id)


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(400)])])
async def test_order_is_kept_through_kills_and_rebalances(autojump_clock: MockClock, rounds: int) -> None:
    world = World()
    async with name_server(world), open_cluster(world=world, namesrv=(NAMESRV,)) as cluster:
        await cluster.ready()
        drill = Drill(cluster, rounds)
        await drill.run()
    history = drill.history
    print(
        f"order: kills={rounds} sent={sum(drill.sent.values())} processed={history.processed}"
        f" redelivered={history.redelivered} swaps={len(history.swaps)} gaps={len(history.gaps)}"
        f" overlaps={len(history.overlaps)}"
    )
    assert (history.swaps, history.gaps, history.overlaps) == ([], [], [])
    assert history.missing(drill.sent) == []
    assert history.processed >= sum(drill.sent.values()) > 0
