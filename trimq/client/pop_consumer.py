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
from datetime import timedelta

import anyio
import anyio.abc

from trimq.client.broker_api import BrokerApi, filter_kind
from trimq.client.creation import create_missing
from trimq.client.incoming import decode_records
from trimq.client.instance import Instance
from trimq.client.model import Filter, Queue, Sql, Start
from trimq.client.pop_api import PopApi, Popped
from trimq.client.received import Received
from trimq.client.replies import send_reply
from trimq.client.route import PERM_READ
from trimq.client.timing import Backoff
from trimq.errors import BadRequest, Disconnected, TrimqError
from trimq.message.names import check_group, check_topic
from trimq.message.pop import Handle
from trimq.wire.body.heartbeat import ConsumerData, SubscriptionData

__all__ = ["PopConsumer", "open_pop_consumer"]

log = logging.getLogger(__name__)

HOLD_S = 15.0
"""How long a broker may hold a pop while nothing is there; RocketMQ's clients ask for the same."""
COUNT_MAX = 32
"""Messages of one pop: more is refused."""
RETRY_S = (10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200)
"""Waits between attempts: RocketMQ's delay levels from 3 on."""
ORDERED_RETRY_S = 1.0
INVISIBLE_MAX_S = 12 * 3600.0
EARLY = 0.95
"""Of the invisible time: the broker begins to count before its answer arrives here."""
CLOSE_GRACE_S = 5.0
DEAD_LETTER = -1


class Out:
    """One message that is out, at its consumer: the home of a `Received`."""

    __slots__ = ("batch", "consumer", "done", "expires", "group", "handle", "invisible_s", "topic")

    def __init__(self, consumer: PopConsumer, group: str, popped: Popped, expires: float, invisible_s: float) -> None:
        self.consumer = consumer
        self.group = group
        self.topic = popped.topic
        self.handle = popped.handle
        self.expires = expires
        """On the loop's clock; a little early, since the broker began to count before the answer came."""
        self.invisible_s = invisible_s
        self.done = False
        self.batch: deque[Received] | None = None
        """Ordered: what waits behind this message in its queue."""

    def entered(self, message: Received) -> None:
        self.consumer._enter(self)

    def left(self, message: Received) -> None:
        self.consumer._leave(self)

    async def acknowledge(self, message: Received) -> bool:
        return await self.consumer._acknowledge(self, message)

    async def extend(self, message: Received, by: timedelta) -> None:
        await self.consumer._extend(self, by.total_seconds())

    async def send_back(self, message: Received, after: timedelta | None) -> None:
        await self.consumer._send_back(self, message, after)

    async def put_aside(self, message: Received, reason: str) -> None:
        await self.consumer._put_aside(self, message, reason)

    async def reply(self, message: Received, body: bytes, tag: str | None, properties: Mapping[str, str]) -> None:
        await send_reply(self.consumer._instance, message, body, tag=tag, own=properties)

    async def suspend(self, message: Received, after: timedelta) -> None:
        """Giving it back is an attempt here: the broker counts."""
        await self.consumer._give_up(self, after.total_seconds())


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
        self._max_attempts = max_attempts
        self._ready: deque[Received] = deque()
        self._waiters: deque[anyio.Event] = deque()
        self._hungry = anyio.Event()
        """Set while somebody waits for a message: the pollers ask."""
        self._pollers: set[tuple[str, str]] = set()
        self._in_hand: dict[Out, None] = {}
        self._quiet = anyio.Event()
        self._closed = False
        self._version = instance.clock.wall_ms()

    # For applications

    def __aiter__(self) -> AsyncIterator[Received]:
        return self

    async def __anext__(self) -> Received:
        """The next message. Ends when the consumer's block is left."""
        await anyio.lowlevel.checkpoint()
        while True:
            while self._ready:
                message = self._ready.popleft()
                if _out(message).expires > anyio.current_time():
                    return message
            if self._closed:
                raise StopAsyncIteration
            await self._wait()

    async def receive(self, *, max: int = COUNT_MAX, wait: float = HOLD_S) -> list[Received]:
        """Up to `max` messages, waiting up to `wait` seconds for the first one."""
        found: list[Received] = []
        with anyio.move_on_after(wait):
            found.append(await anext(self))
        now = anyio.current_time()
        while self._ready and len(found) < max:
            message = self._ready.popleft()
            if _out(message).expires > now:
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
        if concurrency < 1:
            raise BadRequest(f"concurrency={concurrency}: at least one handler has to run")

        async def worker() -> None:
            async for message in self:
                async with message:
                    await handler(message)

        async with anyio.create_task_group() as work:
            async with anyio.create_task_group() as tasks:
                if extend:
                    work.start_soon(self._keep_invisible)
                for _ in range(concurrency):
                    tasks.start_soon(worker)
                task_status.started()
            work.cancel_scope.cancel()

    # For the instance

    def heartbeat_data(self) -> ConsumerData:
        return ConsumerData(
            groupName=self.group,
            consumeFromWhere=f"CONSUME_FROM_{self._start.name}_OFFSET",
            subscriptionDataSet=[
                SubscriptionData.of(topic, wanted.expression, self._version, filter_kind(wanted))
                for topic, wanted in self._topics.items()
            ],
        )

    def ids_changed(self) -> None:
        """Who else is there does not matter: messages are shared, not queues."""

    # Asking

    async def look_around(self) -> None:
        """Find the topics, have a missing one created where that is allowed. Raises `NoRoute`, `BadRequest`."""
        for topic, wanted in self._topics.items():
            self._instance.routes.want(topic)
            route = await self._instance.routes.refresh(topic)
            if route is None:
                route = await create_missing(self._instance, self._broker, topic)
            if route is not None and isinstance(wanted, Sql):
                await self._broker.check_filter(self.group, route.groups[0].name, topic, wanted)

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
            await self._hungry.wait()
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
                    count=min(max(len(self._waiters), 1), COUNT_MAX),
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
        expires = anyio.current_time() + self._invisible_s * EARLY
        behind: dict[int, deque[Received]] = {}
        for popped in found:
            out = Out(self, group, popped, expires, self._invisible_s)
            queue = Queue(topic, group, popped.handle.queue)
            for message in decode_records(popped.raw, queue, self._topics[topic], out):
                message = replace(message, attempt=message.attempt + popped.count, topic=topic)
                if not self._ordered:
                    self._offer(message)
                elif queue.id not in behind:
                    out.batch = behind[queue.id] = deque()
                    self._offer(message)
                else:
                    out.batch = behind[queue.id]
                    out.batch.append(message)
                break
            else:
                self._tasks.start_soon(self._drop, out)  # the tag's hash was right and the tag is not

    async def _drop(self, out: Out) -> None:
        try:
            await self._api.ack(out.group, out.topic, out.handle)
        except TrimqError as error:
            log.info("message that is not wanted not acknowledged", extra={"error": error})

    def _offer(self, message: Received) -> None:
        self._ready.append(message)
        if self._waiters:
            self._waiters.popleft().set()
        self._maybe_full()

    def _maybe_full(self) -> None:
        """Nobody waits any more: let the pollers rest. (An event that is not set yet has pollers waiting: keep it.)"""
        if not self._waiters and self._hungry.is_set():
            self._hungry = anyio.Event()

    async def _wait(self) -> None:
        event = anyio.Event()
        self._waiters.append(event)
        self._hungry.set()
        try:
            await event.wait()
        except BaseException:
            if not event.is_set():
                self._waiters.remove(event)
                self._maybe_full()
            elif self._ready and self._waiters:
                self._waiters.popleft().set()  # the wake-up was meant for a message: pass it on
            raise

    # For the messages

    def _enter(self, out: Out) -> None:
        self._in_hand[out] = None

    def _leave(self, out: Out) -> None:
        self._in_hand.pop(out, None)
        if not self._in_hand:
            self._quiet.set()

    async def _acknowledge(self, out: Out, message: Received) -> bool:
        if out.done:
            return True
        if await self._api.ack(out.group, out.topic, out.handle):
            out.done = True
        else:
            log.warning(
                "message acknowledged too late, it comes again: raise invisible, or extend",
                extra={"topic": message.topic, "id": message.id, "group": self.group, "attempt": message.attempt},
            )
        if out.batch:
            self._offer(out.batch.popleft())
        return out.done

    async def _extend(self, out: Out, by_s: float) -> None:
        if not 0 < by_s <= INVISIBLE_MAX_S:
            raise BadRequest(f"extend by {by_s} s: above 0, at most {INVISIBLE_MAX_S:.0f}")
        now = anyio.current_time()
        handle = await self._hide(out, by_s)
        if handle is None:
            raise BadRequest(
                "the message is not ours any more: its invisible time was over", advice="it comes again; extend earlier"
            )
        out.expires = now + by_s * EARLY

    async def _hide(self, out: Out, seconds: float) -> Handle | None:
        handle = await self._api.hide(out.group, out.topic, out.handle, round(seconds * 1000))
        if handle is not None:
            out.handle = handle
        return handle

    async def _send_back(self, out: Out, message: Received, after: timedelta | None) -> None:
        if out.done:
            return
        if message.attempt >= self._max_attempts:
            await self._put_aside(out, message, f"{message.attempt} attempts failed")
            return
        if after is not None:
            wait_s = after.total_seconds()
        else:
            wait_s = ORDERED_RETRY_S if self._ordered else RETRY_S[min(message.attempt, len(RETRY_S)) - 1]
        await self._give_up(out, wait_s)

    async def _give_up(self, out: Out, wait_s: float) -> None:
        together = [out]
        if out.batch:  # they may only come behind this one, so they are given back with it
            together += [_out(each) for each in out.batch]
            out.batch.clear()
        for each in together:
            each.done = await self._hide(each, min(max(wait_s, 0.0), INVISIBLE_MAX_S)) is not None

    async def _put_aside(self, out: Out, message: Received, reason: str) -> None:
        log.warning(
            "message dead-lettered",
            extra={"topic": message.topic, "id": message.id, "group": self.group, "reason": reason},
        )
        await self._broker.send_back(
            out.group,
            self.group,
            message.position,
            level=DEAD_LETTER,
            max_retries=self._max_attempts - 1,
            id=message.id,
            topic=message.topic,
        )
        await self._acknowledge(out, message)

    async def _keep_invisible(self) -> None:
        """Extend what is in process and soon visible again."""
        while True:
            await anyio.sleep(self._invisible_s / 6)
            soon = anyio.current_time() + self._invisible_s / 2
            async with anyio.create_task_group() as tasks:
                for out in list(self._in_hand):
                    for each in (out, *map(_out, out.batch or ())):
                        if not each.done and each.expires < soon:
                            tasks.start_soon(self._prolong, each)

    async def _prolong(self, out: Out) -> None:
        try:
            await self._extend(out, self._invisible_s)
        except TrimqError as error:
            log.info("message not kept invisible", extra={"group": self.group, "error": error})

    # The end

    def stop(self) -> None:
        """No new messages from here on; iterations end."""
        self._closed = True
        while self._waiters:
            self._waiters.popleft().set()

    async def leave(self) -> None:
        """Let handlers end, give back what nobody has looked at."""
        if self._in_hand:
            self._quiet = anyio.Event()
            with anyio.move_on_after(CLOSE_GRACE_S):
                await self._quiet.wait()
        unseen = [_out(message) for message in self._ready]
        self._ready.clear()
        with anyio.move_on_after(1.0, shield=True):
            async with anyio.create_task_group() as tasks:
                for out in unseen:
                    tasks.start_soon(self._give_back, out)

    async def _give_back(self, out: Out) -> None:
        try:
            await self._hide(out, 0)
        except TrimqError as error:
            log.debug("message not given back, it comes again by itself", extra={"error": error})


def _out(message: Received) -> Out:
    home = message._home
    assert isinstance(home, Out), "every message of a pop consumer is one that is out"
    return home


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
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
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
        except Exception as error:  # kept out of the task group, which would wrap it
            failure = error
        finally:
            consumer.forget_topics()
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
