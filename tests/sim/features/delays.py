"""Messages for later: the delay levels, and any time, some of them cancelled.

Judged in the log's own time, which is the only one that the promise can be about: delivered once, never before it was
due; what was cancelled with an answer never, everything else in the end.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import trio

from broker.service.delay import DELAY_TOPIC
from tests.sim.features.base import Feature
from tests.sim.world import World
from trimq import Message, Producer, Queue, Receipt, Received
from trimq.client.model import from_ms

__all__ = ["Delays"]

LEVELS_MS = (300, 700, 1_000, 1_500, 2_000, 3_000, 5_000, 8_000)
ROLL_S = 3
SENDERS = 2
DUE_MAX_MS = 9_000


@dataclass(slots=True)
class Sent:
    level: int
    """0: at a time."""
    least_ms: int
    receipt: Receipt | None = None
    recalled: bool | None = False
    """None: asked for, and the answer is not known."""


class Delays(Feature):
    name: ClassVar[str] = "delays"
    states: ClassVar[tuple[str, ...]] = (
        "delayed by level",
        "delayed to a time",
        "delayed beyond the wheel",
        "delayed message cancelled",
        "delayed message delivered",
    )
    rare: ClassVar[tuple[str, ...]] = ("cancelled too late",)
    broker: ClassVar[dict[str, object]] = {"delay_levels_ms": LEVELS_MS, "timer_roll_s": ROLL_S}
    pause_s: ClassVar[float] = 0.4

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        super().__init__(world, stack)
        self.sent: dict[str, Sent] = {}
        self.found: list[Received] = []
        self.waited: dict[str, int] = {}
        """Id to the log time at which the schedule topic got it."""

    async def open(self) -> None:
        self.mq = await self.client()
        self.queues = await self.create(self.mq)

    async def run(self, readers: trio.Nursery) -> None:
        async with self.mq.producer("sim-later") as producer, trio.open_nursery() as nursery:
            for number in range(SENDERS):
                nursery.start_soon(self._send_on, producer, self.rng(f"sender/{number}"))

    async def _send_on(self, producer: Producer, rng: random.Random) -> None:
        while await self.pause(rng):
            message, sent = self._draw(rng)
            self.sent[message.id] = sent
            sent.receipt = await self.tried(producer.send, message)
            if sent.receipt is not None and not sent.level and rng.random() < 0.3:
                await trio.sleep(rng.random() * 2)
                await self._cancel(producer, sent)

    def _draw(self, rng: random.Random) -> tuple[Message, Sent]:
        if rng.random() < 0.5:
            self.reached("delayed by level")
            level = rng.randrange(len(LEVELS_MS)) + 1
            return Message(topic=self.topic, body=b"level", delay_level=level), Sent(level, LEVELS_MS[level - 1])
        due_ms = rng.randrange(200, DUE_MAX_MS)
        self.reached("delayed beyond the wheel" if due_ms > ROLL_S * 1000 else "delayed to a time")
        if rng.random() < 0.3:
            clocks = [node.clock.wall_ms() for node in self.world.nodes]
            at = from_ms(min(clocks) + due_ms)
            return Message(topic=self.topic, body=b"at", at=at), Sent(0, 0)
        return Message(topic=self.topic, body=b"delay", delay=timedelta(milliseconds=due_ms)), Sent(0, due_ms)

    async def _cancel(self, producer: Producer, sent: Sent) -> None:
        assert sent.receipt is not None
        if not sent.receipt.recall_handle:
            return  # its time was over when it came
        sent.recalled = None
        receipt = sent.receipt
        # Asked twice inside, after a lost answer, a recall that was taken is answered "does not wait".
        answer = await self.tried(producer.recall, receipt)
        if answer:
            sent.recalled = True
            self.reached("delayed message cancelled")
        elif answer is False:
            self.reached("cancelled too late")

    async def finish(self) -> None:
        self.catch_up()
        wanted = [id for id, sent in self.sent.items() if sent.receipt is not None and sent.recalled is False]
        with trio.move_on_after(DUE_MAX_MS / 1000 + 30):
            while True:
                self.found = await self.read(self.mq)
                if {message.id for message in self.found}.issuperset(wanted):
                    break
                await trio.sleep(1)
        await trio.sleep(DUE_MAX_MS / 1000)  # what must never come has the time to come
        self.found = await self.read(self.mq)
        self.reached("delayed message delivered", len(self.found))
        await self._read_waiting()

    async def _read_waiting(self) -> None:
        async with self.mq.pull() as reader:
            for group in self.world.groups:
                leader = self.world.leader(group)
                replica = self.world.replica(leader, group) if leader is not None else None
                topic = replica.state.topics.get(DELAY_TOPIC.encode()) if replica is not None else None
                if replica is None or topic is None:
                    continue
                for level in range(len(LEVELS_MS)):
                    key = topic.tid << 16 | level
                    at, end = 0, replica.store.queues.next_offset(key)
                    while at < end:
                        queue = Queue(DELAY_TOPIC, group, level)
                        batch = await self.firmly(reader.read, queue, at, max=256, wait=0.5, replica=replica.address)
                        self.waited.update((message.id, message.stored_ms) for message in batch.messages)
                        at = batch.next_offset

    def judge(self) -> list[str]:
        counts = Counter(message.id for message in self.found)
        early, strangers = [], []
        for message in self.found:
            sent = self.sent.get(message.id)
            if sent is None:
                strangers.append(message.id)
            elif message.stored_ms < self._due_ms(message, sent):
                early.append(f"{message.id} by {self._due_ms(message, sent) - message.stored_ms} ms")
        return [
            *self.missing(
                "never delivered",
                [i for i, s in self.sent.items() if s.receipt is not None and s.recalled is False and not counts[i]],
                "were accepted for later and never came",
            ),
            *self.missing("delivered twice", [id for id, times in counts.items() if times > 1], "came twice"),
            *self.missing(
                "cancelled", [i for i, s in self.sent.items() if s.recalled and counts[i]], "were cancelled and came"
            ),
            *self.missing("early", early, "came before their time"),
            *self.missing("phantom", strangers, "came and nobody sent them"),
        ]

    def _due_ms(self, message: Received, sent: Sent) -> int:
        if sent.level:
            return self.waited.get(message.id, 0) + sent.least_ms
        return int(message.all_properties.get("TIMER_OUT_MS", 0))
