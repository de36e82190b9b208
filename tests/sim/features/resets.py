"""Offset resets while the group consumes: it goes on from the new place, whatever was committed on the way.

During the faults it is moved to the beginning, to offsets and to times, while its members commit every second. The last
move, on a whole cluster, is to the beginning: everything comes again, and then commits count again.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import AsyncExitStack
from typing import ClassVar

import trio

from tests.sim.features.base import DONE_WITHIN_S, Feature
from tests.sim.world import World
from trimq import Message, PullConsumer, Queue, Received, Start
from trimq.client.model import from_ms

__all__ = ["Resets"]

GROUP = "sim-moved"
CONSUMERS = 2
RESET_EVERY_S = 3.0


class Resets(Feature):
    name: ClassVar[str] = "resets"
    states: ClassVar[tuple[str, ...]] = (
        "group moved to an offset",
        "group moved to a time",
        "group moved to the beginning",
    )
    pause_s: ClassVar[float] = 0.4

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        super().__init__(world, stack)
        self.acked: dict[Queue, list[int]] = defaultdict(list)
        self.got: dict[Queue, set[int]] = defaultdict(set)  # membership only
        """Since the last move."""
        self.moved = False
        self.committed: list[str] = []

    async def open(self) -> None:
        self.mq = await self.client()
        self.queues = await self.create(self.mq)

    async def run(self, readers: trio.Nursery) -> None:
        for _ in range(CONSUMERS):
            await readers.start(self._consume)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._move)
            rng = self.rng("sender")
            async with self.mq.producer("sim-moving") as producer:
                while await self.pause(rng):
                    receipt = await self.tried(producer.send, Message(topic=self.topic, body=b"x"))
                    if receipt is not None:
                        self.acked[receipt.queue].append(receipt.offset)
            nursery.cancel_scope.cancel()

    async def _consume(self, *, task_status: trio.TaskStatus[None]) -> None:
        async def handle(message: Received) -> None:
            self.got[message.queue].add(message.offset)

        async with self.connect() as client, client.subscribe(self.topic, group=GROUP, start=Start.FIRST) as consumer:
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(consumer.run, handle)
                while True:
                    await trio.sleep(1)
                    await self.tried(consumer.commit)

    async def _move(self) -> None:
        rng, reset = self.rng("operator"), self.mq.admin.reset
        while True:
            await trio.sleep(rng.expovariate(1 / RESET_EVERY_S))
            queue = rng.choice(self.queues)
            dice = rng.random()
            if dice < 0.4:
                offset = rng.randrange(len(self.acked[queue]) + 1)
                moved = await self.tried(reset, GROUP, self.topic, to=offset, queue=queue)
                state = "group moved to an offset"
            elif dice < 0.7:
                when = from_ms(self.world.nodes[0].clock.wall_ms() - rng.randrange(10_000))
                moved = await self.tried(reset, GROUP, self.topic, to=when)
                state = "group moved to a time"
            else:
                moved = await self.tried(reset, GROUP, self.topic, to=Start.FIRST)
                state = "group moved to the beginning"
            if moved:
                self.reached(state)

    async def finish(self) -> None:
        reset = self.mq.admin.reset
        deadline = trio.current_time() + DONE_WITHIN_S
        while trio.current_time() < deadline and not self.moved:
            # What was handed out before the answer does not count, so forget first; a consumer commits all the while.
            self.got.clear()
            # A group without any replica is not in the route, and its queues then not in the answer.
            moved = await self.tried(reset, GROUP, self.topic, to=Start.FIRST)
            self.moved = moved is not None and set(moved) == set(self.queues)
        await self.until(lambda: not self._missing(), DONE_WITHIN_S)
        async with self.mq.pull(GROUP) as reader:
            for queue in self.queues:
                end = max(self.acked[queue], default=-1) + 1
                told = await self._committed(reader, queue, end)
                if told < end:
                    self.committed.append(f"{queue} at {told} of {end}")

    async def _committed(self, reader: PullConsumer, queue: Queue, end: int) -> int:
        """What the group has committed, once it is the end or had the time to be."""
        deadline = trio.current_time() + DONE_WITHIN_S
        while True:
            told = await self.firmly(reader.committed, queue) or 0
            if told >= end or trio.current_time() > deadline:
                return told
            await trio.sleep(1)

    def _missing(self) -> list[str]:
        return [f"{queue} {at}" for queue, offsets in self.acked.items() for at in offsets if at not in self.got[queue]]

    def judge(self) -> list[str]:
        if not self.moved:
            return ["not moved: an operator's reset fails on a whole cluster"]
        return [
            *self.missing("not again", self._missing(), "lie behind a reset and did not come again"),
            *self.missing("stuck", self.committed, "queues whose commits are ignored for ever after a reset"),
        ]
