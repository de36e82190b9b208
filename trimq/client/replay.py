"""Iterating over a topic: its past, merged across queues by store time, or what comes, as it comes.

Plain iterator objects, no generators: a loop over them may be left at any point, under Trio too, without anything to
close. One business key is looked for by the brokers, where they evaluate SQL92 (`KEYS CONTAINS`), and compared exactly
here; where they do not, everything travels and is compared here.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Protocol

from trimq.client.broker_api import ANONYMOUS, BrokerApi
from trimq.client.model import Batch, Filter, Position, Queue, Sql, Tag, to_ms
from trimq.client.positions import resolve
from trimq.client.received import Received
from trimq.errors import BadRequest

__all__ = ["Following", "Replay", "keyed"]

READ_COUNT = 256
"""Messages asked for at once."""


class _Reading(Protocol):
    """What is needed of a pull consumer to replay."""

    async def queues(self, topic: str) -> Sequence[Queue]: ...

    async def read(
        self, queue: Queue, offset: Position, *, max: int = 32, wait: float = 15.0, filter: Filter = ...
    ) -> Batch: ...


class _Polling(Protocol):
    """What is needed of a pull consumer to follow."""

    async def queues(self, topic: str) -> Sequence[Queue]: ...

    async def follow(self, topic: str, position: Position, *, filter: Filter = ...) -> None: ...

    async def poll(self, *, max: int = 32, wait: float = 15.0) -> list[Received]: ...


def keyed(wanted: Filter, key: str) -> Sql:
    """A condition that a broker can evaluate: what `wanted` wants, and whose KEYS hold the key somewhere."""
    condition = f"KEYS CONTAINS {_quoted(key)}"
    if isinstance(wanted, Sql):
        return Sql(f"({wanted.expression}) AND {condition}")
    if wanted.names:
        return Sql(f"TAGS IN ({', '.join(map(_quoted, sorted(wanted.names)))}) AND {condition}")
    return Sql(condition)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


async def _narrowed(api: BrokerApi, queues: Sequence[Queue], wanted: Filter, key: str | None) -> Filter:
    """The filter to read with: with the key in it, if all brokers evaluate that."""
    if key is None:
        return wanted
    narrow = keyed(wanted, key)
    for queue in {queue.group: queue for queue in queues}.values():
        try:
            await api.check_filter(ANONYMOUS, queue.group, queue.topic, narrow)
        except BadRequest:
            if isinstance(wanted, Tag):
                return wanted
            raise
    return narrow


class Replay(AsyncIterator[Received]):
    """Every message between a start and an end, oldest first."""

    def __init__(
        self,
        consumer: _Reading,
        api: BrokerApi,
        topic: str,
        start: Position,
        until: datetime | None,
        wanted: Filter,
        key: str | None = None,
    ) -> None:
        self._consumer = consumer
        self._api = api
        self._topic = topic
        self._start = start
        self._until = until
        self._wanted = wanted
        self._key = key
        self._runs: list[_Run] | None = None
        self._heads: list[tuple[int, int, Received]] = []
        """(store time, run, message): the next message of each queue, as a heap."""

    async def __anext__(self) -> Received:
        if self._runs is None:
            self._heads.clear()
            runs = await self._open()
            for index, run in enumerate(runs):
                head = await run.next()
                if head is not None:
                    heapq.heappush(self._heads, (head.stored_ms, index, head))
            self._runs = runs
        if not self._heads:
            raise StopAsyncIteration
        _, index, message = self._heads[0]
        following = await self._runs[index].next()  # first, so that a cancelled call has taken nothing out
        if following is None:
            heapq.heappop(self._heads)
        else:
            heapq.heapreplace(self._heads, (following.stored_ms, index, following))
        return message

    async def _open(self) -> list[_Run]:
        runs = []
        queues = await self._consumer.queues(self._topic)
        wanted = await _narrowed(self._api, queues, self._wanted, self._key)
        for queue in queues:
            first = await resolve(self._api, queue, self._start)
            end = await self._api.end_offset(queue)
            if self._until is not None:
                end = min(end, await self._api.offset_at(queue, to_ms(self._until)))
            runs.append(_Run(self._consumer, queue, first, end, wanted, self._key))
        return runs


class _Run:
    """One queue of a replay, from an offset up to an end."""

    def __init__(
        self, consumer: _Reading, queue: Queue, offset: int, end: int, wanted: Filter, key: str | None
    ) -> None:
        self._consumer = consumer
        self._queue = queue
        self._offset = offset
        self._end = end
        self._wanted = wanted
        self._key = key
        self._messages: deque[Received] = deque()

    async def next(self) -> Received | None:
        while not self._messages and self._offset < self._end:
            count = min(READ_COUNT, self._end - self._offset)
            batch = await self._consumer.read(self._queue, self._offset, max=count, wait=0, filter=self._wanted)
            if not batch.messages and batch.next_offset <= self._offset:
                return None  # what was there has expired meanwhile
            self._messages.extend(
                message
                for message in batch.messages
                if message.offset < self._end and (self._key is None or self._key in message.keys)
            )
            self._offset = batch.next_offset
        return self._messages.popleft() if self._messages else None


class Following(AsyncIterator[Received]):
    """Every message from a start on, without an end."""

    def __init__(
        self, consumer: _Polling, api: BrokerApi, topic: str, start: Position, wanted: Filter, key: str | None = None
    ) -> None:
        self._consumer = consumer
        self._api = api
        self._topic = topic
        self._start = start
        self._wanted = wanted
        self._key = key
        self._begun = False
        self._messages: deque[Received] = deque()

    async def __anext__(self) -> Received:
        if not self._begun:
            queues = await self._consumer.queues(self._topic)
            wanted = await _narrowed(self._api, queues, self._wanted, self._key)
            await self._consumer.follow(self._topic, self._start, filter=wanted)
            self._begun = True
        while not self._messages:
            found = await self._consumer.poll()
            self._messages.extend(message for message in found if self._key is None or self._key in message.keys)
        return self._messages.popleft()
