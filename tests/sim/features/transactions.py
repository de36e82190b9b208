"""Transactions: commit, rollback, unknown with check-back, producers that die between the halves.

The application's books decide: whoever writes first, the producer or the check. Afterwards exactly the messages that
the books call committed are visible, each once; every half message is decided.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from typing import ClassVar

import trio

from broker.metadata.transactions import OpenHalf
from tests.sim.features.base import CALL_S, Feature
from tests.sim.world import World
from trimq import Message, Outcome, Producer, Received
from trimq.errors import TrimqError

__all__ = ["Transactions"]

GROUP = "sim-bookers"
PRODUCERS = 2


class Transactions(Feature):
    name: ClassVar[str] = "transactions"
    states: ClassVar[tuple[str, ...]] = (
        "transaction committed",
        "transaction rolled back",
        "transaction left undecided",
        "transaction checked",
        "transaction checked again",
        "producer died in a transaction",
        "check found work that was done",
    )
    broker: ClassVar[dict[str, object]] = {
        "transaction_timeout_ms": 1000,
        "transaction_check_interval_ms": 1000,
        "transaction_check_max": 10_000,  # giving up would be a decision of the broker's own
    }

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        super().__init__(world, stack)
        self.books: dict[str, Outcome] = {}
        self.asked: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.begun = 0
        self.undecided: list[OpenHalf] = []
        self._number = 0

    async def open(self) -> None:
        self.reader = await self.client()
        self.queues = await self.create(self.reader, queues=2)

    async def run(self, readers: trio.Nursery) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(PRODUCERS):
                nursery.start_soon(self._produce, number)

    async def _produce(self, number: int) -> None:
        """One producer process after the other: some die in the middle of a transaction."""
        rng = self.rng(f"producer/{number}")
        while not self.stop.is_set():
            async with self.connect() as client, client.producer(GROUP, check=self._check) as producer:
                with trio.CancelScope() as life:
                    while await self.pause(rng):
                        await self._one(producer, life, rng.random(), rng.choice((Outcome.COMMIT, Outcome.ROLLBACK)))
            if life.cancelled_caught:
                self.reached("producer died in a transaction")
                await trio.sleep(rng.uniform(0.1, 2.0))

    async def _one(self, producer: Producer, life: trio.CancelScope, dice: float, wanted: Outcome) -> None:
        self._number += 1
        message = Message(topic=self.topic, body=b"tx/%d" % self._number)
        try:
            with trio.move_on_after(CALL_S):
                async with producer.transaction(message) as tx:
                    self.begun += 1
                    outcome = self.books.setdefault(tx.id, wanted)
                    if dice < 0.2:
                        self.reached("transaction left undecided")
                        tx.unknown()
                    elif dice < 0.3:
                        life.cancel()
                        await trio.sleep_forever()
                    elif outcome is Outcome.COMMIT:
                        await tx.commit()
                        self.reached("transaction committed")
                    else:
                        await tx.rollback()
                        self.reached("transaction rolled back")
        except TrimqError:
            self.errors += 1  # begun or not, decided or not: the check knows

    async def _check(self, message: Received) -> Outcome:
        self.asked[message.id] += 1
        self.reached("transaction checked")
        if self.asked[message.id] > 1:
            self.reached("transaction checked again")
        if self.asked[message.id] == 1 and int(message.body[3:]) % 3 == 0:
            return Outcome.UNKNOWN  # the work is still going on
        if self.books.get(message.id) is Outcome.COMMIT:
            self.reached("check found work that was done")
        return self.books.setdefault(message.id, Outcome.ROLLBACK)

    async def finish(self) -> None:
        self.catch_up()
        async with self.reader.producer(GROUP, check=self._check):
            await self.until(lambda: not self._open_halves())
            self.undecided = self._open_halves()
            self.found = Counter(message.id for message in await self.read(self.reader))

    def _open_halves(self) -> list[OpenHalf]:
        leaders = [(group, self.world.leader(group)) for group in self.world.groups]
        replicas = [self.world.replica(leader, group) for group, leader in leaders if leader is not None]
        return [
            half for replica in replicas if replica is not None for half in replica.state.transactions.open.values()
        ]

    def judge(self) -> list[str]:
        wanted = [id for id, outcome in self.books.items() if outcome is Outcome.COMMIT]
        return [
            *self.missing(
                "uncommitted", [id for id in wanted if not self.found[id]], "were committed, nobody sees them"
            ),
            *self.missing(
                "half visible",
                [id for id in self.found if self.books.get(id) is not Outcome.COMMIT],
                "are visible and were not committed",
            ),
            *self.missing(
                "committed twice", [id for id, times in self.found.items() if times > 1], "stand there twice"
            ),
            *self.missing("undecided", self.undecided, "half messages are open for ever"),
        ]
