"""trimq without an event loop: the same names, with `with` and `for`, from plain threads.

    from trimq import blocking

    with blocking.connect("127.0.0.1:9876") as mq:
        mq.send("orders", b"...", tag="paid")
        with mq.subscribe("orders", group="billing") as orders:
            for message in orders:
                with message:
                    ...

One background thread runs the real client; every call here hands its work to that thread and waits. So all promises
are those of `trimq.client`, any thread may use any object, and messages sent by many threads at once share requests.
A call costs about a tenth of a millisecond: programs that need tens of thousands of messages a second use the
asynchronous client. Where a cancel scope would set a deadline there, calls take `timeout` (seconds) here.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.from_thread import BlockingPortal

from trimq import outbox
from trimq.client import client as asynchronous
from trimq.client.admin import Admin as AsyncAdmin
from trimq.client.admin import Cluster, Lag, Topic
from trimq.client.dead_letters import Buried, Edit, Redriven
from trimq.client.dead_letters import DeadLetters as AsyncDeadLetters
from trimq.client.limits import Limits
from trimq.client.model import (
    EVERYTHING,
    Batch,
    Filter,
    Message,
    Position,
    Queue,
    Receipt,
    SendStatus,
    Sql,
    Start,
    Tag,
)
from trimq.client.pop_consumer import PopConsumer as AsyncPopConsumer
from trimq.client.producer import Producer as AsyncProducer
from trimq.client.pull_consumer import PullConsumer as AsyncPullConsumer
from trimq.client.push_consumer import PushConsumer as AsyncPushConsumer
from trimq.client.received import DeadLetter, Retry, Suspend
from trimq.client.received import Received as AsyncReceived
from trimq.client.replies import Reply
from trimq.client.route import Route
from trimq.client.send_stream import SendStream as AsyncSendStream
from trimq.client.timers import Timed
from trimq.client.transaction import Outcome
from trimq.client.transaction import Transaction as AsyncTransaction
from trimq.message.allocation import (
    Averagely,
    AveragelyByCircle,
    ByConfig,
    ByMachineRoom,
    ConsistentHash,
    MachineRoomNearby,
    Strategy,
)

__all__ = [
    "Admin",
    "Averagely",
    "AveragelyByCircle",
    "Batch",
    "ByConfig",
    "ByMachineRoom",
    "Client",
    "ConsistentHash",
    "DeadLetter",
    "Limits",
    "MachineRoomNearby",
    "Message",
    "Outcome",
    "PopConsumer",
    "Producer",
    "PullConsumer",
    "PushConsumer",
    "Queue",
    "Receipt",
    "Received",
    "Reply",
    "Retry",
    "SendStatus",
    "SendStream",
    "Sql",
    "Start",
    "Suspend",
    "Tag",
    "Transaction",
    "connect",
]

T = TypeVar("T")


class _Portal:
    """The way into the background thread."""

    def __init__(self, portal: BlockingPortal) -> None:
        self.portal = portal

    def call(self, work: Callable[[], Awaitable[T]], timeout: float | None = None) -> T:
        if timeout is None:
            return self.portal.call(work)

        async def bounded() -> T:
            with anyio.fail_after(timeout):
                return await work()

        return self.portal.call(bounded)

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items of an asynchronous iterator, each asked for when it is wanted."""
        end = object()

        async def following() -> object:
            return await anext(items, end)

        while (item := self.portal.call(following)) is not end:
            yield cast(T, item)


class Received:
    """A message that came; see `trimq.Received`. Leaving its `with` block acknowledges it."""

    def __init__(self, message: AsyncReceived, portal: _Portal) -> None:
        self.message = message
        """The message as the asynchronous client delivers it: every field is there."""
        self._portal = portal

    @property
    def topic(self) -> str:
        return self.message.topic

    @property
    def body(self) -> bytes:
        return self.message.body

    @property
    def tag(self) -> str | None:
        return self.message.tag

    @property
    def keys(self) -> Sequence[str]:
        return self.message.keys

    @property
    def order_key(self) -> str | None:
        return self.message.order_key

    @property
    def properties(self) -> Mapping[str, str]:
        return self.message.properties

    @property
    def id(self) -> str:
        return self.message.id

    @property
    def queue(self) -> Queue:
        return self.message.queue

    @property
    def offset(self) -> int:
        return self.message.offset

    @property
    def attempt(self) -> int:
        return self.message.attempt

    @property
    def stored_at(self) -> datetime:
        return self.message.stored_at

    @property
    def born_at(self) -> datetime:
        return self.message.born_at

    def ack(self) -> bool:
        """This message is done with; False: too late, it comes again."""
        return self._portal.call(self.message.ack)

    def extend(self, by: timedelta) -> None:
        """Keep it for so long from now on."""
        self._portal.call(partial(self.message.extend, by))

    def retry(self, after: timedelta | None = None) -> None:
        """Hand it back, to be delivered again later."""
        self._portal.call(partial(self.message.retry, after))

    @property
    def wants_reply(self) -> bool:
        return self.message.wants_reply

    def reply(self, body: bytes | str, *, tag: str | None = None, properties: Mapping[str, str] | None = None) -> None:
        """Answer a request."""
        self._portal.call(partial(self.message.reply, body, tag=tag, properties=properties))

    def dead_letter(self, reason: str = "") -> None:
        """Move it to the consumer group's dead letters."""
        self._portal.call(partial(self.message.dead_letter, reason))

    def __enter__(self) -> Self:
        self._portal.call(self.message.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self._portal.call(partial(self.message.__aexit__, kind, error, trace))

    def __repr__(self) -> str:
        return repr(self.message)


class SendStream:
    """See `trimq.SendStream`."""

    def __init__(self, stream: AsyncSendStream, portal: _Portal) -> None:
        self._stream = stream
        self._portal = portal

    def send(self, message: Message, /, *, queue: Queue | None = None) -> None:
        """Queue one message; waits only while the producer has its `max_in_flight` in hand."""
        self._portal.call(partial(self._stream.send, message, queue=queue))

    def drain(self, *, timeout: float | None = None) -> None:
        """Wait until everything queued so far is acknowledged."""
        self._portal.call(self._stream.drain, timeout)


class Transaction:
    """See `trimq.Transaction`. Leaving its `with` block commits; an exception rolls back."""

    def __init__(self, transaction: AsyncTransaction, portal: _Portal) -> None:
        self._transaction = transaction
        self._portal = portal

    @property
    def id(self) -> str:
        return self._transaction.id

    @property
    def receipt(self) -> Receipt | None:
        return self._transaction.receipt

    def commit(self, *, timeout: float | None = None) -> None:
        """Make the message visible."""
        self._portal.call(self._transaction.commit, timeout)

    def rollback(self, *, timeout: float | None = None) -> None:
        """Drop the message."""
        self._portal.call(self._transaction.rollback, timeout)

    def unknown(self) -> None:
        """Decide nothing here: the broker will ask `check`."""
        self._transaction.unknown()

    def __enter__(self) -> Self:
        self._portal.call(self._transaction.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._portal.call(partial(self._transaction.__aexit__, kind, error, trace))


class Producer:
    """See `trimq.Producer`."""

    def __init__(self, producer: AsyncProducer, portal: _Portal) -> None:
        self._producer = producer
        self._portal = portal

    def send(self, message: Message, /, *, queue: Queue | None = None, timeout: float | None = None) -> Receipt:
        """Store one message and return where it is; errors as `trimq.Producer.send`."""
        return self._portal.call(partial(self._producer.send, message, queue=queue), timeout)

    def send_batch(
        self, messages: Sequence[Message], /, *, queue: Queue | None = None, timeout: float | None = None
    ) -> Sequence[Receipt]:
        """Store several messages next to each other, all or none."""
        return self._portal.call(partial(self._producer.send_batch, messages, queue=queue), timeout)

    def send_atomic(self, messages: Sequence[Message], /, *, timeout: float | None = None) -> Sequence[Receipt]:
        """Store messages of several topics as one entry of a replica group's log, all or none."""
        return self._portal.call(partial(self._producer.send_atomic, messages), timeout)

    def send_oneway(self, message: Message, /, *, queue: Queue | None = None) -> None:
        """Hand a message to the connection and forget it."""
        self._portal.call(partial(self._producer.send_oneway, message, queue=queue))

    @contextmanager
    def stream(self) -> Iterator[SendStream]:
        """Send without waiting for each receipt; leaving the block waits for all."""
        with self._portal.portal.wrap_async_context_manager(self._producer.stream()) as stream:
            yield SendStream(stream, self._portal)

    def recall(self, receipt: Receipt, /) -> bool:
        """Cancel a message with `delay` or `at`; False when it does not wait (any more)."""
        return self._portal.call(partial(self._producer.recall, receipt))

    def transaction(self, message: Message, /, *, queue: Queue | None = None) -> Transaction:
        """A message that becomes visible only when the `with` block is left without an exception."""
        return Transaction(self._producer.transaction(message, queue=queue), self._portal)

    def queues(self, topic: str) -> Sequence[Queue]:
        """The queues that `send` chooses from."""
        return self._portal.call(partial(self._producer.queues, topic))


class PushConsumer:
    """See `trimq.PushConsumer`. Several threads may iterate over it at the same time."""

    def __init__(self, consumer: AsyncPushConsumer, portal: _Portal) -> None:
        self._consumer = consumer
        self._portal = portal

    def __iter__(self) -> Iterator[Received]:
        return self

    def __next__(self) -> Received:
        """The next message; waits for one. Ends when the consumer's block is left."""
        message = self._portal.call(self._next)
        if message is None:
            raise StopIteration
        return Received(message, self._portal)

    async def _next(self) -> AsyncReceived | None:
        try:
            return await self._consumer.__anext__()
        except StopAsyncIteration:
            return None  # an asynchronous end of iteration cannot leave a coroutine as itself

    def poll(self, timeout: float) -> Received | None:
        """The next message, or None when none comes within `timeout` seconds."""

        async def within() -> AsyncReceived | None:
            with anyio.move_on_after(timeout):
                return await self._next()
            return None

        message = self._portal.call(within)
        return None if message is None else Received(message, self._portal)

    def run(self, handler: Callable[[Received], object], *, concurrency: int = 20) -> None:
        """Call `handler` in worker threads, up to `concurrency` at a time, until interrupted or the block is left."""

        async def in_thread(message: AsyncReceived) -> None:
            await anyio.to_thread.run_sync(handler, Received(message, self._portal), limiter=limiter)

        async def serve() -> None:
            await self._consumer.run(in_thread, concurrency=concurrency)

        limiter = self._portal.portal.call(anyio.CapacityLimiter, concurrency)
        future = self._portal.portal.start_task_soon(serve)
        try:
            future.result()
        finally:
            future.cancel()

    def pause(self, *queues: Queue) -> None:
        """Stop reading these queues, or all."""
        self._portal.portal.call(self._consumer.pause, *queues)

    def resume(self, *queues: Queue) -> None:
        """Undo `pause`."""
        self._portal.portal.call(self._consumer.resume, *queues)

    def commit(self) -> None:
        """Commit now what is finished."""
        self._portal.call(self._consumer.commit)

    @property
    def assignment(self) -> frozenset[Queue]:
        """The queues that this consumer reads now."""
        return self._consumer.assignment


class PopConsumer:
    """See `trimq.PopConsumer`. Several threads may iterate over it at the same time."""

    def __init__(self, consumer: AsyncPopConsumer, portal: _Portal) -> None:
        self._consumer = consumer
        self._portal = portal

    def __iter__(self) -> Iterator[Received]:
        """Messages as they come, without end."""
        while True:
            message = self.poll(timeout=None)
            if message is None:
                return
            yield message

    def poll(self, *, timeout: float | None = 15.0) -> Received | None:
        """The next message, or None when none comes within `timeout` seconds (None: wait for ever)."""

        async def following() -> AsyncReceived | None:
            with anyio.move_on_after(timeout):
                try:
                    return await anext(self._consumer)
                except StopAsyncIteration:
                    pass
            return None

        message = self._portal.call(following)
        return None if message is None else Received(message, self._portal)

    def receive(self, *, max: int = 32, wait: float = 15.0) -> list[Received]:
        """Up to `max` messages, waiting up to `wait` seconds for the first one."""
        messages = self._portal.call(partial(self._consumer.receive, max=max, wait=wait))
        return [Received(message, self._portal) for message in messages]


class PullConsumer:
    """See `trimq.PullConsumer`."""

    def __init__(self, consumer: AsyncPullConsumer, portal: _Portal) -> None:
        self._consumer = consumer
        self._portal = portal

    def queues(self, topic: str) -> Sequence[Queue]:
        """All queues of a topic, sorted."""
        return self._portal.call(partial(self._consumer.queues, topic))

    def bounds(self, queue: Queue) -> tuple[int, int]:
        """The oldest offset still kept, and one past the newest."""
        return self._portal.call(partial(self._consumer.bounds, queue))

    def offset_at(self, queue: Queue, when: datetime) -> int:
        """The first message stored at or after a time."""
        return self._portal.call(partial(self._consumer.offset_at, queue, when))

    def read(
        self, queue: Queue, offset: Position, *, max: int = 32, wait: float = 15.0, filter: Filter = EVERYTHING
    ) -> Batch:
        """Read up to `max` messages from an offset on."""
        return self._portal.call(partial(self._consumer.read, queue, offset, max=max, wait=wait, filter=filter))

    def iterate(
        self,
        topic: str,
        *,
        start: Position = Start.FIRST,
        until: datetime | None = None,
        follow: bool = False,
        filter: Filter = EVERYTHING,
        key: str | None = None,
    ) -> Iterator[AsyncReceived]:
        """Every message of a topic from `start` on."""
        messages = self._consumer.iterate(topic, start=start, until=until, follow=follow, filter=filter, key=key)

        async def following() -> AsyncReceived | None:
            try:
                return await anext(messages)
            except StopAsyncIteration:
                return None

        while (message := self._portal.call(following)) is not None:
            yield message

    def assign(self, queues: Mapping[Queue, Position] | Iterable[Queue], *, filter: Filter = EVERYTHING) -> None:
        """Read these queues from now on, and no others."""
        self._portal.call(partial(self._consumer.assign, queues, filter=filter))

    def seek(self, queue: Queue, position: Position) -> None:
        """Go on reading an assigned queue from another place."""
        self._portal.call(partial(self._consumer.seek, queue, position))

    def poll(self, *, max: int = 32, wait: float = 15.0) -> list[AsyncReceived]:
        """Up to `max` messages of the assigned queues."""
        return self._portal.call(partial(self._consumer.poll, max=max, wait=wait))

    def position(self, queue: Queue) -> int:
        """The offset behind the last message that `poll` gave of this queue."""
        return self._consumer.position(queue)

    def committed(self, queue: Queue) -> int | None:
        """The consumer group's committed offset, None when there is none."""
        return self._portal.call(partial(self._consumer.committed, queue))

    def commit(self, offsets: Mapping[Queue, int] | None = None) -> None:
        """Commit offsets, by default those that `poll` has reached."""
        self._portal.call(partial(self._consumer.commit, offsets))


class DeadLetters:
    """See `trimq.client.dead_letters.DeadLetters`."""

    def __init__(self, letters: AsyncDeadLetters, portal: _Portal) -> None:
        self._letters = letters
        self._portal = portal

    def read(self, *, again: bool = True) -> Iterator[Buried]:
        """All dead letters, or those that were not redriven."""
        return self._portal.iterate(self._letters.read(again=again))

    def redrive(
        self,
        letters: Sequence[Buried] | None = None,
        *,
        to: Literal["group", "topic"] = "group",
        edit: Edit | None = None,
    ) -> Iterator[Redriven]:
        """Send dead letters again: these, or all that were not redriven before."""
        return self._portal.iterate(self._letters.redrive(letters, to=to, edit=edit))


class Admin:
    """See `trimq.Admin`."""

    def __init__(self, admin: AsyncAdmin, portal: _Portal) -> None:
        self._admin = admin
        self._portal = portal

    def create_topic(self, name: str, *, queues: int = 8, groups: Sequence[str] | None = None) -> Topic:
        """Create a topic, or change its number of queues."""
        return self._portal.call(partial(self._admin.create_topic, name, queues=queues, groups=groups))

    def topics(self, *, system: bool = False) -> Sequence[Topic]:
        """All topics, sorted by name."""
        return self._portal.call(partial(self._admin.topics, system=system))

    def route(self, topic: str) -> Route:
        """Where a topic lives, asked now."""
        return self._portal.call(partial(self._admin.route, topic))

    def lag(self, group: str) -> Lag:
        """How far a consumer group is."""
        return self._portal.call(partial(self._admin.lag, group))

    @contextmanager
    def dead_letters(self, group: str) -> Iterator[DeadLetters]:
        """What this consumer group gave up on, for the length of the block."""
        with self._portal.portal.wrap_async_context_manager(self._admin.dead_letters(group)) as letters:
            yield DeadLetters(letters, self._portal)

    def timers(self, topic: str | None = None, *, limit: int = 1_000) -> Sequence[Timed]:
        """Messages that wait for their time."""
        return self._portal.call(partial(self._admin.timers, topic, limit=limit))

    def cancel_timer(self, timed: Timed) -> bool:
        """Cancel one of them; False when it does not wait any more."""
        return self._portal.call(partial(self._admin.cancel_timer, timed))

    def cluster(self) -> Cluster:
        """All replica groups and their addresses."""
        return self._portal.call(self._admin.cluster)


class Relay:
    """See `trimq.outbox.Relay`."""

    def __init__(self, relay: outbox.Relay, portal: _Portal) -> None:
        self._relay = relay
        self._portal = portal

    def notify(self) -> None:
        """A transaction with messages was committed: send them now."""
        self._portal.portal.call(self._relay.notify)

    def drain(self, *, timeout: float | None = None) -> None:
        """Return when nothing waits."""
        self._portal.call(self._relay.drain, timeout)


class Client:
    """See `trimq.Client`."""

    def __init__(self, client: asynchronous.Client, portal: _Portal) -> None:
        self._client = client
        self._portal = portal
        self.admin = Admin(client.admin, portal)

    def send(
        self, topic: str, body: bytes | str, /, *, timeout: float | None = None, **fields: Any
    ) -> Receipt:  # Any: the fields of Message
        """Store one message; `fields` are those of `Message`."""
        return self._portal.call(partial(self._client.send, topic, body, **fields), timeout)

    def request(
        self, topic: str, body: bytes | str, /, *, timeout: float | None = None, **fields: Any
    ) -> Reply:  # Any: the fields of Message
        """Send a message and wait for the reply of whoever consumes it."""
        return self._portal.call(partial(self._client.request, topic, body, **fields), timeout)

    @contextmanager
    def producer(
        self,
        group: str = asynchronous.DEFAULT_PRODUCER,
        *,
        check: Callable[[Received], Outcome] | None = None,
        **options: Any,
    ) -> Iterator[Producer]:
        """A producer of its own; options as `trimq.Client.producer`. `check` is called in a worker thread."""
        if check is not None:

            async def in_thread(message: AsyncReceived) -> Outcome:
                return await anyio.to_thread.run_sync(check, Received(message, self._portal))

            options["check"] = in_thread
        with self._portal.portal.wrap_async_context_manager(self._client.producer(group, **options)) as producer:
            yield Producer(producer, self._portal)

    @contextmanager
    def subscribe(
        self,
        topic: str | Mapping[str, Filter],
        *,
        group: str,
        filter: Filter = EVERYTHING,
        mode: Literal["cluster", "broadcast"] = "cluster",
        ordered: bool = False,
        start: Start | datetime = Start.LAST,
        prefetch: int | None = None,
        limits: Limits = asynchronous.DEFAULT_LIMITS,
        max_attempts: int = 16,
        allocation: Strategy = asynchronous.AVERAGELY,
        offsets_file: str | os.PathLike[str] | None = None,
    ) -> Iterator[PushConsumer]:
        """Join a consumer group; arguments as `trimq.Client.subscribe`."""
        consumer = self._client.subscribe(
            topic,
            group=group,
            filter=filter,
            mode=mode,
            ordered=ordered,
            start=start,
            prefetch=prefetch,
            limits=limits,
            max_attempts=max_attempts,
            allocation=allocation,
            offsets_file=offsets_file,
        )
        with self._portal.portal.wrap_async_context_manager(consumer) as opened:
            yield PushConsumer(opened, self._portal)

    @contextmanager
    def outbox(self, path: str | Path) -> Iterator[Relay]:
        """Send what is in the outbox of an SQLite database (`trimq.outbox`) while the block runs."""
        with self._portal.portal.wrap_async_context_manager(outbox.open_relay(self._client, path)) as relay:
            yield Relay(relay, self._portal)

    @contextmanager
    def pop(
        self,
        topic: str | Mapping[str, Filter],
        *,
        group: str,
        filter: Filter = EVERYTHING,
        invisible: float = 60.0,
        ordered: bool = False,
        start: Start = Start.LAST,
        max_attempts: int = 16,
    ) -> Iterator[PopConsumer]:
        """Take messages one by one; arguments as `trimq.Client.pop`."""
        consumer = self._client.pop(
            topic,
            group=group,
            filter=filter,
            invisible=invisible,
            ordered=ordered,
            start=start,
            max_attempts=max_attempts,
        )
        with self._portal.portal.wrap_async_context_manager(consumer) as opened:
            yield PopConsumer(opened, self._portal)

    @contextmanager
    def pull(self, group: str | None = None) -> Iterator[PullConsumer]:
        """Read queues by hand."""
        with self._portal.portal.wrap_async_context_manager(self._client.pull(group)) as consumer:
            yield PullConsumer(consumer, self._portal)


@contextmanager
def connect(
    namesrv: str | Sequence[str] | None = None,
    *,
    default_timeout: float = 10.0,
    client_id: str | None = None,
    trace: bool | str = False,
) -> Iterator[Client]:
    """Open a client, with a thread of its own, for the length of the block; arguments as `trimq.connect`."""
    with anyio.from_thread.start_blocking_portal("asyncio") as portal:
        opening = asynchronous.connect(namesrv, default_timeout=default_timeout, client_id=client_id, trace=trace)
        with portal.wrap_async_context_manager(opening) as client:
            yield Client(client, _Portal(portal))
