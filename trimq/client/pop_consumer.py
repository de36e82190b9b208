"""The consumer that takes messages one by one, each for a while: pop.

    async with mq.pop("jobs", group="workers", invisible=60) as jobs:
        async for job in jobs:
            async with job:               # leaving the block acknowledges, durably
                ...

Where a push consumer owns queues, pop consumers share messages: any number of them may work on one queue, and a slow
one holds up nobody. A message that was handed out is invisible to the others for `invisible` seconds; not acknowledged
by then, it comes again to whoever asks, with its next attempt. `Received.extend` asks for more time; `run` does so by
itself for handlers that take long.

Promises: at least once; what was acknowledged never comes again. With `ordered=True` the messages of one queue come in
order, and nobody gets any of that queue while some of it is in hand.

Tasks: one per replica group and topic, which asks for messages only while somebody waits for one; and one that extends.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import anyio.abc

from trimq.client.background import open_background
from trimq.client.broker_api import BrokerApi
from trimq.client.creation import find_topic
from trimq.client.handlers import check_concurrency, run_handlers
from trimq.client.incoming import decode_records
from trimq.client.instance import Instance
from trimq.client.model import Filter, Queue, Start
from trimq.client.offered import Offered
from trimq.client.pop_api import PopApi, Popped
from trimq.client.pop_out import INVISIBLE_MAX_S, Outstanding, home_of
from trimq.client.received import Received
from trimq.client.retries import Retries
from trimq.client.route import PERM_READ
from trimq.client.subscription import describe
from trimq.client.timing import Backoff
from trimq.errors import BadRequest, Disconnected, TrimqError
from trimq.message.names import check_group, check_topic
from trimq.wire.body.heartbeat import ConsumerData

__all__ = ["PopConsumer", "open_pop_consumer"]

log = logging.getLogger(__name__)

HOLD_S = 15.0
"""How long a broker may hold a pop while nothing is there; RocketMQ's clients ask for the same."""
COUNT_MAX = 32
"""Messages of one pop: more is refused."""


class PopConsumer:
    """See the module docstring. Made by `Client.pop`."""

    def __init__(
        self,
        instance: Instance,
        group: str,
        topics: Mapping[str, Filter],
        tasks: anyio.abc.TaskGroup,
        *,
        invisible_s: float,
        ordered: bool,
        start: Start,
        max_attempts: int,
    ) -> None:
        self.group = group
        self._instance = instance
        self._broker = BrokerApi(instance)
        self._api = PopApi(instance, group)
        self._topics = dict(topics)
        self._tasks = tasks
        self._invisible_s = invisible_s
        self._ordered = ordered
        self._start = start
        self._offered = Offered()
        retries = Retries(self._broker, group, max_attempts)
        self._outstanding = Outstanding(
            instance, self._api, group, retries, self._offered, ordered=ordered, invisible_s=invisible_s
        )
        self._pollers: set[tuple[str, str]] = set()
        self._described = describe(group, topics, start, instance.clock.wall_ms())

    # For applications

    def __aiter__(self) -> AsyncIterator[Received]:
        return self

    async def __anext__(self) -> Received:
        """The next message. Ends when the consumer's block is left."""
        await anyio.lowlevel.checkpoint()
        while True:
            message = await self._offered.take()
            if home_of(message).expires > anyio.current_time():
                return message

    async def receive(self, *, max: int = COUNT_MAX, wait: float = HOLD_S) -> list[Received]:
        """Up to `max` messages, waiting up to `wait` seconds for the first one."""
        found: list[Received] = []
        with anyio.move_on_after(wait):
            found.append(await anext(self))
        now = anyio.current_time()
        ready = self._offered.ready
        while ready and len(found) < max:
            message = ready.popleft()
            if home_of(message).expires > now:
                found.append(message)
        return found

    async def run(
        self,
        handler: Callable[[Received], Awaitable[object]],
        *,
        concurrency: int = 20,
        extend: bool = True,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call `handler` for every message, up to `concurrency` at a time, until the consumer's block is left.

        Returning acknowledges; raising is as in a message's block. `extend`: messages whose handlers take longer than
        the invisible time stay invisible until they are done.
        """
        check_concurrency(concurrency)
        async with anyio.create_task_group() as work:
            if extend:
                work.start_soon(self._outstanding.keep_invisible)
            await run_handlers(self, handler, concurrency=concurrency, task_status=task_status)
            work.cancel_scope.cancel()

    # For the instance

    def heartbeat_data(self) -> ConsumerData:
        return self._described

    def ids_changed(self) -> None:
        """Who else is there does not matter: messages are shared, not queues."""

    # Asking

    async def look_around(self) -> None:
        """Find the topics, have a missing one created where that is allowed. Raises `NoRoute`, `BadRequest`."""
        for topic, wanted in self._topics.items():
            self._instance.routes.want(topic)
            await find_topic(self._instance, self._broker, self.group, topic, wanted)

    async def join(self) -> None:
        """Make the group known and ask from now on."""
        await self._instance.beat()
        for topic in self._topics:
            self.route_changed(topic)

    def route_changed(self, topic: str) -> None:
        """A topic may live in more replica groups than before."""
        route = self._instance.routes.known(topic) if topic in self._topics else None
        for group in route.groups if route is not None else ():
            if group.perm & PERM_READ and (topic, group.name) not in self._pollers:
                self._pollers.add((topic, group.name))
                self._tasks.start_soon(self._poll, topic, group.name)

    def forget_topics(self) -> None:
        """Undo `look_around`."""
        for topic in self._topics:
            self._instance.routes.unwant(topic)

    async def _poll(self, topic: str, group: str) -> None:
        """Ask one replica group for one topic, whenever somebody waits."""
        backoff = Backoff(self._instance.rng, first_s=0.05, most_s=1.0)
        attempt, tries = self._new_attempt(), 0
        while True:
            await self._offered.demand.wait()
            targets = self._instance.targets(group)
            if not targets:
                await anyio.sleep(backoff.next_s())
                await self._instance.routes.find_leader(group)
                continue
            try:
                found = await self._api.pop(
                    targets[tries % len(targets)],
                    group,
                    topic,
                    self._topics[topic],
                    count=min(max(self._offered.waiting, 1), COUNT_MAX),
                    invisible_ms=round(self._invisible_s * 1000),
                    hold_s=HOLD_S,
                    start=self._start,
                    ordered=self._ordered,
                    attempt=attempt,
                )
            except TrimqError as error:
                log.info("pop refused" if not isinstance(error, Disconnected) else "pop failed, tried elsewhere",
                         extra={"topic": topic, "group": group, "error": error})  # fmt: skip
                tries += 1
                await anyio.sleep(backoff.next_s())
                await self._instance.routes.find_leader(group)
                continue
            backoff.reset()
            attempt, tries = self._new_attempt(), 0
            self._arrived(group, topic, found)

    def _new_attempt(self) -> str:
        """Repeated after a lost answer, an ordered pop gets the same messages again instead of waiting for them."""
        return f"{self._instance.rng.getrandbits(64):016x}" if self._ordered else ""

    def _arrived(self, group: str, topic: str, found: list[Popped]) -> None:
        behind: dict[int, deque[Received]] = {}
        for popped, out in self._outstanding.popped(group, found):
            queue = Queue(topic, group, popped.handle.queue)
            for message in decode_records(popped.raw, queue, self._topics[topic], out):
                message = replace(message, attempt=message.attempt + popped.count, topic=topic)
                if not self._ordered:
                    self._offered.offer([message])
                elif queue.id not in behind:
                    out.batch = behind[queue.id] = deque()
                    self._offered.offer([message])
                else:
                    out.batch = behind[queue.id]
                    out.batch.append(message)
                break
            else:
                self._tasks.start_soon(out.drop)  # the tag's hash was right and the tag is not

    # The end

    def stop(self) -> None:
        """No new messages from here on; iterations end."""
        self._offered.close()

    async def leave(self) -> None:
        """Let handlers end, give back what nobody has looked at."""
        await self._outstanding.in_process.let_end()
        await self._outstanding.give_back()


@asynccontextmanager
async def open_pop_consumer(
    instance: Instance,
    group: str,
    topics: Mapping[str, Filter],
    *,
    invisible_s: float,
    ordered: bool,
    start: Start,
    max_attempts: int,
) -> AsyncIterator[PopConsumer]:
    """A pop consumer for the length of the block.

    On the way out: no new messages, handlers get five seconds to end, what nobody has looked at is visible again.
    """
    check_group(group)
    for topic in topics:
        check_topic(topic)
    if not topics or max_attempts < 1 or not 0 < invisible_s <= INVISIBLE_MAX_S:
        raise BadRequest(
            f"topics {sorted(topics)}, max_attempts {max_attempts}, invisible {invisible_s} s: one at least, and up to"
            f" {INVISIBLE_MAX_S:.0f} s"
        )
    async with open_background() as tasks:
        consumer = PopConsumer(
            instance,
            group,
            topics,
            tasks,
            invisible_s=invisible_s,
            ordered=ordered,
            start=start,
            max_attempts=max_attempts,
        )
        try:
            await consumer.look_around()
            instance.add_consumer(consumer)
            stop_watching = instance.routes.watch(consumer.route_changed)
            try:
                await consumer.join()
                yield consumer
            finally:
                consumer.stop()
                await consumer.leave()
                instance.remove_consumer(consumer)
                stop_watching()
        finally:
            consumer.forget_topics()
