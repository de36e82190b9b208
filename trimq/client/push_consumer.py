"""The consumer that is handed its messages: prefetch, delivery, acknowledgement, retry.

    async with client.subscribe("orders", group="billing") as orders:
        async for message in orders:
            async with message:
                ...

Promises: each message is delivered until it was acknowledged or dead-lettered (at least once); the committed offset
of a queue is its smallest unfinished one; with `ordered=True` a queue has one reader in the whole group (a lock at
the broker) and its messages come one at a time, in order, a failed one again before the next. What is read ahead is
bounded by `Limits`.

Tasks: one per assigned queue (`Reader`), a few per consumer (`Assignment`), none per message.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from math import inf
from pathlib import Path

import anyio
import anyio.abc

from trimq.client.assignment import Assignment
from trimq.client.broker_api import BrokerApi, filter_kind
from trimq.client.instance import Instance
from trimq.client.limits import Limits, Pace
from trimq.client.model import Filter, Queue, Rebalance, Start
from trimq.client.outgoing import delay_level
from trimq.client.rates import ConsumeRates
from trimq.client.reader import Holding, Reader
from trimq.client.received import Received
from trimq.client.replies import send_reply
from trimq.errors import BadRequest, TrimqError
from trimq.message.allocation import Strategy
from trimq.message.names import check_group, check_topic
from trimq.wire.body.heartbeat import ConsumerData, SubscriptionData
from trimq.wire.body.lock import MQ
from trimq.wire.body.running import ConsumerRunningInfo, ProcessQueueInfo

__all__ = ["PushConsumer", "open_push_consumer"]

log = logging.getLogger(__name__)

QUEUE_ROOM_MIN = 8
"""Messages that each queue may read ahead, however many queues share the prefetch."""

REDELIVER_S = 1.0
"""An ordered queue waits so long before it offers a failed message again (RocketMQ's suspendCurrentQueueTimeMillis)."""

CLOSE_GRACE_S = 5.0
"""How long leaving the block waits for messages that are being processed."""


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
        self._instance = instance
        self._api = BrokerApi(instance)
        self._tasks = tasks
        self._broadcast = broadcast
        self._ordered = ordered
        self._start = start
        self._limits = limits
        self._pace = Pace(limits.per_second) if limits.per_second != inf else None
        self._max_attempts = max_attempts
        self._assignment = Assignment(
            instance,
            group,
            subscriptions,
            self,
            tasks,
            broadcast=broadcast,
            ordered=ordered,
            start=start,
            strategy=strategy,
            offsets_file=offsets_file,
            changed=self._changed,
        )
        self._ready: deque[Received] = deque()
        self._waiters: deque[anyio.Event] = deque()
        self._in_process: dict[tuple[Holding, int], tuple[Received, float]] = {}
        """(holding, offset) → the message in a handler, and since when."""
        self._quiet = anyio.Event()
        self._settled = anyio.Event()
        self._bytes_held = 0
        self._paused: set[Queue] = set()
        self._listeners: list[_Listener] = []
        self._closed = False
        self._rates = ConsumeRates()
        self._entered_at: dict[tuple[Queue, int], float] = {}
        self._last_consumed: dict[Queue, int] = {}
        self._version = instance.clock.wall_ms()
        self._subscription_data = [self._describe(topic, wanted) for topic, wanted in self._assignment.topics.items()]

    # For applications

    def __aiter__(self) -> AsyncIterator[Received]:
        return self

    async def __anext__(self) -> Received:
        """The next message of any assigned queue. Ends when the consumer's block is left."""
        await anyio.lowlevel.checkpoint()
        while True:
            while self._ready:
                message = self._ready.popleft()
                home = message._home
                if isinstance(home, Holding):
                    if home.process.dropped:
                        continue
                    if self._pace is not None and not await self._my_turn(self._pace, message):
                        continue
                return message
            if self._closed:
                raise StopAsyncIteration
            await self._wait()

    async def _my_turn(self, pace: Pace, message: Received) -> bool:
        """Wait for the rate limit; False when the queue was lost meanwhile. Cancelled: the message is still to come."""
        try:
            await anyio.sleep(pace.wait_s(anyio.current_time()))
        except BaseException:
            self._ready.appendleft(message)
            raise
        return not _holding(message).process.dropped

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
        if concurrency < 1:
            raise BadRequest(f"concurrency={concurrency}: at least one handler has to run")

        async def worker() -> None:
            async for message in self:
                async with message:
                    await handler(message)

        async with anyio.create_task_group() as tasks:
            for _ in range(concurrency):
                tasks.start_soon(worker)
            task_status.started()

    def pause(self, *queues: Queue) -> None:
        """Stop reading these queues, or all that are held now; what was read ahead is still delivered."""
        self._paused.update(queues or self._assignment.readers)
        for queue, reader in self._assignment.readers.items():
            if queue in self._paused:
                reader.interrupt()

    def resume(self, *queues: Queue) -> None:
        """Undo `pause`, for these queues or for all."""
        self._paused.difference_update(queues or tuple(self._paused))
        self._nudge_all()

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
        listener = _Listener()
        self._listeners.append(listener)
        return listener

    # For the instance

    def heartbeat_data(self) -> ConsumerData:
        start = self._start
        return ConsumerData(
            groupName=self.group,
            messageModel="BROADCASTING" if self._broadcast else "CLUSTERING",
            consumeFromWhere="CONSUME_FROM_" + (f"{start.name}_OFFSET" if isinstance(start, Start) else "TIMESTAMP"),
            subscriptionDataSet=self._subscription_data,
        )

    def _describe(self, topic: str, wanted: Filter) -> SubscriptionData:
        return SubscriptionData.of(topic, wanted.expression, self._version, filter_kind(wanted))

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
        if self._closed:
            return False
        self._ready.appendleft(message)
        if self._waiters:
            self._waiters.popleft().set()
        return True

    def running_info(self) -> ConsumerRunningInfo:
        """What `mqadmin consumerStatus` shows."""
        now_ms = self._instance.clock.wall_ms()
        return ConsumerRunningInfo(
            properties={
                "PROP_NAMESERVER_ADDR": ";".join(self._instance.namesrv.addresses),
                "PROP_CONSUME_TYPE": "CONSUME_PASSIVELY",
                "PROP_CONSUMEORDERLY": str(self._ordered).lower(),
                "PROP_CLIENT_VERSION": "V5_3_3",
                "PROP_THREADPOOL_CORE_SIZE": "0",
                "PROP_CONSUMER_START_TIMESTAMP": str(self._version),
            },
            subscriptions=list(self._subscription_data),
            queues={
                MQ(brokerName=queue.group, queueId=queue.id, topic=queue.topic): ProcessQueueInfo(
                    cachedMsgCount=len(reader.process),
                    cachedMsgMinOffset=reader.process.commit_offset,
                    cachedMsgMaxOffset=max(reader.process.next_offset - 1, 0),
                    cachedMsgSizeInMiB=reader.process.bytes_held >> 20,
                    commitOffset=reader.process.commit_offset,
                    locked=self._ordered,
                    lastLockTimestamp=now_ms if self._ordered else 0,
                    lastPullTimestamp=reader.last_pull_ms,
                    lastConsumeTimestamp=self._last_consumed.get(queue, 0),
                )
                for queue, reader in self._assignment.readers.items()
            },
            statuses=self._rates.statuses(anyio.current_time()),
        )

    # For the readers

    def _share(self) -> int:
        return max(self._limits.messages // max(len(self._assignment.readers), 1), QUEUE_ROOM_MIN)

    def room(self, reader: Reader) -> int:
        return self._share() - len(reader.process)

    def has_room(self, reader: Reader) -> bool:
        # Half of the share must be free: many small reads would cost more than they bring.
        return (
            self.room(reader) * 2 >= self._share()
            and self._bytes_held < self._limits.bytes
            and (self._ordered or reader.process.span < self._limits.span)
            and reader.queue not in self._paused
        )

    def arrived(self, holding: Holding, messages: list[Received]) -> None:
        self._rates.pulled(holding.reader.queue.topic, len(messages), holding.reader.last_pull_s, anyio.current_time())
        self._bytes_held += sum(len(message.body) for message in messages)
        if not self._ordered:
            self._offer(messages)
        elif holding.behind is not None:
            holding.behind.extend(messages)
        else:
            holding.behind = deque(messages[1:])
            self._offer(messages[:1])

    def forgot(self, holding: Holding) -> None:
        self._bytes_held -= holding.process.bytes_held

    def _offer(self, messages: list[Received]) -> None:
        self._ready.extend(messages)
        for _ in range(min(len(messages), len(self._waiters))):
            self._waiters.popleft().set()

    async def _wait(self) -> None:
        """Until a message was offered to us. One waiter is woken per message."""
        event = anyio.Event()
        self._waiters.append(event)
        try:
            await event.wait()
        except BaseException:
            if not event.is_set():
                self._waiters.remove(event)
            elif self._ready and self._waiters:
                self._waiters.popleft().set()  # the wake-up was meant for a message: pass it on
            raise

    # For the messages

    def entered(self, message: Received) -> None:
        now = anyio.current_time()
        self._in_process[_holding(message), message.offset] = (message, now)
        self._entered_at[message.queue, message.offset] = now

    def left(self, message: Received) -> None:
        holding = _holding(message)
        self._in_process.pop((holding, message.offset), None)
        self._entered_at.pop((message.queue, message.offset), None)
        if holding.leaving and self.is_settled(holding):
            self._settled.set()
            self._settled = anyio.Event()
        if not self._in_process:
            self._quiet.set()

    def finished(self, holding: Holding, message: Received) -> None:
        process = holding.process
        before = len(process)
        process.finish(message.offset, len(message.body))
        if len(process) == before:
            return
        self._handled(message, ok=True)
        was_full = self._bytes_held >= self._limits.bytes
        self._bytes_held -= len(message.body)
        if was_full and self._bytes_held < self._limits.bytes:
            self._nudge_all()
        elif holding.reader.waiting and self.has_room(holding.reader):
            holding.reader.nudge()
        if holding.behind:
            self._offer([holding.behind.popleft()])
        else:
            holding.behind = None

    def _handled(self, message: Received, *, ok: bool) -> None:
        began = self._entered_at.pop((message.queue, message.offset), None)
        if began is not None:
            now = anyio.current_time()
            self._rates.handled(message.topic, now - began, now, ok=ok)
            self._last_consumed[message.queue] = self._instance.clock.wall_ms()
            if self._instance.tracer is not None:
                self._instance.tracer.consumed(message, self.group, now - began, ok=ok)

    async def suspend(self, holding: Holding, message: Received, after: timedelta) -> None:
        if not holding.process.is_finished(message.offset):
            await self._offer_later(holding, message, after.total_seconds(), attempt=message.attempt)

    async def settle(self, holding: Holding) -> None:
        holding.leaving = True
        holding.behind = None
        self._ready = deque(message for message in self._ready if message._home is not holding)
        while not self.is_settled(holding):
            await self._settled.wait()

    def is_settled(self, holding: Holding) -> bool:
        return all(busy is not holding for busy, _ in self._in_process)

    async def send_back(self, holding: Holding, message: Received, after: timedelta | None) -> None:
        if holding.process.is_finished(message.offset):
            return  # it took too long and was handed back meanwhile
        self._handled(message, ok=False)
        if message.attempt >= self._max_attempts:
            await self.put_aside(holding, message, f"{message.attempt} attempts failed")
        elif self._ordered:
            await self._offer_later(holding, message, REDELIVER_S if after is None else after.total_seconds())
        else:
            await self._hand_back(holding, message, 0 if after is None else delay_level(after))

    async def put_aside(self, holding: Holding, message: Received, reason: str) -> None:
        log.warning(
            "message dead-lettered",
            extra={"topic": message.topic, "id": message.id, "group": self.group, "reason": reason},
        )
        await self._hand_back(holding, message, DEAD_LETTER)

    async def reply(self, message: Received, body: bytes, tag: str | None, properties: Mapping[str, str]) -> None:
        await send_reply(self._instance, message, body, tag=tag, own=properties)

    async def _hand_back(self, holding: Holding, message: Received, level: int) -> None:
        if self._broadcast:
            holding.finished(message)  # every member reads for itself: there is nobody to hand it back to
            return
        try:
            await self._api.send_back(
                message.queue.group,
                self.group,
                message.position,
                level=level,
                max_retries=self._max_attempts - 1,
                id=message.id,
                topic=message.topic,
            )
        except TrimqError as error:
            log.warning("message not handed back, offered again here", extra={"id": message.id, "error": error})
            await self._offer_later(holding, message, REDELIVER_S)
        else:
            holding.finished(message)

    async def _offer_later(
        self, holding: Holding, message: Received, delay_s: float, *, attempt: int | None = None
    ) -> None:
        """Offer the same message again after a moment; until then its queue's commit offset stays below it."""

        async def later() -> None:
            await anyio.sleep(delay_s)
            if not holding.process.dropped and not holding.leaving:
                self._offer([replace(message, attempt=message.attempt + 1 if attempt is None else attempt)])

        self._tasks.start_soon(later)
        await anyio.lowlevel.checkpoint()

    async def watch_handlers(self) -> None:
        """Hand back what is in a handler for too long, until cancelled."""
        while True:
            await anyio.sleep(min(self._limits.process_s / 4, 60.0))
            before = anyio.current_time() - self._limits.process_s
            late = [(holding, message) for (holding, _), (message, since) in self._in_process.items() if since < before]
            for holding, message in late:
                if holding.process.dropped or holding.process.is_finished(message.offset):
                    continue
                log.warning(
                    "message is in its handler for too long, it comes again elsewhere",
                    extra={"topic": message.topic, "id": message.id, "group": self.group},
                )
                await self._hand_back(holding, message, 0)

    def _changed(self, change: Rebalance) -> None:
        self._paused.difference_update(change.lost)
        self._nudge_all()
        for listener in self._listeners:
            listener.tell(change)

    def _nudge_all(self) -> None:
        for reader in self._assignment.readers.values():
            reader.nudge()

    # The end

    def stop(self) -> None:
        """No new messages from here on; iterations end."""
        self._closed = True
        self._ready.clear()
        for reader in self._assignment.readers.values():
            reader.scope.cancel()
        while self._waiters:
            self._waiters.popleft().set()
        for listener in self._listeners:
            listener.end()

    async def let_handlers_end(self) -> None:
        """Wait a little for messages that are being processed."""
        if self._in_process:
            self._quiet = anyio.Event()
            with anyio.move_on_after(CLOSE_GRACE_S):
                await self._quiet.wait()


DEAD_LETTER = -1
"""The delay level that means: never again."""


LISTENER_MAX = 256
"""Changes kept for a listener that does not look; the oldest go."""


class _Listener(AsyncIterator[Rebalance]):
    """One iteration over `changes`."""

    def __init__(self) -> None:
        self._changes: deque[Rebalance] = deque(maxlen=LISTENER_MAX)
        self._news = anyio.Event()
        self._ended = False

    def tell(self, change: Rebalance) -> None:
        self._changes.append(change)
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    async def __anext__(self) -> Rebalance:
        await anyio.lowlevel.checkpoint()
        while not self._changes:
            if self._ended:
                raise StopAsyncIteration
            self._news = anyio.Event()
            await self._news.wait()
        return self._changes.popleft()


def _holding(message: Received) -> Holding:
    home = message._home
    assert isinstance(home, Holding), "every message of a consumer belongs to a holding"
    return home


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
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
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
                    tasks.start_soon(consumer.watch_handlers)
                yield consumer
                consumer.stop()
                await consumer.let_handlers_end()
            finally:
                consumer.stop()
                await assignment.leave()
                instance.remove_consumer(consumer)
                stop_watching()
                stop_answering()
        except Exception as error:  # kept out of the task group, which would wrap it
            failure = error
        finally:
            assignment.forget_topics()
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
