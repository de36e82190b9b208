"""The producer: `send` waits for one event; everything that costs happens per request, not per message.

A message is checked and encoded, gets a queue, and joins the lane of that queue's replica group. The lanes do the rest
(`trimq.client.lane` says how, and why nothing is stored twice). Choosing the queue:
- sent before without a known outcome, or an explicit `queue=`: that queue, whatever happens,
- `order_key`: by hash over all queues, as Java's SelectMessageQueueByHash does,
- else the topic's current queue, which moves on with every request: one by one that is round robin, under load whole
  batches go to one queue. A group in trouble is passed over.

A topic that does not exist yet gets its first messages on all groups, so that it exists everywhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.abc

from trimq.client.instance import Instance
from trimq.client.lane import GivenUp, Request, Slot
from trimq.client.lane_driver import LaneDriver, forget_queue
from trimq.client.model import Message, Queue, Receipt
from trimq.client.outgoing import DEFAULT_TOPIC_QUEUES, Outgoing, is_postponed, pack_body, prepare, send_fields
from trimq.client.route import Route, pick_by_key
from trimq.client.send_stream import SendStream
from trimq.client.spread import Spread
from trimq.client.timers import recall
from trimq.client.timing import Backoff, bounded_deadline, deadline_for
from trimq.client.trace import TRACE_GROUP, Tracer
from trimq.client.transaction import Checker, Transaction, check_half
from trimq.errors import BadRequest, NoRoute, NotStored, SendUnknown, TrimqError
from trimq.message.compression import compress
from trimq.message.names import check_group, check_topic
from trimq.wire.codes import RequestCode
from trimq.wire.command import Command

__all__ = ["Producer", "ProducerStatistics", "open_producer"]

NEVER_COMPRESS = 1 << 62
"""Brokers expand batches element by element and have no compressed form of them."""

FORBIDDEN_GROUPS = frozenset({"DEFAULT_PRODUCER", "CLIENT_INNER_PRODUCER"})
"""Everybody's: a broker that asks one of them about a transaction asks the wrong application."""

SWEEP_S = 0.05
"""How often messages whose default deadline has passed are looked for."""

ROUTE_PATIENCE_S = 2.0
"""How long a send waits for a route to appear: long enough for brokers that are just registering."""

PROVISIONAL_S = 60.0
"""How long a new topic's first sends may take to reach every group; until then its route may be incomplete."""

BYTES_IN_HAND_MAX = 64 * 1024 * 1024
"""Bodies of unsettled messages; above it `send` waits, whatever their number."""


@dataclass(frozen=True, slots=True)
class ProducerStatistics:
    """What one producer has done so far, and has in hand now."""

    stored: int
    duplicates: int
    not_stored: int
    unknown: int
    in_hand: int
    requests: int
    """Send requests transmitted, repetitions included."""


class Producer:
    """Sends messages. Made by `Client.producer`; any number of tasks may use it at the same time."""

    def __init__(
        self,
        instance: Instance,
        group: str,
        tasks: anyio.abc.TaskGroup,
        *,
        idempotent: bool,
        compress_over: int,
        compression: str,
        max_in_flight: int,
        auto_batch: bool,
        check: Checker | None,
    ) -> None:
        self.group = group
        self._checker = check
        self._instance = instance
        self._tracer = instance.tracer if group != TRACE_GROUP else None
        self._tasks = tasks
        self._pid = f"{instance.rng.getrandbits(64):016x}" if idempotent else None
        self._compress_over = compress_over
        self._compression = compression
        self._max_in_flight = max_in_flight
        self._auto_batch = auto_batch
        self._drivers: dict[str, LaneDriver] = {}
        self._spreads: dict[str, Spread] = {}
        self._sink = self._settled
        self._in_hand = 0
        self._bytes_in_hand = 0
        self._lobby: deque[tuple[Slot, ...]] = deque()
        """Messages (or explicit batches) that wait for room, in the order of their calls."""
        self._closed = False
        self._stored = self._duplicates = self._not_stored = self._unknown = 0

    # Sending

    async def send(self, message: Message, /, *, queue: Queue | None = None) -> Receipt:
        """Store one message and return where it is.

        Ends at the caller's deadline (`move_on_after`, `fail_after`), else after the client's default timeout, with

        - `NotStored`: surely not stored; send anything again,
        - `SendUnknown`: may have been stored; send the *same* `Message` again, it is stored once,
        - `BadRequest`, `NoRoute`, `Denied`: what the message says.

        Failovers, lost connections and refusals that pass are dealt with inside. Cancelled from outside: as at the
        deadline, but what is raised is the cancellation; sending the same `Message` again is safe then, too.
        """
        slot = await self._admit(message, queue)
        await self._wait_for(slot)
        return _receipt(slot)

    async def send_batch(self, messages: Sequence[Message], /, *, queue: Queue | None = None) -> Sequence[Receipt]:
        """Store several messages of one topic in one queue, next to each other: all or none.

        With order keys, all must have the same. Raises as `send`; `SendUnknown.id` is the first message's.
        """
        self._check_open()
        if not messages:
            return []
        if len(messages) == 1:
            return [await self.send(messages[0], queue=queue)]
        head = messages[0]
        if any(message.topic != head.topic or message.order_key != head.order_key for message in messages):
            raise BadRequest("a batch has one topic and one order key")
        if any(map(is_postponed, messages)):
            raise BadRequest("a batch cannot be delayed", advice="send delayed messages one by one")
        outgoing = [prepare(message, NEVER_COMPRESS) for message in messages]
        spread = await self._spread(head.topic)
        sent_to = next((message._sent_to for message in messages if message._sent_to is not None), None)
        target = sent_to or queue or self._choose(head, spread)
        pinned = sent_to is not None or queue is not None or head.order_key is not None
        deadline, bounded = bounded_deadline(self._instance.default_timeout)
        again = sent_to is not None
        slots = [Slot(each, target, self._sink, pinned=pinned, again=again, deadline=deadline) for each in outgoing]
        bundle = tuple(slots)
        began = anyio.current_time() if self._tracer is not None else 0.0
        for slot in slots:
            slot.began = began
            slot.bundle = bundle
            slot.bounded = bounded
        self._submit(bundle)
        await self._wait_for(slots[0])
        return [_receipt(slot) for slot in slots]

    async def send_atomic(self, messages: Sequence[Message], /) -> Sequence[Receipt]:
        """Store messages of several topics as one entry of one replica group's log: all or none, for every reader.

        The group is that of the first message's queue; all topics need queues there. Within it an `order_key` picks the
        queue, so keep the keys of ordered topics to atomic sends, or to topics with one group. Not for delayed
        messages, and only with brokers of ours. Raises as `send`; `SendUnknown.id` is the first message's.
        """
        self._check_open()
        if not messages:
            return []
        if any(map(is_postponed, messages)):
            raise BadRequest("an atomic send cannot be delayed")
        outgoing = [prepare(message, self._compress_over, self._compression) for message in messages]
        sent_to = next((message._sent_to for message in messages if message._sent_to is not None), None)
        first = sent_to or self._choose(messages[0], await self._spread(messages[0].topic))
        deadline, bounded = bounded_deadline(self._instance.default_timeout)
        together = Queue("", first.group, 0)
        slots: list[Slot] = []
        for each, message in zip(outgoing, messages, strict=True):
            target = message._sent_to or self._within(message, await self._spread(message.topic), first.group)
            slot = Slot(each, together, self._sink, pinned=True, again=sent_to is not None, deadline=deadline)
            slot.target = target
            slot.bounded = bounded
            slots.append(slot)
        bundle = tuple(slots)
        for slot in slots:
            slot.bundle = bundle
        self._submit(bundle)
        await self._wait_for(slots[0])
        return [_receipt(slot) for slot in slots]

    @staticmethod
    def _within(message: Message, spread: Spread, group: str) -> Queue:
        """The message's queue in this replica group."""
        queues = tuple(queue for queue in spread.sorted if queue.group == group)
        if not queues:
            raise BadRequest(
                f"the topic {message.topic!r} has no queue in the replica group {group}",
                advice="an atomic send needs all its topics in one group",
            )
        return pick_by_key(queues, message.order_key or message.topic)

    async def send_oneway(self, message: Message, /, *, queue: Queue | None = None) -> None:
        """Hand a message to the connection and forget it: no answer, no repetition, no receipt.

        Raises `NoRoute` or `Disconnected` when no broker can be reached.
        """
        self._check_open()
        slot = Slot(
            prepare(message, self._compress_over, self._compression), queue or await self._next_queue(message), _ignore
        )
        fields = send_fields(Request(slot.queue, [slot], 0), self.group, self._instance.clock.wall_ms())
        command = Command(code=RequestCode.SEND_MESSAGE_V2, ext=fields, body=slot.message.body)
        with anyio.CancelScope(deadline=deadline_for(self._instance.default_timeout)):
            for addr in self._instance.targets(slot.queue.group):
                await self._instance.links.get(addr)
                await self._instance.remoting.oneway(addr, command)
                return
        raise NoRoute(f"no broker of {slot.queue.group} can be reached")

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[SendStream]:
        """Send without waiting for each receipt: `await s.send(m)` returns once the message is queued.

        Leaving the block waits until all are acknowledged; if some failed, an `ExceptionGroup` of their errors.
        """
        stream = SendStream(self)
        try:
            yield stream
            await stream.drain()
        finally:
            stream.abandon()

    async def recall(self, receipt: Receipt, /) -> bool:
        """Cancel a message with `delay` or `at`. True: it will not be delivered. False: it does not wait (any more).

        Raises `Denied` where brokers do not allow it (RocketMQ: `recallMessageEnable`), else as any call.
        """
        if not receipt.recall_handle:
            raise BadRequest(f"message {receipt.id} cannot be recalled: it was sent without `delay` and `at`")
        return await recall(self._instance, receipt.queue.group, receipt.queue.topic, receipt.recall_handle, self.group)

    def transaction(self, message: Message, /, *, queue: Queue | None = None) -> Transaction:
        """A message that becomes visible only when the block is left without an exception: see `trimq.Transaction`.

        The producer needs a group of its own and a `check` (`mq.producer(group, check=...)`).
        """
        self._check_open()
        if self._checker is None:
            raise BadRequest(
                f"the producer group {self.group!r} cannot say what became of its transactions",
                advice="open it with `check=`: when this process dies between the halves, a broker asks",
            )
        return Transaction(self, message, queue)

    async def _send_half(self, message: Message, queue: Queue | None) -> Receipt:
        slot = await self._admit(message, queue, half=True)
        await self._wait_for(slot)
        return check_half(_receipt(slot))

    async def _send_prepared(self, message: Message, properties: str, queue: Queue | None) -> Receipt:
        """Send with a property string that was made elsewhere: for messages that were stored before."""
        body, bits = pack_body(message.body, self._compress_over, self._compression)
        slot = await self._admit(message, queue, outgoing=Outgoing(message, body, properties, bits))
        await self._wait_for(slot)
        return _receipt(slot)

    async def queues(self, topic: str) -> Sequence[Queue]:
        """The queues that `send` chooses from, sorted."""
        return (await self._spread(topic)).sorted

    def statistics(self) -> ProducerStatistics:
        """A snapshot."""
        return ProducerStatistics(
            self._stored,
            self._duplicates,
            self._not_stored,
            self._unknown,
            self._in_hand + sum(map(len, self._lobby)),
            sum(driver.transmitted for driver in self._drivers.values()),
        )

    # A message's way in

    async def _admit(
        self,
        message: Message,
        queue: Queue | None,
        stream: SendStream | None = None,
        *,
        half: bool = False,
        outgoing: Outgoing | None = None,
    ) -> Slot:
        self._check_open()
        if outgoing is None:
            outgoing = prepare(message, self._compress_over, self._compression, half_of=self.group if half else "")
        spread = self._spreads.get(message.topic) or await self._spread(message.topic)
        target = message._sent_to or queue
        deadline, bounded = bounded_deadline(self._instance.default_timeout)
        slot = Slot(
            outgoing,
            target or self._choose(message, spread),
            self._sink,
            pinned=target is not None or message.order_key is not None,
            again=message._sent_to is not None,
            deadline=deadline,
        )
        slot.stream = stream
        slot.bounded = bounded
        if self._tracer is not None:
            slot.began = anyio.current_time()
        self._submit((slot,))
        return slot

    def _choose(self, message: Message, spread: Spread) -> Queue:
        if message.order_key is not None:
            return pick_by_key(spread.sorted, message.order_key)
        return spread.current

    async def _next_queue(self, message: Message) -> Queue:
        spread = await self._spread(message.topic)
        queue = self._choose(message, spread)
        self._moved_on(queue)
        return queue

    def _submit(self, unit: tuple[Slot, ...]) -> None:
        """Into a lane, or behind those that wait for room: nobody overtakes, since order keys promise an order."""
        self._check_open()
        if self._lobby or not self._has_room():
            self._lobby.append(unit)
        else:
            self._enter(unit)

    def _has_room(self) -> bool:
        return self._in_hand < self._max_in_flight and self._bytes_in_hand < BYTES_IN_HAND_MAX

    def _enter(self, unit: tuple[Slot, ...]) -> None:
        queue = unit[0].queue
        if not unit[0].pinned and (spread := self._spreads.get(queue.topic)) is not None:
            queue = spread.current  # it may have moved on while they waited
        driver = self._drivers.get(queue.group) or self._open_driver(queue.group)
        for slot in unit:
            slot.queue = queue
            slot.entered = True
            driver.lane.put(slot)
            self._in_hand += 1
            self._bytes_in_hand += slot.size
            if slot.stream is not None:
                # Its sender waits for the place only; from here on it has the client's own time.
                slot.deadline = anyio.current_time() + self._instance.default_timeout
                if slot.entry is not None:
                    slot.entry.set()
        driver.poke()

    def _admit_waiting(self) -> None:
        lobby = self._lobby
        while lobby and (lobby[0][0].outcome is not None or self._has_room()):
            unit = lobby.popleft()
            if unit[0].outcome is None:
                self._enter(unit)

    def _open_driver(self, group: str) -> LaneDriver:
        driver = self._drivers[group] = LaneDriver(
            self._instance,
            group,
            producer_group=self.group,
            pid=self._pid,
            batching=self._auto_batch,
            moved_on=self._moved_on,
            rehome=self._rehome,
        )
        self._tasks.start_soon(driver.run)
        return driver

    def _check_open(self) -> None:
        if self._closed:
            raise NotStored("the producer is closed", advice="send inside its `async with` block")

    # Its way out

    async def _wait_for(self, slot: Slot) -> None:
        """Until the outcome is known; decides it when the deadline passes or the caller is cancelled."""
        event = slot.event = anyio.Event()
        try:
            if slot.outcome is not None:
                await anyio.lowlevel.checkpoint()
            elif not slot.bounded:
                await event.wait()  # the sweep watches the default deadline: no timer per message
            else:
                with anyio.CancelScope(deadline=slot.deadline):
                    await event.wait()
                self._give_up(slot, "no answer before the deadline")
        except BaseException:
            self._give_up(slot, "cancelled")
            raise

    def _settled(self, slot: Slot) -> None:
        """The sink of all slots."""
        if slot.entered:
            self._in_hand -= 1
            self._bytes_in_hand -= slot.size
        elif slot.entry is not None:
            slot.entry.set()
        outcome = slot.outcome
        if self._tracer is not None:
            self._trace(slot, self._tracer)
        if isinstance(outcome, Receipt):
            self._stored += 1
            if outcome.duplicate:
                self._duplicates += 1
        elif isinstance(outcome, SendUnknown):
            self._unknown += 1
        else:
            self._not_stored += 1
        if slot.event is not None:
            slot.event.set()
        elif slot.stream is not None:
            slot.stream.settled(slot)
        if self._lobby:
            self._admit_waiting()

    def _trace(self, slot: Slot, tracer: Tracer) -> None:
        receipt = slot.outcome if isinstance(slot.outcome, Receipt) else None
        host = receipt.leader if receipt is not None else ""
        tracer.sent(slot.message.message, self.group, host, anyio.current_time() - slot.began, receipt)

    def _give_up(self, slot: Slot, why: str) -> None:
        """Nobody waits any more: take it out, and say what is known of it."""
        if slot.outcome is not None:
            return
        known = GivenUp.NOT_STORED
        driver = self._drivers.get(slot.queue.group)
        if driver is not None and slot.entered:
            known = driver.lane.give_up(slot)
            driver.wake()
        reason = f"; last: {driver.last_error.message}" if driver is not None and driver.last_error else ""
        for each in slot.bundle or (slot,):
            message = each.message.message
            error: TrimqError
            if known is GivenUp.NOT_STORED:
                if not each.again:
                    forget_queue(each)
                error = NotStored(f"message {message.id} to {each.queue}: {why}{reason}")
            else:
                error = SendUnknown(f"message {message.id} to {each.queue}: {why}{reason}", id=message.id)
            each.settle(error)

    async def _sweep(self) -> None:
        """Notice silence, and give up what ran out of its default time: one task instead of many timers."""
        while True:
            await anyio.sleep(SWEEP_S)
            now = anyio.current_time()
            for driver in tuple(self._drivers.values()):
                driver.look_at(now)
                for slot in driver.lane.expired(now):
                    self._give_up(slot, "no answer before the deadline")
            while self._lobby and self._lobby[0][0].deadline <= now and self._lobby[0][0].stream is None:
                self._give_up(self._lobby[0][0], f"{self._max_in_flight} messages are in flight")
                self._admit_waiting()

    def close(self) -> None:
        """Nothing more is sent; whoever still waits is told what is known."""
        self._closed = True
        for unit in list(self._lobby):
            self._give_up(unit[0], "the producer was closed")
        self._lobby.clear()
        for driver in self._drivers.values():
            for slot in driver.lane.everything():
                self._give_up(slot, "the producer was closed")

    # Queues

    async def _spread(self, topic: str) -> Spread:
        spread = self._spreads.get(topic)
        if spread is not None:
            return spread
        check_topic(topic)
        patience = anyio.current_time() + ROUTE_PATIENCE_S
        backoff = Backoff(self._instance.rng)
        while True:
            try:
                route, exists = await self._instance.routes.publish_route(topic, DEFAULT_TOPIC_QUEUES)
                return self._spreads.get(topic) or self._open_spread(topic, route, exists=exists)
            except NoRoute:
                if anyio.current_time() >= patience:
                    raise
            await anyio.sleep(backoff.next_s())

    def _open_spread(self, topic: str, route: Route, *, exists: bool) -> Spread:
        queues = route.write_queues
        if not queues:
            raise NoRoute(f"no queue of {topic!r} may be written", advice="check the permission of topic and broker")
        until = 0.0 if exists else anyio.current_time() + PROVISIONAL_S
        start = self._instance.rng.randrange(len(queues))
        spread = self._spreads[topic] = Spread(queues, start=start, provisional_until=until)
        self._instance.routes.want(topic)
        return spread

    def _moved_on(self, queue: Queue) -> None:
        """A request for this queue went out: the next messages that may go anywhere take another one."""
        spread = self._spreads.get(queue.topic)
        if spread is None:
            return
        if spread.provisional_until:
            self._instance.routes.expect(queue.topic)
        if spread.current == queue:
            self._advance(spread)

    def _advance(self, spread: Spread) -> bool:
        """To the next queue whose group is not in trouble; returns whether there is one."""
        for _ in spread.queues:
            driver = self._drivers.get(spread.advance().group)
            if driver is None or driver.healthy:
                return True
        return False

    def _rehome(self, driver: LaneDriver, slots: list[Slot]) -> None:
        """A group is in trouble: what is not bound to it goes to another one, if there is one."""
        moved = False
        for slot in slots:
            spread = self._spreads.get(slot.queue.topic)
            if spread is None:
                driver.lane.put(slot)
                continue
            here = self._drivers.get(spread.current.group)
            if here is not None and not here.healthy and not self._advance(spread):
                driver.lane.put(slot)
                continue
            slot.queue = spread.current
            other = self._drivers.get(slot.queue.group) or self._open_driver(slot.queue.group)
            other.lane.put(slot)
            other.wake()
            moved = True
        if not moved:
            driver.wake()

    def route_changed(self, topic: str) -> None:
        """The instance learned another route: messages from now on use its queues."""
        spread = self._spreads.get(topic)
        route = self._instance.routes.known(topic)
        if spread is None or route is None:
            return
        queues = route.write_queues
        if not queues or queues == spread.sorted:
            return
        if anyio.current_time() < spread.provisional_until and not spread.groups <= {queue.group for queue in queues}:
            return  # the topic is still being created, group by group
        self._spreads[topic] = Spread(queues, start=spread.index, provisional_until=0.0)

    def forget_topics(self) -> None:
        """Undo the wishes for fresh routes; part of closing."""
        for topic in self._spreads:
            self._instance.routes.unwant(topic)
        self._spreads.clear()


def _receipt(slot: Slot) -> Receipt:
    outcome = slot.outcome
    if isinstance(outcome, Receipt):
        return outcome
    assert outcome is not None, "waiting ends with an outcome"
    raise outcome


def _ignore(slot: Slot) -> None:
    """The sink of a oneway send."""


@asynccontextmanager
async def open_producer(
    instance: Instance,
    group: str,
    *,
    idempotent: bool,
    compress_over: int,
    max_in_flight: int,
    auto_batch: bool,
    compression: str = "zlib",
    check: Checker | None = None,
) -> AsyncIterator[Producer]:
    """A producer for the length of the block; on the way out whoever still waits in `send` is told what is known."""
    check_group(group)
    compress(b"", compression)  # unknown, or its library is missing: say so now
    if check is not None and group in FORBIDDEN_GROUPS:
        raise BadRequest(f"transactions need a producer group of their own, not {group!r}")
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        producer = Producer(
            instance,
            group,
            tasks,
            idempotent=idempotent,
            compress_over=compress_over,
            compression=compression,
            max_in_flight=max_in_flight,
            auto_batch=auto_batch,
            check=check,
        )
        instance.add_producer(group)
        stop_checking = instance.checks.add(group, check) if check is not None else None
        stop_watching = instance.routes.watch(producer.route_changed)
        tasks.start_soon(producer._sweep)
        try:
            yield producer
        except Exception as error:  # kept out of the task group, which would wrap it
            failure = error
        finally:
            producer.close()
            producer.forget_topics()
            stop_watching()
            if stop_checking is not None:
                stop_checking()
            instance.remove_producer(group)
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
