"""Strict order through kills and rebalances: 1 producer, 64 keys, 8 queues, ordered consumers joining and leaving.

Each round a consumer joins or leaves, then the group's leader is killed. Before and after each kill the consumer list
and the owners of all queue locks are compared. A campaign sets TRIMQ_DRILL_ROUNDS; the suite keeps to a few.
"""

from __future__ import annotations

import itertools
import os
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

import trimq
from tests.drills.support import local_cluster
from tests.support.order_history import OrderHistory
from trimq.client.broker_api import BrokerApi
from trimq.drill.faults import mend, strike
from trimq.drill.kinds import Fault
from trimq.errors import TrimqError
from trimq.remoting.client import open_remoting_client
from trimq.remoting.system import AnyioNetwork
from trimq.testing import status
from trimq.testing.local_cluster import LocalCluster

ROUNDS = int(os.environ.get("TRIMQ_DRILL_ROUNDS", "3"))
KEYS, QUEUES, RATE = 64, 8, 150
TOPIC, GROUP = "ordered", "orderly"


def test_the_judge_sees_what_it_is_there_for() -> None:
    history = OrderHistory()
    for number in (0, 1, 1, 3, 2):
        history.enter("q", "c")
        history.leave("q", "c", "k", number)
    assert (history.redelivered, history.gaps, history.swaps) == (1, ["k: 3 after 1"], ["k: 2 after 3"])
    history.enter("q", "c")
    history.enter("q", "d")
    assert history.overlaps == ["q: d while c"]
    assert history.missing({"k": 4, "l": 1}) == ["l"]


class Member:
    """One consumer, with a client of its own."""

    def __init__(self, name: str, namesrv: str, history: OrderHistory) -> None:
        self.name = name
        self.consumer: trimq.PushConsumer | None = None
        self.api: BrokerApi | None = None
        self._namesrv = namesrv
        self._history = history
        self._leave = trio.Event()
        self._left = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(trimq.connect(self._namesrv, client_id=self.name))
                self.api = BrokerApi(client.instance)
                self.consumer = await stack.enter_async_context(
                    client.subscribe(TOPIC, group=GROUP, ordered=True, start=trimq.Start.FIRST)
                )
                nursery = await stack.enter_async_context(trio.open_nursery())
                await nursery.start(self.consumer.run, self._handle)
                task_status.started()
                await self._leave.wait()
                self.consumer.stop()
        finally:
            self._left.set()

    async def _handle(self, message: trimq.Received) -> None:
        key, number = message.body.decode().split(":")
        self._history.enter(message.queue, self.name)
        try:
            await trio.sleep(0.002)
        except trio.Cancelled:
            self._history.give_up(message.queue, self.name)
            raise
        self._history.leave(message.queue, self.name, key, int(number))

    async def leave(self) -> None:
        self._leave.set()
        await self._left.wait()

    @property
    def queues(self) -> frozenset[trimq.Queue]:
        assert self.consumer is not None
        return frozenset(queue for queue in self.consumer.assignment if queue.topic == TOPIC)


class Drill:
    def __init__(self, cluster: LocalCluster, rounds: int) -> None:
        self.cluster = cluster
        self.rounds = rounds
        self.history = OrderHistory()
        self.sent: dict[str, int] = {f"k{number}": 0 for number in range(KEYS)}
        self.members: list[Member] = []
        self.kills = 0
        self.joins = 0
        self._rng = random.Random(f"order/{rounds}")
        self._names = 0
        self._stop = trio.Event()

    async def run(self) -> None:
        async with trimq.connect(self.cluster.namesrv_address) as mq, trio.open_nursery() as nursery:
            await mq.admin.create_topic(TOPIC, queues=QUEUES)
            await self._join(nursery)
            await self._join(nursery)
            nursery.start_soon(self._produce, mq)
            for number in range(self.rounds):
                if len(self.members) > 2 and (len(self.members) > 4 or self._rng.random() < 0.5):
                    await self.members.pop(self._rng.randrange(len(self.members))).leave()
                else:
                    await self._join(nursery)
                await self._settled()
                await self._kill(number)
            self._stop.set()
            with trio.move_on_after(60):
                while self.history.missing(self.sent):  # noqa: ASYNC110  (a history tells nobody)
                    await trio.sleep(0.1)
            for member in self.members:
                await member.leave()
            nursery.cancel_scope.cancel()

    async def _join(self, nursery: trio.Nursery) -> None:
        self._names += 1
        self.joins += 1
        member = Member(f"member-{self._names:02}", self.cluster.namesrv_address, self.history)
        await nursery.start(member.run)
        self.members.append(member)

    async def _produce(self, mq: trimq.Client) -> None:
        async with mq.producer() as producer, producer.stream() as stream:
            while not self._stop.is_set():
                key = f"k{self._rng.randrange(KEYS)}"
                body = f"{key}:{self.sent[key]}".encode()
                await stream.send(trimq.Message(topic=TOPIC, body=body, order_key=key))
                self.sent[key] += 1
                await trio.sleep(1 / RATE)

    async def _settled(self) -> None:
        """Every member has its share.

        That every queue has an owner is not enough: who joined last may have taken what one gave up, before the others
        have heard of it and give up theirs.
        """
        members = sorted(self.members, key=lambda member: member.name)
        each, more = divmod(QUEUES, len(members))
        ends = [0, *itertools.accumulate(each + (number < more) for number in range(len(members)))]
        shares = [list(range(*share)) for share in itertools.pairwise(ends)]
        with trio.fail_after(30):
            while [sorted(queue.id for queue in member.queues) for member in members] != shares:  # noqa: ASYNC110
                await trio.sleep(0.05)

    async def _owners(self) -> dict[str, list[trimq.Queue]]:
        """Member → the locks that the broker says are its own; a stranger is asked too and must get none."""
        owners: dict[str, list[trimq.Queue]] = {}
        everything = sorted(queue for member in self.members for queue in member.queues)
        group = self.cluster.groups[0]
        for member in self.members:
            assert member.api is not None
            owners[member.name] = sorted(await member.api.lock(GROUP, group, sorted(member.queues)))
        async with trimq.connect(self.cluster.namesrv_address, client_id="stranger") as mq:
            await mq.admin.route(TOPIC)
            owners["stranger"] = sorted(await BrokerApi(mq.instance).lock(GROUP, group, everything))
        return owners

    async def _listed(self) -> list[str]:
        api = self.members[0].api
        assert api is not None
        return await api.members(GROUP, self.cluster.groups[0])

    async def _kill(self, number: int) -> None:
        before = await self._listed(), {member.name: sorted(member.queues) for member in self.members}
        async with open_remoting_client(AnyioNetwork()) as asker:
            leader = (await status.ask(asker, self.cluster))[self.cluster.groups[0]].leader
            assert leader is not None
            began = trio.current_time()
            blow = await strike(self.cluster, Fault.KILL, leader, number)
            with trio.fail_after(20):
                while True:
                    found = (await status.ask(asker, self.cluster))[self.cluster.groups[0]].leader
                    if found not in (None, leader):
                        break
                    await trio.sleep(0.02)
            took_ms = (trio.current_time() - began) * 1000
            listed, owners = await self._listed(), await self._owners()
            assert owners.pop("stranger") == [], "a lock was free after the failover"
            assert (listed, owners) == before, f"round {number}"
            await mend(self.cluster, Fault.KILL, blow, self._rng)
            with trio.fail_after(30):
                await status.wait_ready(asker, self.cluster, all_replicas=True)
            assert {member.name: sorted(member.queues) for member in self.members} == before[1], f"round {number}"
        self.kills += 1
        print(
            f"round {number + 1}/{self.rounds}: killed {leader}, {found} leads after {took_ms:.0f} ms;"
            f" {len(listed)} consumers and {sum(map(len, owners.values()))} locks as before"
        )


@pytest.mark.slow
@pytest.mark.timeout(ROUNDS * 30 + 150)
def test_order_is_kept_through_kills_and_rebalances(tmp_path: Path) -> None:
    with local_cluster(tmp_path, groups=1) as cluster:
        drill = Drill(cluster, ROUNDS)
        try:
            trio.run(drill.run)
        except* TrimqError as errors:
            raise AssertionError(f"the drill's own calls failed: {errors.exceptions}") from errors
    history = drill.history
    print(
        f"order: rounds={drill.rounds} kills={drill.kills} joins={drill.joins} sent={sum(drill.sent.values())}"
        f" processed={history.processed} redelivered={history.redelivered} swaps={len(history.swaps)}"
        f" gaps={len(history.gaps)} overlaps={len(history.overlaps)}"
    )
    assert history.swaps == []
    assert history.gaps == []
    assert history.overlaps == []
    assert history.missing(drill.sent) == []
    assert drill.kills == drill.rounds
