"""The clients of a simulation: the library's own producers and consumers, and the history of what they saw.

Load, history and verdict are those of the drill against real processes (`trimq.drill`): one checker judges both.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack

import trio

from tests.sim.net import HostNetwork
from tests.sim.world import NAMESRV, NODES, SimClock, World
from trimq import Client, Queue
from trimq.client.client import open_client
from trimq.drill.history import History, Outcome, QueueId, Stored, read_body
from trimq.drill.load import Sender, run_sender, warm_up
from trimq.drill.watch import run_consumer, watch_offsets
from trimq.errors import TrimqError
from trimq.message.ids import ID_SOURCE, IdSource

__all__ = ["Workload"]

TOPIC = "sim"
QUEUES_PER_GROUP = 2
CONSUMERS = 2
READ_DEADLINE_S = 60.0


class Workload:
    """Producers, consumers, watchers; opened once the cluster answers."""

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        self.world = world
        self.history = History()
        self.queues: list[Queue] = []
        self.senders: list[Sender] = []
        self._stack = stack
        self._network: HostNetwork = world.clients()
        self._clients: list[Client] = []
        self._stop = trio.Event()

    async def open(self) -> None:
        """Connect, create the topic, send a first message from each producer."""
        plan = self.world.plan
        ID_SOURCE.set(IdSource(random.Random(f"{plan.seed}/ids"), SimClock()))
        for number in range(CONSUMERS):
            rng = random.Random(f"{plan.seed}/client/{number}")
            client = open_client(NAMESRV, self._network, SimClock(), rng, client_id=f"sim-{number}")
            self._clients.append(await self._stack.enter_async_context(client))
        self.queues = await self._created()
        for number in range(plan.producers):
            producer = await self._stack.enter_async_context(self._clients[0].producer(f"sim-{number}"))
            self.senders.append(Sender(number, producer, self.queues[number:] + self.queues[:number], self.history))

    async def _created(self) -> list[Queue]:
        while True:
            try:
                return await warm_up(self._clients[0], TOPIC, self.world.groups, QUEUES_PER_GROUP)
            except TrimqError:
                await trio.sleep(0.2)

    async def run(self, nursery: trio.Nursery) -> None:
        """Load until `stop`; returns when every send that was begun has ended."""
        plan = self.world.plan
        for client in self._clients:
            await nursery.start(run_consumer, client, TOPIC, self.history)
        async with trio.open_nursery() as load:
            for sender in self.senders:
                load.start_soon(run_sender, sender, plan.rate / plan.producers, self._stop)
            load.start_soon(watch_offsets, self._clients[0], self.queues, self.history, self._stop)

    def stop(self) -> None:
        self._stop.set()

    async def send_fresh(self, bar_s: float) -> bool:
        """One new message to each group: acknowledged within the bar?"""
        for group in self.world.groups:
            own = [queue for queue in self.queues if queue.group == group]
            sender = Sender(10_000 + self.world.groups.index(group), self.senders[0].producer, own, self.history)
            with trio.move_on_after(bar_s) as scope:
                await sender.send_one()
            if scope.cancelled_caught:
                return False
        return True

    async def read_everything(self) -> None:
        """Every queue from 0 to its end through every node, into the history."""
        async with self._clients[0].pull() as consumer:
            for queue in self.queues:
                with trio.fail_after(READ_DEADLINE_S):
                    _, end = await consumer.bounds(queue)
                for node in self.world.nodes[:NODES]:
                    replica = self.world.replica(node, queue.group)
                    if replica is None:
                        continue
                    found = self.history.reads[node.name, QueueId(queue.topic, queue.group, queue.id)]
                    offset = 0
                    with trio.move_on_after(READ_DEADLINE_S):
                        while offset < end:
                            try:
                                batch = await consumer.read(queue, offset, max=256, wait=0.5, replica=replica.address)
                            except TrimqError:
                                await trio.sleep(0.1)
                                continue
                            found += (Stored(m.offset, read_body(m.body)) for m in batch.messages)
                            offset = batch.next_offset

    def outcomes(self) -> Sequence[tuple[object, Outcome]]:
        return [(value, outcome) for value, (_, outcome) in self.history.sends.items()]
