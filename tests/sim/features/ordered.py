"""Strict order: one producer, keys, consumers with queue locks that join and leave.

Judged as the drill on real processes is (`tests.support.order_history`): per key no number before another that is
lower, none left out, no queue in two hands; everything in the end.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import ClassVar

import trio

from tests.sim.features.base import DONE_WITHIN_S, Feature
from tests.sim.world import World
from tests.support.order_history import OrderHistory
from trimq import Message, PushConsumer, Received, Start

__all__ = ["Ordered"]

GROUP = "sim-orderly"
KEYS = 5
MEMBERS_MAX = 3


class Ordered(Feature):
    name: ClassVar[str] = "ordered"
    states: ClassVar[tuple[str, ...]] = (
        "ordered consumer joined",
        "ordered consumer left",
        "ordered queue changed hands",
        "ordered message failed once",
    )
    pause_s: ClassVar[float] = 0.25

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        super().__init__(world, stack)
        self.history = OrderHistory()
        self.sent = {f"k{number}": 0 for number in range(KEYS)}
        self._members: list[trio.Event] = []
        self._names = 0
        self._last: dict[str, str] = {}
        self._failed: set[bytes] = set()  # membership only
        self._rng = self.rng("handlers")

    async def open(self) -> None:
        self.mq = await self.client()
        self.queues = await self.create(self.mq, queues=2)

    async def run(self, readers: trio.Nursery) -> None:
        await self._join(readers)
        await self._join(readers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._move, readers)
            rng = self.rng("producer")
            async with self.mq.producer("sim-in-order") as producer:
                while await self.pause(rng):
                    key = f"k{rng.randrange(KEYS)}"
                    body = f"{key}:{self.sent[key]}".encode()
                    await self.store(producer, Message(topic=self.topic, body=body, order_key=key))
                    self.sent[key] += 1
            nursery.cancel_scope.cancel()

    async def _move(self, readers: trio.Nursery) -> None:
        rng = self.rng("members")
        while True:
            await trio.sleep(rng.uniform(1.0, 5.0))
            if len(self._members) > 1 and (len(self._members) == MEMBERS_MAX or rng.random() < 0.5):
                self._members.pop(rng.randrange(len(self._members))).set()
                self.reached("ordered consumer left")
            else:
                await self._join(readers)

    async def _join(self, readers: trio.Nursery) -> None:
        self._names += 1
        leave = trio.Event()
        self._members.append(leave)
        self.reached("ordered consumer joined")
        await readers.start(self._member, f"m{self._names}", leave)

    async def _member(self, name: str, leave: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
        async with (
            self.connect() as client,
            client.subscribe(self.topic, group=GROUP, ordered=True, start=Start.FIRST) as consumer,
        ):
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._work, consumer, name)
                await leave.wait()
                consumer.stop()

    async def _work(self, consumer: PushConsumer, name: str) -> None:
        async def handle(message: Received) -> None:
            key, number = message.body.decode().split(":")
            queue = str(message.queue)
            if self._last.setdefault(queue, name) != name:
                self.reached("ordered queue changed hands")
                self._last[queue] = name
            self.history.enter(queue, name)
            try:
                await trio.sleep(self._rng.random() * 0.1)
                if self._rng.random() < 0.05 and message.body not in self._failed:
                    self._failed.add(message.body)
                    self.reached("ordered message failed once")
                    raise RuntimeError("once")
            except BaseException:
                self.history.give_up(queue, name)
                raise
            self.history.leave(queue, name, key, int(number))

        await consumer.run(handle, concurrency=3)

    async def finish(self) -> None:
        await self.until(lambda: not self.history.missing(self.sent), 2 * DONE_WITHIN_S)

    def judge(self) -> list[str]:
        history = self.history
        return [
            *self.missing("swap", history.swaps, "messages of one key in the wrong order"),
            *self.missing("left out", history.gaps, "messages of one key overtaken"),
            *self.missing("two hands", history.overlaps, "queues worked on by two consumers"),
            *self.missing("unprocessed", history.missing(self.sent), "keys with messages that no consumer got"),
        ]
