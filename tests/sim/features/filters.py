"""Filters: one consumer group by tags, one by a SQL92 condition; each gets what it asked for, all of it, nothing else.

What the brokers let through is counted at the consumers' door: the library compares tags again, conditions it cannot.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import ClassVar

import trio

from tests.sim.features.base import Feature
from tests.sim.world import World
from trimq import Message, Received, Sql, Start, Tag
from trimq.client.model import Filter

__all__ = ["Filters"]

TAGS = ("a", "b", "c", "d")
WANTED: dict[str, Filter] = {
    "sim-by-tag": Tag("a || c"),
    "sim-by-sql": Sql("n BETWEEN 3 AND 6 AND (TAGS <> 'd' OR colour = 'red')"),
}


class Filters(Feature):
    name: ClassVar[str] = "filters"
    states: ClassVar[tuple[str, ...]] = ("selected by tag", "selected by condition", "left out by a filter")
    pause_s: ClassVar[float] = 0.3

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        super().__init__(world, stack)
        self.sent: dict[str, tuple[str, int, str, bool]] = {}
        """Id to tag, n, colour, acknowledged."""
        self.got: dict[str, set[str]] = {group: set() for group in WANTED}  # membership only

    async def open(self) -> None:
        self.mq = await self.client()
        self.queues = await self.create(self.mq)

    async def run(self, readers: trio.Nursery) -> None:
        for group in WANTED:
            await readers.start(self._consume, group)
        rng = self.rng("sender")
        async with self.mq.producer("sim-tagged") as producer:
            while await self.pause(rng):
                for _ in range(rng.randrange(1, 5)):
                    tag, n, colour = rng.choice(TAGS), rng.randrange(10), rng.choice(("red", "blue"))
                    message = Message(topic=self.topic, body=b"x", tag=tag, properties={"n": str(n), "colour": colour})
                    self.sent[message.id] = (tag, n, colour, False)
                    if await self.tried(producer.send, message) is not None:
                        self.sent[message.id] = (tag, n, colour, True)

    async def _consume(self, group: str, *, task_status: trio.TaskStatus[None]) -> None:
        async def handle(message: Received) -> None:
            self.got[group].add(message.id)
            if message.id not in self.sent:
                self.violations.append(f"phantom: {message.id} came to {group} and nobody sent it")
            elif not _wants(group, *self.sent[message.id][:3]):
                self.violations.append(f"unwanted: {self.sent[message.id]} came to {group}")
            self.reached("selected by tag" if group == "sim-by-tag" else "selected by condition")

        async with (
            self.connect() as client,
            client.subscribe(self.topic, group=group, filter=WANTED[group], start=Start.FIRST) as consumer,
        ):
            task_status.started()
            await consumer.run(handle, concurrency=2)

    async def finish(self) -> None:
        await self.until(lambda: not any(self._missing(group) for group in WANTED))
        for group in WANTED:
            self.reached("left out by a filter", sum(not _wants(group, *each[:3]) for each in self.sent.values()))

    def _missing(self, group: str) -> list[str]:
        return [
            id
            for id, (tag, n, colour, acked) in self.sent.items()
            if acked and _wants(group, tag, n, colour) and id not in self.got[group]
        ]

    def judge(self) -> list[str]:
        return [
            *self.violations[:3],
            *(
                text
                for group in WANTED
                for text in self.missing("unselected", self._missing(group), f"match and never came to {group}")
            ),
        ]


def _wants(group: str, tag: str, n: int, colour: str) -> bool:
    """What the filters mean, said another way."""
    if group == "sim-by-tag":
        return tag in ("a", "c")
    return n in (3, 4, 5, 6) and (tag != "d" or colour == "red")
