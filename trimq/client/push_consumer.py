"""The consumer that is handed its messages: prefetch, delivery, acknowledgement, retry.

    async with client.subscribe("orders", group="billing") as orders:
        async for message in orders:
            async with message:
                ...

Promises: each message is delivered until it was acknowledged or dead-lettered (at least once); the committed offset
of a queue is its smallest unfinished one; with `ordered=True` a queue has one reader in the whole group (a lock at
the broker) and its messages come one at a time, in order, a failed one again before the next. What is read ahead is
bounded by `Limits`.

Tasks: one per assigned queue (`Reader`), a few per consumer (`Assignment`), none per message. What was read and is not
finished is the business of `Delivery`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from math import inf
from pathlib import Path

import anyio
import anyio.abc

from trimq.client.assignment import Assignment
from trimq.client.background import open_background
from trimq.client.broker_api import BrokerApi
from trimq.client.changes import Changes
from trimq.client.delivery import Delivery
from trimq.client.handlers import check_concurrency, run_handlers
from trimq.client.instance import Instance
from trimq.client.limits import Limits, Pace
from trimq.client.model import Filter, Queue, Rebalance, Start
from trimq.client.reader import Holding, Reader
from trimq.client.received import Received
from trimq.client.retries import Retries
from trimq.client.running import Running
from trimq.client.subscription import describe
from trimq.errors import BadRequest
from trimq.message.allocation import Strategy
from trimq.message.names import check_group, check_topic
from trimq.wire.body.heartbeat import ConsumerData
from trimq.wire.body.running import ConsumerRunningInfo

__all__ = ["PushConsumer", "open_push_consumer"]


class PushConsumer:
    """See the module docstring. Made by `Client.subscribe`."""

    def __init__(
        self,
        instance: Instance,
        group: str,
        subscriptions: Mapping[str, Filter],
        tasks: anyio.abc.TaskGroup,
        *,
        broadcast: bool,
        ordered: bool,
        start: Start | datetime,
        limits: Limits,
        max_attempts: int,
        strategy: Strategy,
        offsets_file: Path | None,
    ) -> None:
        self.group = group
        self._ordered = ordered
        self._pace = Pace(limits.per_second) if limits.per_second != inf else None
        self._changes = Changes()
        readers: dict[Queue, Reader] = {}
        self._running = Running(instance, group, readers, ordered=ordered)
        retries = Retries(BrokerApi(instance), group, max_attempts)
        self._delivery = Delivery(
            instance,
            group,
            readers,
            self._running,
            retries,
            tasks,
            broadcast=broadcast,
            ordered=ordered,
            limits=limits,
        )
        self._assignment = Assignment(
            instance,
            group,
            subscriptions,
            readers,
            self._delivery,
            tasks,
            broadcast=broadcast,
            ordered=ordered,
            start=start,
            strategy=strategy,
            offsets_file=offsets_file,
            changed=self._changed,
        )
        self._since_ms = instance.clock.wall_ms()
        model = "BROADCASTING" if broadcast else "CLUSTERING"
        self._described = describe(group, self._assignment.topics, start, self._since_ms, model=model)

    # For applications

    def __aiter__(self) -> AsyncIterator[Received]:
        return self

    async def __anext__(self) -> Received:
        """The next message of any assigned queue. Ends when the consumer's block is left."""
        await anyio.lowlevel.checkpoint()
        while True:
            message = await self._delivery.offered.take()
            home = message._home
            if isinstance(home, Holding):
                if home.process.dropped:
                    continue
                if self._pace is not None and not await self._my_turn(self._pace, message, home):
                    continue
            return message

    async def _my_turn(self, pace: Pace, message: Received, home: Holding) -> bool:
        """Wait for the rate limit; False when the queue was lost meanwhile. Cancelled: the message is still to come."""
        try:
            await anyio.sleep(pace.wait_s(anyio.current_time()))
        except BaseException:
            self._delivery.offered.ready.appendleft(message)
            raise
        return not home.process.dropped

    async def run(
        self,
        handler: Callable[[Received], Awaitable[object]],
        *,
        concurrency: int = 20,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call `handler` for every message, up to `concurrency` at a time, until the consumer's block is left.

        Returning acknowledges; raising is as in a message's block (`Retry`, `DeadLetter`, any other exception: later
        again). Start it with `await nursery.start(consumer.run, handler)`.
        """
        check_concurrency(concurrency)
        await run_handlers(self, handler, concurrency=concurrency, task_status=task_status)

    def pause(self, *queues: Queue) -> None:
        """Stop reading these queues, or all that are held now; what was read ahead is still delivered."""
        self._delivery.pause(queues or self._assignment.readers)

    def resume(self, *queues: Queue) -> None:
        """Undo `pause`, for these queues or for all."""
        self._delivery.resume(queues)

    @property
    def assignment(self) -> frozenset[Queue]:
        """The queues that this consumer reads now, the group's retry queues included."""
        return frozenset(self._assignment.readers)

    def positions(self) -> Mapping[Queue, int]:
        """Per assigned queue: everything below this offset is finished."""
        return self._assignment.consumed()

    async def commit(self) -> None:
        """Commit now what is finished, instead of within five seconds."""
        await self._assignment.commit()

    def changes(self) -> AsyncIterator[Rebalance]:
        """Each change of the assignment from now on; ends when the consumer's block is left."""
        return self._changes.listen()

    # For the instance

    def heartbeat_data(self) -> ConsumerData:
        return self._described

    def ids_changed(self) -> None:
        self._assignment.rebalance_soon()

    def route_changed(self, topic: str) -> None:
        if topic in self._assignment.topics:
            self._assignment.rebalance_soon()

    # For operators, through a broker

    def reset(self, offsets: Mapping[Queue, int]) -> None:
        """Go on from these offsets in the queues that are held; what was read before is forgotten."""
        self._assignment.reset(offsets)

    @property
    def is_ordered(self) -> bool:
        return self._ordered

    def consume(self, message: Received) -> bool:
        """Hand a message to whoever iterates, ahead of all others."""
        return self._delivery.offered.offer_first(message)

    def running_info(self) -> ConsumerRunningInfo:
        """What `mqadmin consumerStatus` shows."""
        return self._running.info(self._described.subscriptionDataSet, self._since_ms)

    def _changed(self, change: Rebalance) -> None:
        self._delivery.rebalanced(change.lost)
        self._changes.tell(change)

    # The end

    def stop(self) -> None:
        """No new messages from here on; iterations end."""
        self._delivery.stop()
        self._changes.end()


@asynccontextmanager
async def open_push_consumer(
    instance: Instance,
    group: str,
    subscriptions: Mapping[str, Filter],
    *,
    broadcast: bool,
    ordered: bool,
    start: Start | datetime,
    limits: Limits,
    max_attempts: int,
    strategy: Strategy,
    offsets_file: Path | None,
) -> AsyncIterator[PushConsumer]:
    """A member of a consumer group for the length of the block.

    On entry: queues assigned, so that what is sent from now on is delivered. On the way out: no new messages, handlers
    get five seconds to end, what is finished is committed, the group is left.
    """
    check_group(group)
    for topic in subscriptions:
        check_topic(topic)
    if not subscriptions or max_attempts < 1:
        raise BadRequest(f"topics {sorted(subscriptions)}, max_attempts {max_attempts}: one at least")
    if offsets_file is not None and not broadcast:
        raise BadRequest("offsets_file is for mode='broadcast'; in a cluster the brokers keep the offsets")
    async with open_background() as tasks:
        consumer = PushConsumer(
            instance,
            group,
            subscriptions,
            tasks,
            broadcast=broadcast,
            ordered=ordered,
            start=start,
            limits=limits,
            max_attempts=max_attempts,
            strategy=strategy,
            offsets_file=offsets_file,
        )
        assignment = consumer._assignment
        try:
            await assignment.look_around()
            instance.add_consumer(consumer)
            stop_watching = instance.routes.watch(consumer.route_changed)
            stop_answering = instance.questions.add(consumer)
            try:
                await assignment.join()
                await tasks.start(assignment.run)
                if not ordered and not broadcast and limits.process_s != inf:
                    tasks.start_soon(consumer._delivery.watch_handlers)
                yield consumer
                consumer.stop()
                await consumer._delivery.in_process.let_end()
            finally:
                consumer.stop()
                await assignment.leave()
                instance.remove_consumer(consumer)
                stop_watching()
                stop_answering()
        finally:
            assignment.forget_topics()
