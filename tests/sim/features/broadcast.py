"""Broadcasting: each member of the group gets every message, whatever the others get."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import ClassVar

import trio

from tests.sim.features.base import Feature
from tests.sim.world import World
from trimq import Message, Received, Start

__all__ = ["Broadcast"]

GROUP = "sim-listeners"
MEMBERS = 2


class Broadcast(Feature):
    name: ClassVar[str] = "broadcast"
    states: ClassVar[tuple[str, ...]] = ("broadcast to every member",)
    pause_s: ClassVar[float] = 0.3

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        super().__init__(world, stack)
        self.begun: set[bytes] = set()  # membership only
        self.acked: list[bytes] = []
        self.heard: list[set[bytes]] = [set() for _ in range(MEMBERS)]  # membership only

    async def open(self) -> None:
        self.mq = await self.client()
        self.queues = await self.create(self.mq, queues=2)

    async def run(self, readers: trio.Nursery) -> None:
        async with trio.open_nursery() as joining:
            for number in range(MEMBERS):
                joining.start_soon(readers.start, self._listen, number)
        rng = self.rng("sender")
        async with self.mq.producer("sim-speaker") as producer:
            while await self.pause(rng):
                body = b"%d" % len(self.begun)
                self.begun.add(body)
                if await self.tried(producer.send, Message(topic=self.topic, body=body)) is not None:
                    self.acked.append(body)

    async def _listen(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        async def handle(message: Received) -> None:
            self.heard[number].add(message.body)
            if message.body not in self.begun:
                self.violations.append(f"phantom: {message.body!r} came and nobody sent it")

        async with (
            self.connect() as client,
            client.subscribe(self.topic, group=GROUP, mode="broadcast", start=Start.FIRST) as consumer,
        ):
            task_status.started()
            await consumer.run(handle, concurrency=2)

    async def finish(self) -> None:
        await self.until(lambda: not any(map(self._missing, range(MEMBERS))))
        self.reached("broadcast to every member", sum(all(b in h for h in self.heard) for b in self.acked))

    def _missing(self, number: int) -> list[bytes]:
        return [body for body in self.acked if body not in self.heard[number]]

    def judge(self) -> list[str]:
        return [
            *self.violations[:3],
            *(
                text
                for number in range(MEMBERS)
                for text in self.missing("unheard", self._missing(number), f"never came to member {number}")
            ),
        ]
