"""Retry up to the dead letters, and the way back from there.

A handler fails each message a number of times that its body names; some always. Every message is processed in the end
or lies among the dead letters; none gets there before its last attempt; redriven, each is processed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from typing import ClassVar

import trio

from tests.sim.features.base import DONE_WITHIN_S, Feature
from tests.sim.features.delays import LEVELS_MS
from tests.sim.world import World
from trimq import Message, Received, Retry, Start

__all__ = ["Retries"]

GROUP = "sim-triers"
ATTEMPTS = 3
TIMES_MAX = 40
"""A delivery may be repeated, by a failover or a consumer that was cut off; not so often."""


class Retries(Feature):
    name: ClassVar[str] = "retries"
    states: ClassVar[tuple[str, ...]] = ("message came again", "last attempt failed", "dead letter redriven")
    broker: ClassVar[dict[str, object]] = {"delay_levels_ms": LEVELS_MS}

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        super().__init__(world, stack)
        self.acked: list[str] = []
        self.sent: set[str] = set()  # membership only
        self.attempts: dict[str, set[int]] = defaultdict(set)  # membership only
        self.processed: set[str] = set()  # membership only
        self.buried: dict[str, int] = {}
        self.redriven: list[str] = []
        self.after: set[str] = set()  # membership only
        self._mended = False
        self._times: Counter[tuple[str, int]] = Counter()

    async def open(self) -> None:
        self.mq = await self.client()
        self.queues = await self.create(self.mq)

    async def run(self, readers: trio.Nursery) -> None:
        rng = self.rng("sender")
        await readers.start(self._consume)
        async with self.mq.producer("sim-tried") as producer:
            while await self.pause(rng):
                fails = rng.choice((0, 1, 2, ATTEMPTS, ATTEMPTS))
                body = b"%d/%d" % (len(self.sent), fails)
                self.sent.add(body.decode())
                if await self.tried(producer.send, Message(topic=self.topic, body=body)) is not None:
                    self.acked.append(body.decode())

    async def _consume(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with (
            self.connect() as client,
            client.subscribe(self.topic, group=GROUP, start=Start.FIRST, max_attempts=ATTEMPTS) as consumer,
        ):
            task_status.started()
            await consumer.run(self._handle, concurrency=4)

    async def _handle(self, message: Received) -> None:
        body = message.body.decode()
        if body not in self.sent:
            self.violations.append(f"phantom: {body!r} was handed to a handler and nobody sent it")
            return
        self.attempts[body].add(message.attempt)
        self._times[body, message.attempt] += 1
        if self._times[body, message.attempt] == TIMES_MAX:
            self.world.oracle.note(f"for ever: retries: {body} came {TIMES_MAX} times as attempt {message.attempt}")
        if message.attempt > 1:
            self.reached("message came again")
        if not self._mended and message.attempt <= int(body.partition("/")[2]):
            if message.attempt == ATTEMPTS:
                self.reached("last attempt failed")
            raise Retry
        self.processed.add(body)
        if self._mended:
            self.after.add(body)

    async def finish(self) -> None:
        self.catch_up()
        async with self.mq.admin.dead_letters(GROUP) as letters:
            with trio.move_on_after(DONE_WITHIN_S):
                while True:
                    self.buried = {}
                    async for letter in letters.read():
                        self.buried.setdefault(letter.body.decode(), letter.attempts)
                    if all(self._settled(body) for body in self.acked):
                        break
                    await trio.sleep(0.5)
            self._mended = True
            with trio.move_on_after(DONE_WITHIN_S):
                async for done in letters.redrive():
                    body = done.letter.body.decode()
                    if done.ok:
                        self.redriven.append(body)
                        self.reached("dead letter redriven")
                    else:
                        self.violations.append(f"not redriven: {body}, on a whole cluster: {done.error}")
                await self.until(lambda: all(body in self.after for body in self.redriven))

    def _settled(self, body: str) -> bool:
        return body in self.processed or body in self.buried

    def judge(self) -> list[str]:
        return [
            *self.violations,
            *self.missing(
                "given up",
                [body for body in self.acked if not self._settled(body)],
                "neither processed nor dead letters",
            ),
            *self.missing(
                "buried early",
                [body for body in self.buried if not set(range(1, ATTEMPTS + 1)) <= self.attempts[body]],
                "are dead letters without having had their attempts",
            ),
            *self.missing(
                "not mended", [body for body in self.redriven if body not in self.after], "were redriven and never came"
            ),
        ]
