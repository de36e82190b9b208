"""What every feature of the mix has in common: clients of its own, a topic of its own, a history and a verdict.

A feature is a load with the promise that belongs to it. It runs beside the plain load, under the same faults, and is
judged by what its own clients saw. Each names the states that a campaign has to reach: a load that never got there
proves nothing.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, ClassVar, TypeVar

import trio

from tests.sim.world import NAMESRV, SimClock, World
from trimq import Client, Message, Producer, Queue, Receipt, Received
from trimq.client.client import open_client
from trimq.drill.load import warm_up
from trimq.errors import TrimqError

__all__ = ["CALL_S", "DONE_WITHIN_S", "Feature"]

T = TypeVar("T")

DONE_WITHIN_S = 60.0
"""After healing, what was promised for later has happened within this."""
READ_WITHIN_S = 60.0
CALL_S = 10.0


class Feature:
    """One kind of message or of consuming. Life: `open`, `run` until stopped, `finish` on a whole cluster, `judge`."""

    name: ClassVar[str]
    states: ClassVar[tuple[str, ...]] = ()
    """What a campaign must reach somewhere."""
    rare: ClassVar[tuple[str, ...]] = ()
    """What a large campaign must reach."""
    broker: ClassVar[Mapping[str, Any]] = {}
    """Fields of `BrokerConfig` that make its times short."""
    pause_s: ClassVar[float] = 0.8
    """Mean time between two steps of its load."""

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        self.world = world
        self.stack = stack
        self.stop = trio.Event()
        self.topic = f"f-{self.name}"
        self.queues: list[Queue] = []
        self.violations: list[str] = []
        """Noted when they happen."""
        self.errors = 0
        self._clients = 0

    # -- for the run

    async def open(self) -> None:
        """Connect, create topics, open what lives as long as the run."""
        raise NotImplementedError

    async def run(self, readers: trio.Nursery) -> None:
        """The load, until `stop`. What reads goes into `readers` and lives on."""
        raise NotImplementedError

    async def finish(self) -> None:
        """The cluster is whole: wait until what was promised has happened, and read what there is to read."""
        raise NotImplementedError

    def judge(self) -> list[str]:
        """Every violation, in words that begin with the rule."""
        raise NotImplementedError

    # -- for the features

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.world.plan.seed}/{self.name}/{purpose}")

    def reached(self, state: str, count: int = 1) -> None:
        self.world.oracle.reached[state] += count

    def connect(self) -> AbstractAsyncContextManager[Client]:
        """A client of its own."""
        number, self._clients = self._clients, self._clients + 1
        return open_client(
            NAMESRV,
            self.world.clients(),
            SimClock(),
            self.rng(f"client/{number}"),
            client_id=f"{self.name}-{number}",
            default_timeout=CALL_S,
        )

    async def client(self) -> Client:
        """One that lives as long as the run: for `open`."""
        return await self.stack.enter_async_context(self.connect())

    async def create(self, client: Client, topic: str = "", queues: int = 1) -> list[Queue]:
        """A topic on every replica group."""
        while True:
            try:
                return await warm_up(client, topic or self.topic, self.world.groups, queues)
            except TrimqError:
                await trio.sleep(0.2)

    async def pause(self, rng: random.Random) -> bool:
        """The time between two steps; False when the load is over."""
        await trio.sleep(rng.expovariate(1 / self.pause_s))
        return not self.stop.is_set()

    async def tried(self, call: Callable[..., Awaitable[T]], *given: Any, **named: Any) -> T | None:
        """The result of a call; None, with the error counted, when it failed or took too long."""
        # The library ends at its caller's deadline; the run itself has one, so a shorter one has to be said.
        with trio.move_on_after(CALL_S):
            try:
                return await call(*given, **named)
            except TrimqError:
                self.errors += 1
        return None

    async def store(self, producer: Producer, message: Message, queue: Queue | None = None) -> Receipt:
        """Send until it is acknowledged: the same message again, which is stored once."""
        while True:
            receipt: Receipt | None = await self.tried(producer.send, message, queue=queue)
            if receipt is not None:
                return receipt
            await trio.sleep(0.1)

    async def until(self, holds: Callable[[], bool], seconds: float = DONE_WITHIN_S) -> bool:
        return await self.world.until(holds, seconds)

    async def read(self, client: Client, topic: str = "") -> list[Received]:
        """A whole topic, queue by queue, through whoever leads."""
        found: list[Received] = []
        async with client.pull() as reader:
            for queue in await self.firmly(reader.queues, topic or self.topic):
                at, end = await self.firmly(reader.bounds, queue)
                while at < end:
                    batch = await self.firmly(reader.read, queue, at, max=256, wait=0.5)
                    found += batch.messages
                    at = max(batch.next_offset, at)
        return found

    @staticmethod
    async def firmly(call: Callable[..., Awaitable[T]], *given: Any, **named: Any) -> T:
        """The cluster is whole, so an error is a leader that is handing over; for ever it is a finding."""
        with trio.fail_after(READ_WITHIN_S):
            while True:
                try:
                    return await call(*given, **named)
                except TrimqError:
                    await trio.sleep(0.1)

    def catch_up(self) -> None:
        """Clocks that were set back wait for the log's time to come again, an hour perhaps: let it be over."""
        newest = max((replica.state.log_time for node in self.world.nodes for replica in node.replicas()), default=0)
        for node in self.world.nodes:
            node.clock.jump_ms += max(0, newest - node.clock.wall_ms())

    def missing(self, rule: str, what: Sequence[object], text: str) -> list[str]:
        """One violation for all of one kind."""
        return [f"{rule}: {len(what)} {text}: {', '.join(map(str, what[:4]))}"] if what else []
