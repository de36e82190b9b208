"""Batches and atomic sends: all or none, next to each other in one queue, or in several topics as one entry.

A send that ended unknown is at times repeated with the same messages, which are stored once. Atomic sends are judged
by their places in the log as well: no part of another one lies between the parts of one.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import ClassVar

import trio

from tests.sim.features.base import Feature
from tests.sim.world import World
from trimq import Message, Producer, Receipt, Received
from trimq.errors import NotStored, SendUnknown, TrimqError

__all__ = ["Together"]

REPEATS = 3


@dataclass(slots=True)
class Unit:
    count: int
    atomic: bool
    receipts: Sequence[Receipt] | None = None
    stored: bool | None = None
    """False: surely not. None: nobody knows."""
    found: dict[int, list[Received]] = field(default_factory=lambda: defaultdict(list))


class Together(Feature):
    name: ClassVar[str] = "together"
    states: ClassVar[tuple[str, ...]] = ("batch stored", "atomic send stored", "same batch again")
    pause_s: ClassVar[float] = 0.5

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        super().__init__(world, stack)
        self.other = f"{self.topic}-other"
        self.units: list[Unit] = []

    async def open(self) -> None:
        self.mq = await self.client()
        self.queues = await self.create(self.mq)
        await self.create(self.mq, self.other)

    async def run(self, readers: trio.Nursery) -> None:
        async with self.mq.producer("sim-together") as producer, trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(self._send_on, producer, self.rng(f"sender/{number}"))

    async def _send_on(self, producer: Producer, rng: random.Random) -> None:
        while await self.pause(rng):
            unit = Unit(rng.randrange(2, 6), rng.random() < 0.5)
            number = len(self.units)
            self.units.append(unit)
            topics = [rng.choice((self.topic, self.other)) if unit.atomic else self.topic for _ in range(unit.count)]
            if unit.atomic:
                topics[:2] = [self.topic, self.other]
            messages = [
                Message(topic=topic, body=b"%d/%d" % (number, at), order_key="one") for at, topic in enumerate(topics)
            ]
            await self._send(producer, unit, messages, rng.randrange(REPEATS))

    async def _send(self, producer: Producer, unit: Unit, messages: list[Message], again: int) -> None:
        send = producer.send_atomic if unit.atomic else producer.send_batch
        unknown = False
        while True:
            try:
                with trio.move_on_after(self.world.plan.client_timeout_s):
                    unit.receipts = await send(messages)
                if unit.receipts is None:
                    raise SendUnknown("cancelled at the deadline", id=messages[0].id)
            except NotStored:
                if not unknown:
                    unit.stored = False
                return
            except TrimqError:
                self.errors += 1
                unknown = True
                if again == 0:
                    return
                again -= 1
                self.reached("same batch again")
            else:
                unit.stored = True
                self.reached("atomic send stored" if unit.atomic else "batch stored")
                return

    async def finish(self) -> None:
        for topic in (self.topic, self.other):
            for message in await self.read(self.mq, topic):
                number, _, at = message.body.partition(b"/")
                if not number.isdigit() or int(number) >= len(self.units):
                    self.violations.append(f"phantom: {message.body!r} stands in {topic} and nobody sent it")
                    continue
                self.units[int(number)].found[int(at)].append(message)

    def judge(self) -> list[str]:
        found = [text for number, unit in enumerate(self.units) for text in self._judge(number, unit)]
        return [*self.violations, *found, *self._interleaved()]

    def _interleaved(self) -> list[str]:
        """An entry is one piece of the log."""
        places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, unit in enumerate(self.units):
            for copies in unit.found.values() if unit.atomic else ():
                for part in copies:
                    places[part.queue.group].append((part.position, number))
        runs = [
            number for each in places.values() for number, _ in itertools.groupby(number for _, number in sorted(each))
        ]
        return self.missing("apart", [n for n, count in Counter(runs).items() if count > 1], "atomic sends in pieces")

    def _judge(self, number: int, unit: Unit) -> list[str]:
        kind = "atomic send" if unit.atomic else "batch"
        if not unit.found:
            return [f"lost: {kind} {number} was acknowledged and is not there"] if unit.stored else []
        if unit.stored is False:
            return [f"phantom: {kind} {number} is there and was surely not stored"]
        if len(unit.found) != unit.count:
            return [f"partial: of {kind} {number} there are {sorted(unit.found)} of {unit.count}"]
        if any(len(copies) > 1 for copies in unit.found.values()):
            return [f"duplicates: {kind} {number} stands there twice"]
        parts = [copies[0] for _, copies in sorted(unit.found.items())]
        if any(one.position >= other.position for one, other in itertools.pairwise(parts)):
            return [f"reordered: {kind} {number} is not in its order"]
        if not unit.atomic and [part.offset for part in parts] != list(
            range(parts[0].offset, parts[0].offset + unit.count)
        ):
            return [f"scattered: {kind} {number} stands at {[part.offset for part in parts]}"]
        if unit.receipts is not None and [(r.queue, r.offset) for r in unit.receipts] != [
            (part.queue, part.offset) for part in parts
        ]:
            return [f"moved: {kind} {number} stands elsewhere than it was told"]
        return []
