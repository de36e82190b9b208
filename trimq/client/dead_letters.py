"""Dead letters: look at them, send them again, one result each.

A message that a consumer group gave up on lies in `%DLQ%group`. *Redriving* sends a copy with the same id to the retry
topic of the group, so only this group gets it, as a first attempt; or to the original topic, for every group. The dead
letter itself stays until retention takes it: what was redriven is remembered as consumer offsets of the group
`TRIMQ_REDRIVE_<group>`, so "all" means all that were not redriven before, and an interrupted run goes on where it was.

    async with mq.admin.dead_letters("billing") as letters:
        async for letter in letters.read():
            print(letter.id, letter.topic, letter.attempts)
        async for done in letters.redrive():
            print(done.letter.id, done.ok)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from trimq.client.instance import Instance
from trimq.client.model import Message, Queue, Receipt
from trimq.client.outgoing import prepare_stored
from trimq.client.producer import open_producer
from trimq.client.pull_consumer import open_pull_consumer
from trimq.errors import NoRoute, TrimqError
from trimq.message.names import MAX_GROUP_BYTES, check_group, dlq_topic, retry_topic

if TYPE_CHECKING:
    from trimq.client.producer import Producer
    from trimq.client.pull_consumer import PullConsumer
    from trimq.client.received import Received

__all__ = ["Buried", "DeadLetters", "Edit", "Redriven", "open_dead_letters"]

PAGE = 64
REDRIVE_PREFIX = "TRIMQ_REDRIVE_"
COMPRESS_OVER = 4096
DROPPED = ("DELAY", "REAL_TOPIC", "REAL_QID", "TRACE_ON", "MSG_REGION", "CLUSTER", "POP_CK", "1ST_POP_TIME")
"""Properties of a dead letter that were of its journey, not of the message."""


@dataclass(frozen=True, slots=True)
class Buried:
    """One dead letter."""

    id: str
    topic: str
    """The topic to which it was sent at first."""
    queue: Queue
    """Where the dead letter lies."""
    offset: int
    body: bytes
    tag: str | None
    keys: tuple[str, ...]
    attempts: int
    """How often its processing was tried."""
    buried_at: datetime
    born_at: datetime
    flag: int
    properties: Mapping[str, str]
    """As stored, RocketMQ's own included."""
    redriven: bool
    """Sent again before, in a run over all."""


Edit = Callable[[Buried], Buried]
"""Changes what is sent again: body, tag, keys, properties of the returned value count. A changed body gets a new id."""


@dataclass(frozen=True, slots=True)
class Redriven:
    """What became of one dead letter."""

    letter: Buried
    receipt: Receipt | None
    error: TrimqError | None

    @property
    def ok(self) -> bool:
        return self.error is None


class DeadLetters:
    """The dead letters of one consumer group. Made by `Admin.dead_letters`, lives in its block."""

    def __init__(self, group: str, reader: PullConsumer, producer: Producer) -> None:
        self.group = group
        self._topic = dlq_topic(group)
        self._reader = reader
        self._producer = producer

    async def read(self, *, again: bool = True) -> AsyncIterator[Buried]:
        """All dead letters, oldest first in each replica group; `again=False` leaves out those that were redriven."""
        reader = self._reader
        for queue in await self._queues():
            first, end = await reader.bounds(queue)
            done = await reader.committed(queue) or 0
            at = first if again else max(first, done)
            while at < end:
                batch = await reader.read(queue, at, max=PAGE, wait=0)
                for message in batch.messages:
                    if message.offset < end:
                        yield _buried(message, redriven=message.offset < done)
                if batch.next_offset <= at:
                    break
                at = batch.next_offset

    async def find(self, id: str) -> Buried | None:
        """The newest dead letter with this unique id."""
        found: Buried | None = None
        async for letter in self.read():
            if letter.id == id:
                found = letter
        return found

    async def redrive(
        self,
        letters: Sequence[Buried] | None = None,
        *,
        to: Literal["group", "topic"] = "group",
        edit: Edit | None = None,
    ) -> AsyncIterator[Redriven]:
        """Send dead letters again: these, or all that were not redriven before. One result each, as they come.

        A letter that cannot be sent gets its error and holds back the remembered progress, so that it is tried again.
        """
        failed: set[Queue] = set()
        async for letter in self.read(again=False) if letters is None else _each(letters):
            sent = letter if edit is None else edit(letter)
            try:
                receipt = await self._producer._send_prepared(*self._outgoing(letter, sent, to))
            except TrimqError as error:
                failed.add(letter.queue)
                yield Redriven(letter, None, error)
                continue
            if letters is None and letter.queue not in failed:
                await self._reader.commit({letter.queue: letter.offset + 1})
            yield Redriven(letter, receipt, None)

    def _outgoing(self, letter: Buried, sent: Buried, to: str) -> tuple[Message, str, Queue | None]:
        properties = {name: value for name, value in sent.properties.items() if name not in DROPPED}
        _put(properties, "TAGS", sent.tag)
        _put(properties, "KEYS", " ".join(sent.keys))
        topic, queue = letter.topic, None
        if to == "group":
            topic, queue = retry_topic(self.group), Queue(retry_topic(self.group), letter.queue.group, 0)
            properties["RETRY_TOPIC"] = letter.topic
        else:
            properties.pop("RETRY_TOPIC", None)
        message = Message(topic=topic, body=sent.body, flag=sent.flag)
        if sent.body == letter.body:
            message = replace(message, id=letter.id)
        properties["UNIQ_KEY"] = message.id
        properties.setdefault("ORIGIN_MESSAGE_ID", letter.id)
        return message, prepare_stored(properties), queue

    async def _queues(self) -> Sequence[Queue]:
        try:
            return await self._reader.queues(self._topic)
        except NoRoute:
            return ()  # nothing was ever put aside


@asynccontextmanager
async def open_dead_letters(instance: Instance, group: str) -> AsyncIterator[DeadLetters]:
    """The dead letters of a consumer group, for the length of the block."""
    check_group(group)
    name = f"{REDRIVE_PREFIX}{group}"[:MAX_GROUP_BYTES]
    async with (
        open_pull_consumer(instance, name) as reader,
        open_producer(
            instance, name, idempotent=True, compress_over=COMPRESS_OVER, max_in_flight=1000, auto_batch=False
        ) as producer,
    ):
        yield DeadLetters(group, reader, producer)


async def _each(letters: Sequence[Buried]) -> AsyncIterator[Buried]:
    for letter in letters:
        yield letter


def _put(properties: dict[str, str], name: str, value: str | None) -> None:
    if value:
        properties[name] = value
    else:
        properties.pop(name, None)


def _buried(message: Received, *, redriven: bool) -> Buried:
    return Buried(
        message.id,
        message.all_properties.get("RETRY_TOPIC", message.topic),
        message.queue,
        message.offset,
        message.body,
        message.tag,
        tuple(message.keys),
        message.attempt - 1,
        message.stored_at,
        message.born_at,
        message.flag,
        message.all_properties,
        redriven,
    )
