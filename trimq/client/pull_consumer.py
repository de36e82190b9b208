"""Reading queues by hand: one read at a time, a replay from start to end, or assigned queues that are read ahead.

Nothing is acknowledged here: the position is the reader's own. With a consumer group, `commit` and `committed` keep
positions at the brokers. Three ways to read:
- `read(queue, offset)`: one request, one answer,
- `iterate(topic)`: everything between two points, or endlessly with `follow=True`,
- `assign` + `poll`: several queues, each read ahead by a task, as RocketMQ's lite pull consumer does.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import anyio
import anyio.abc

from trimq.client.background import open_background
from trimq.client.broker_api import ANONYMOUS, BrokerApi
from trimq.client.incoming import decode_records
from trimq.client.instance import Instance
from trimq.client.model import EVERYTHING, Batch, Filter, Position, Queue, Start, to_ms
from trimq.client.positions import resolve
from trimq.client.reader import Holding, Reader
from trimq.client.received import Received
from trimq.client.replay import Following, Replay
from trimq.client.replies import send_reply
from trimq.errors import BadRequest, Disconnected, TrimqError
from trimq.message.names import check_group
from trimq.wire.codes import ResponseCode

__all__ = ["PullConsumer", "open_pull_consumer"]

log = logging.getLogger(__name__)

READ_AHEAD = 256
"""Messages that `assign` reads ahead per queue."""

FOLLOW_RETRY_S = 1.0
"""A new queue that could not be taken up is tried again after this."""


class PullConsumer:
    """See the module docstring. Made by `Client.pull`."""

    def __init__(self, instance: Instance, group: str | None, tasks: anyio.abc.TaskGroup) -> None:
        self.group = group
        self._instance = instance
        self._api = BrokerApi(instance)
        self._tasks = tasks
        self._readers: dict[Queue, Reader] = {}
        self._positions: dict[Queue, int] = {}
        self._ready: deque[Received] = deque()
        self._news = anyio.Event()
        self._home = _Unacknowledged(instance)

    # One read at a time

    async def queues(self, topic: str) -> Sequence[Queue]:
        """All queues of a topic as the name server knows them now, sorted. Raises `NoRoute` when it does not exist."""
        routes = self._instance.routes
        return (await routes.refresh(topic) or await routes.route(topic)).read_queues

    async def bounds(self, queue: Queue) -> tuple[int, int]:
        """The oldest offset still kept, and one past the newest."""
        await self._instance.routes.route(queue.topic)
        return await self._api.first_offset(queue), await self._api.end_offset(queue)

    async def offset_at(self, queue: Queue, when: datetime) -> int:
        """The first message stored at or after a time."""
        await self._instance.routes.route(queue.topic)
        return await self._api.offset_at(queue, to_ms(when))

    async def read(
        self,
        queue: Queue,
        offset: Position,
        *,
        max: int = 32,
        wait: float = 15.0,
        filter: Filter = EVERYTHING,
        replica: str | None = None,
    ) -> Batch:
        """Read up to `max` messages from an offset on, waiting up to `wait` seconds while there are none.

        An offset outside the queue gives an empty batch whose `next_offset` is the nearest one inside. `replica` is an
        `ip:port` of the group to read through; by default the leader, or any replica that answers. A broker
        may give fewer than `max` (Apache's at most 32).
        """
        await self._instance.routes.route(queue.topic)
        at = await resolve(self._api, queue, offset)
        addresses = [replica] if replica else self._instance.routes.group(queue.group).targets(replicas=True)
        failure: Disconnected | None = None
        for addr in addresses:
            try:
                pulled = await self._api.pull(addr, self.group or ANONYMOUS, queue, at, filter, count=max, hold_s=wait)
            except Disconnected as error:
                failure = error
                continue
            messages: list[Received] = []
            if pulled.code == ResponseCode.SUCCESS:
                messages = decode_records(pulled.body, queue, filter, self._home)
            return Batch(messages, pulled.next_offset, pulled.first_offset, pulled.end_offset)
        raise failure or Disconnected(f"no address of {queue.group} is known")

    # A replay

    def iterate(
        self,
        topic: str,
        *,
        start: Position = Start.FIRST,
        until: datetime | None = None,
        follow: bool = False,
        filter: Filter = EVERYTHING,
        key: str | None = None,
    ) -> AsyncIterator[Received]:
        """Every message of a topic from `start` on, in the order of store times across its queues.

        Ends at `until`, else at the end that each queue had when the iteration began. With `follow` it never ends and
        messages come as they arrive, without an order across queues, those of queues that the topic gets later too;
        its reading ends with this consumer's block.
        `key`: only messages with this business key; brokers that evaluate SQL92 send no others.
        """
        if follow:
            if until is not None:
                raise BadRequest("follow and until contradict each other")
            consumer = PullConsumer(self._instance, self.group, self._tasks)
            return Following(consumer, self._api, topic, start, filter, key)
        return Replay(self, self._api, topic, start, until, filter, key)

    # Assigned queues

    async def assign(self, queues: Mapping[Queue, Position] | Iterable[Queue], *, filter: Filter = EVERYTHING) -> None:
        """Read these queues from now on, and no others; queues that stay keep their place.

        Without positions each begins at the group's committed offset, else at its start.
        """
        wanted: dict[Queue, Position | None]
        wanted = dict(queues) if isinstance(queues, Mapping) else dict.fromkeys(queues)
        for queue in [queue for queue in self._readers if queue not in wanted]:
            self._readers.pop(queue).drop()
            self._positions.pop(queue, None)
        for queue, position in wanted.items():
            if queue in self._readers and position is None:
                continue
            await self._instance.routes.route(queue.topic)
            offset = await self._begin(queue, position)
            self._positions[queue] = offset
            if queue in self._readers:
                self._readers[queue].seek(offset)
                continue
            reader = self._readers[queue] = Reader(
                self._instance, self._api, self.group or ANONYMOUS, queue, filter, offset, self
            )
            self._tasks.start_soon(reader.run)
        self._drop_stale()

    async def _begin(self, queue: Queue, position: Position | None) -> int:
        if position is not None:
            return await resolve(self._api, queue, position)
        committed = await self._api.committed(self.group, queue) if self.group else None
        return committed if committed is not None else await self._api.first_offset(queue)

    async def seek(self, queue: Queue, position: Position) -> None:
        """Go on reading an assigned queue from another place."""
        reader = self._reader(queue)
        offset = await resolve(self._api, queue, position)
        self._positions[queue] = offset
        reader.seek(offset)
        self._drop_stale()

    def position(self, queue: Queue) -> int:
        """The offset behind the last message that `poll` gave of this queue."""
        self._reader(queue)
        return self._positions[queue]

    @property
    def assignment(self) -> frozenset[Queue]:
        """The queues that `poll` reads."""
        return frozenset(self._readers)

    async def poll(self, *, max: int = 32, wait: float = 15.0) -> list[Received]:
        """Up to `max` messages of the assigned queues, waiting up to `wait` seconds while there are none."""
        if not self._readers:
            raise BadRequest("no queue is assigned", advice="call assign() first")
        await anyio.lowlevel.checkpoint()
        if not self._ready:
            with anyio.move_on_after(wait):
                while not self._ready:
                    self._news = anyio.Event()
                    await self._news.wait()
        batch = [self._ready.popleft() for _ in range(min(max, len(self._ready)))]
        for message in batch:
            self._positions[message.queue] = message.offset + 1
            await message._home.acknowledge(message)
        return batch

    async def follow(self, topic: str, position: Position, *, filter: Filter = EVERYTHING) -> None:
        """Assign all queues of a topic, and from now on each that it gets, from its first message on."""
        routes = self._instance.routes
        routes.want(topic)
        try:
            await self.assign(dict.fromkeys(await self.queues(topic), position), filter=filter)
        except BaseException:
            routes.unwant(topic)
            raise
        self._tasks.start_soon(self._keep_following, topic, filter)

    async def _keep_following(self, topic: str, filter: Filter) -> None:
        routes = self._instance.routes
        news = anyio.Event()
        stop_watching = routes.watch(lambda changed: news.set() if changed == topic else None)
        try:
            while True:
                route = routes.known(topic)
                new = [queue for queue in (route.read_queues if route else ()) if queue not in self._readers]
                if new:
                    try:
                        await self.assign({**dict.fromkeys(self._readers), **dict.fromkeys(new, 0)}, filter=filter)
                    except TrimqError as error:
                        log.info("new queues not read yet", extra={"topic": topic, "error": error})
                        await anyio.sleep(FOLLOW_RETRY_S)
                        continue
                await news.wait()
                news = anyio.Event()
        finally:
            stop_watching()
            routes.unwant(topic)

    def _reader(self, queue: Queue) -> Reader:
        reader = self._readers.get(queue)
        if reader is None:
            raise BadRequest(f"{queue} is not assigned", advice="call assign() first")
        return reader

    def _drop_stale(self) -> None:
        self._ready = deque(
            message
            for message in self._ready
            if isinstance(message._home, Holding) and not message._home.process.dropped
        )

    # Positions at the brokers

    async def committed(self, queue: Queue) -> int | None:
        """The consumer group's committed offset, None when there is none: never lower than an answer before."""
        await self._instance.routes.route(queue.topic)
        return await self._api.committed(self._need_group(), queue, firm=True)

    async def commit(self, offsets: Mapping[Queue, int] | None = None) -> None:
        """Commit offsets for the consumer group, by default those that `poll` has reached. Durable when it returns.

        A lower offset than before is taken too: that is a deliberate seek.
        """
        group = self._need_group()
        for queue, offset in (self._positions if offsets is None else offsets).items():
            await self._instance.routes.route(queue.topic)
            await self._api.commit(group, queue, offset, set_back=True)

    def _need_group(self) -> str:
        if self.group is None:
            raise BadRequest("this pull consumer has no consumer group", advice='open it with pull(group="...")')
        return self.group

    # For the readers

    def room(self, reader: Reader) -> int:
        return READ_AHEAD - len(reader.process)

    def has_room(self, reader: Reader) -> bool:
        return len(reader.process) * 2 <= READ_AHEAD

    def arrived(self, holding: Holding, messages: list[Received]) -> None:
        self._ready.extend(messages)
        self._news.set()

    def forgot(self, holding: Holding) -> None:
        """Nothing is counted here."""

    def entered(self, message: Received) -> None:
        """Nobody waits for these messages."""

    def left(self, message: Received) -> None:
        """Nobody waits for these messages."""

    def finished(self, holding: Holding, message: Received) -> None:
        holding.process.finish(message.offset, len(message.body))
        if self.has_room(holding.reader):
            holding.reader.nudge()

    async def send_back(self, holding: Holding, message: Received, after: timedelta | None) -> None:
        raise _not_acknowledged()

    async def put_aside(self, holding: Holding, message: Received, reason: str) -> None:
        raise _not_acknowledged()

    async def reply(self, message: Received, body: bytes, tag: str | None, properties: Mapping[str, str]) -> None:
        await send_reply(self._instance, message, body, tag=tag, own=properties)

    async def suspend(self, holding: Holding, message: Received, after: timedelta) -> None:
        raise _not_acknowledged()

    async def settle(self, holding: Holding) -> None:
        """Nothing of it is in a handler."""

    def is_settled(self, holding: Holding) -> bool:
        return True


class _Unacknowledged:
    """The home of messages that were read, not delivered: leaving their block normally does nothing."""

    def __init__(self, instance: Instance | None = None) -> None:
        self._instance = instance

    def entered(self, message: Received) -> None: ...

    def left(self, message: Received) -> None: ...

    async def acknowledge(self, message: Received) -> bool:
        return True

    async def extend(self, message: Received, by: timedelta) -> None: ...

    async def send_back(self, message: Received, after: timedelta | None) -> None:
        raise _not_acknowledged()

    async def put_aside(self, message: Received, reason: str) -> None:
        raise _not_acknowledged()

    async def reply(self, message: Received, body: bytes, tag: str | None, properties: Mapping[str, str]) -> None:
        if self._instance is None:
            raise BadRequest("this message was read without a client")
        await send_reply(self._instance, message, body, tag=tag, own=properties)

    async def suspend(self, message: Received, after: timedelta) -> None:
        raise _not_acknowledged()


UNACKNOWLEDGED = _Unacknowledged()


def _not_acknowledged() -> BadRequest:
    return BadRequest(
        "a message that was read by a pull consumer cannot be handed back",
        advice="read it again from its offset, or use subscribe()",
    )


@asynccontextmanager
async def open_pull_consumer(instance: Instance, group: str | None) -> AsyncIterator[PullConsumer]:
    """A pull consumer for the length of the block. Nothing is committed on the way out."""
    if group is not None:
        check_group(group)
    async with open_background() as tasks:
        yield PullConsumer(instance, group, tasks)
