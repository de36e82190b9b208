"""Request and reply: each answer belongs to its question; on a whole cluster every question is answered."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from typing import ClassVar

import trio

from tests.sim.features.base import Feature
from tests.sim.world import World
from trimq import Client, Received, Start
from trimq.errors import NoReply, TrimqError

__all__ = ["Requests"]

GROUP = "sim-repliers"
ASKERS = 2
FRESH = 3
ANSWERED_WITHIN_S = 10.0


class Requests(Feature):
    name: ClassVar[str] = "requests"
    states: ClassVar[tuple[str, ...]] = ("request answered", "request answered after healing")
    rare: ClassVar[tuple[str, ...]] = ("request without a reply",)

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        super().__init__(world, stack)
        self.asked = 0
        self.unanswered: list[str] = []

    async def open(self) -> None:
        self.mq = await self.client()
        self.queues = await self.create(self.mq)

    async def run(self, readers: trio.Nursery) -> None:
        await readers.start(self._answer)
        async with trio.open_nursery() as nursery:
            for number in range(ASKERS):
                nursery.start_soon(self._ask_on, self.rng(f"asker/{number}"))

    async def _answer(self, *, task_status: trio.TaskStatus[None]) -> None:
        rng = self.rng("replier")

        async def handle(message: Received) -> None:
            await trio.sleep(rng.random() * 0.2)  # so that answers overtake each other
            await self.tried(message.reply, _answer_to(message.body))

        async with self.connect() as client, client.subscribe(self.topic, group=GROUP, start=Start.FIRST) as consumer:
            task_status.started()
            await consumer.run(handle, concurrency=8)

    async def _ask_on(self, rng: random.Random) -> None:
        while await self.pause(rng):
            async with trio.open_nursery() as nursery:
                for _ in range(rng.randrange(1, 4)):
                    nursery.start_soon(self._ask, self.mq, "request answered")

    async def _ask(self, client: Client, state: str) -> bool:
        self.asked += 1
        question = b"%d" % self.asked
        try:
            with trio.fail_after(ANSWERED_WITHIN_S):
                reply = await client.request(self.topic, question)
        except (NoReply, trio.TooSlowError):
            self.reached("request without a reply")
            return False
        except TrimqError:
            self.errors += 1
            return False
        if reply.body != _answer_to(question):
            self.violations.append(f"crossed: {question!r} was answered {reply.body!r}")
        self.reached(state)
        return True

    async def finish(self) -> None:
        for number in range(FRESH):
            if not await self._ask(self.mq, "request answered after healing"):
                self.unanswered.append(f"fresh {number}")

    def judge(self) -> list[str]:
        return [
            *self.violations,
            *self.missing("unanswered", self.unanswered, f"requests to a whole cluster for {ANSWERED_WITHIN_S:.0f} s"),
        ]


def _answer_to(question: bytes) -> bytes:
    return b"re:" + question[::-1]
