"""The producer: `send` waits for one event; everything that costs happens per request, not per message.

A message is checked and encoded, gets a queue (`trimq.client.spread`), and joins the lane of that queue's replica group
as soon as there is room (`trimq.client.in_hand`). The lanes do the rest (`trimq.client.lane` says how, and why nothing
is stored twice). Choosing the queue:
- sent before without a known outcome, or an explicit `queue=`: that queue, whatever happens,
- `order_key`: by hash over all queues, as Java's SelectMessageQueueByHash does;
  the queues of a group that is gone for a moment are among them,
- else the topic's current queue, which moves on with every request: one by one that is round robin, under load whole
  batches go to one queue. A group in trouble is passed over.

A topic that does not exist yet gets its first messages on all groups, so that it exists everywhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import anyio.abc

from trimq.client.background import open_background
from trimq.client.in_hand import InHand
from trimq.client.instance import Instance
from trimq.client.lane import Request, Slot
from trimq.client.model import Message, Queue, Receipt
from trimq.client.outgoing import Outgoing, is_postponed, pack_body, prepare, send_fields
from trimq.client.send_stream import SendStream
from trimq.client.timers import recall
from trimq.client.timing import bounded_deadline, deadline_for
from trimq.client.trace import TRACE_GROUP
from trimq.client.transaction import Checker, Transaction, check_half
from trimq.errors import BadRequest, NoRoute
from trimq.message.compression import compress
from trimq.message.names import check_group
from trimq.wire.codes import RequestCode
from trimq.wire.command import Command

__all__ = ["Producer", "ProducerStatistics", "open_producer"]

NEVER_COMPRESS = 1 << 62
"""Brokers expand batches element by element and have no compressed form of them."""

FORBIDDEN_GROUPS = frozenset({"DEFAULT_PRODUCER", "CLIENT_INNER_PRODUCER"})
"""Everybody's: a broker that asks one of them about a transaction asks the wrong application."""


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
        self._compress_over = compress_over
        self._compression = compression
        self._in_hand = InHand(
            instance,
            group,
            tasks,
            pid=f"{instance.rng.getrandbits(64):016x}" if idempotent else None,
            batching=auto_batch,
            messages_max=max_in_flight,
            tracer=self._tracer,
        )
        self._spreads = self._in_hand.spreads
        self._sink = self._in_hand.settled

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
        await self._in_hand.wait_for(slot)
        return _receipt(slot)

    async def send_batch(self, messages: Sequence[Message], /, *, queue: Queue | None = None) -> Sequence[Receipt]:
        """Store several messages of one topic in one queue, next to each other: all or none.

        With order keys, all must have the same. Raises as `send`; `SendUnknown.id` is the first message's.
        """
        self._in_hand.check_open()
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
        spread = await self._spreads.find(head.topic)
        sent_to = next((message._sent_to for message in messages if message._sent_to is not None), None)
        target = sent_to or queue or spread.choose(head)
        pinned = sent_to is not None or queue is not None or head.order_key is not None
        deadline, bounded = bounded_deadline(self._instance.default_timeout)
        again = sent_to is not None
        slots = [Slot(each, target, self._sink, pinned=pinned, again=again, deadline=deadline) for each in outgoing]
        return await self._send_together(slots, bounded=bounded)

    async def send_atomic(self, messages: Sequence[Message], /) -> Sequence[Receipt]:
        """Store messages of several topics as one entry of one replica group's log: all or none, for every reader.

        The group is that of the first message's queue; all topics need queues there. Within it an `order_key` picks the
        queue, so keep the keys of ordered topics to atomic sends, or to topics with one group. Not for delayed
        messages, and only with brokers of ours. Raises as `send`; `SendUnknown.id` is the first message's.
        """
        self._in_hand.check_open()
        if not messages:
            return []
        if any(map(is_postponed, messages)):
            raise BadRequest("an atomic send cannot be delayed")
        outgoing = [prepare(message, self._compress_over, self._compression) for message in messages]
        sent_to = next((message._sent_to for message in messages if message._sent_to is not None), None)
        first = sent_to or (await self._spreads.find(messages[0].topic)).choose(messages[0])
        deadline, bounded = bounded_deadline(self._instance.default_timeout)
        together = Queue("", first.group, 0)
        slots: list[Slot] = []
        for each, message in zip(outgoing, messages, strict=True):
            target = message._sent_to or (await self._spreads.find(message.topic)).within(message, first.group)
            slot = Slot(each, together, self._sink, pinned=True, again=sent_to is not None, deadline=deadline)
            slot.target = target
            slots.append(slot)
        return await self._send_together(slots, bounded=bounded)

    async def send_oneway(self, message: Message, /, *, queue: Queue | None = None) -> None:
        """Hand a message to the connection and forget it: no answer, no repetition, no receipt.

        Raises `NoRoute` or `Disconnected` when no broker can be reached.
        """
        self._in_hand.check_open()
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
        stream = SendStream(self._admit, self._in_hand.give_up)
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
        self._in_hand.check_open()
        if self._checker is None:
            raise BadRequest(
                f"the producer group {self.group!r} cannot say what became of its transactions",
                advice="open it with `check=`: when this process dies between the halves, a broker asks",
            )
        return Transaction(self, message, queue)

    async def _send_half(self, message: Message, queue: Queue | None) -> Receipt:
        slot = await self._admit(message, queue, half=True)
        await self._in_hand.wait_for(slot)
        return check_half(_receipt(slot))

    async def _send_prepared(self, message: Message, properties: str, queue: Queue | None) -> Receipt:
        """Send with a property string that was made elsewhere: for messages that were stored before."""
        body, bits = pack_body(message.body, self._compress_over, self._compression)
        slot = await self._admit(message, queue, outgoing=Outgoing(message, body, properties, bits))
        await self._in_hand.wait_for(slot)
        return _receipt(slot)

    async def queues(self, topic: str) -> Sequence[Queue]:
        """The queues that `send` chooses from, sorted."""
        return (await self._spreads.find(topic)).sorted

    def statistics(self) -> ProducerStatistics:
        """A snapshot."""
        hand = self._in_hand
        return ProducerStatistics(
            hand.stored, hand.duplicates, hand.not_stored, hand.unknown, hand.count, hand.transmitted
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
        self._in_hand.check_open()
        if outgoing is None:
            outgoing = prepare(message, self._compress_over, self._compression, half_of=self.group if half else "")
        spread = self._spreads.known.get(message.topic) or await self._spreads.find(message.topic)
        target = message._sent_to or queue
        deadline, bounded = self._in_hand.loop.bounded_deadline(self._instance.default_timeout)
        slot = Slot(
            outgoing,
            target or spread.choose(message),
            self._sink,
            pinned=target is not None or message.order_key is not None,
            again=message._sent_to is not None,
            deadline=deadline,
        )
        slot.stream = stream
        slot.bounded = bounded
        if self._tracer is not None:
            slot.began = anyio.current_time()
        self._in_hand.submit((slot,))
        return slot

    async def _send_together(self, slots: Sequence[Slot], *, bounded: bool) -> Sequence[Receipt]:
        """One bundle: all or none."""
        bundle = tuple(slots)
        began = anyio.current_time() if self._tracer is not None else 0.0
        for slot in bundle:
            slot.began = began
            slot.bundle = bundle
            slot.bounded = bounded
        self._in_hand.submit(bundle)
        await self._in_hand.wait_for(bundle[0])
        return [_receipt(slot) for slot in bundle]

    async def _next_queue(self, message: Message) -> Queue:
        spread = await self._spreads.find(message.topic)
        queue = spread.choose(message)
        self._spreads.moved_on(queue)
        return queue


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
    async with open_background() as tasks:
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
        stop_watching = instance.routes.watch(producer._spreads.route_changed)
        tasks.start_soon(producer._in_hand.run)
        try:
            yield producer
        finally:
            producer._in_hand.close()
            producer._spreads.forget_topics()
            stop_watching()
            if stop_checking is not None:
                stop_checking()
            instance.remove_producer(group)
