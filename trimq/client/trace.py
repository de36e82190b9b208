"""The message trace: who sent a message, who got it, how long each took; written to a topic of its own.

    async with trimq.connect(namesrv, trace=True) as mq: ...

A record is a line of text put into a bounded buffer, nothing else happens on the way of a send or a handler. A task
sends what has gathered, several records a message, as RocketMQ's tools read them (`trimq.message.trace`). When brokers
cannot take traces as fast as they come, records are dropped and counted; an application never waits for its trace.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from trimq.client.model import Message, Receipt
from trimq.errors import TrimqError
from trimq.message.trace import Kind, consumed, sent

if TYPE_CHECKING:
    from trimq.client.instance import Instance
    from trimq.client.producer import Producer
    from trimq.client.received import Received

__all__ = ["TRACE_GROUP", "Tracer", "run_tracer"]

log = logging.getLogger(__name__)

TRACE_GROUP = "_INNER_TRACE_PRODUCER"
HELD_MAX = 8_192
"""Records that wait to be sent; beyond it they are dropped."""
BATCH_MAX = 100
"""Records in one trace message (RocketMQ's own figure)."""
BODY_MAX_BYTES = 128_000
"""RocketMQ's traceMaxMsgSize."""
FLUSH_S = 0.5
LAST_S = 2.0
"""How long closing a client waits for its last traces."""


class Tracer:
    """Collects records of one client."""

    def __init__(self, instance: Instance, topic: str) -> None:
        self.topic = topic
        self.dropped = 0
        self.instance = instance
        self._held: deque[tuple[str, Sequence[str]]] = deque()
        self._full = anyio.Event()
        self._said = False

    def sent(self, message: Message, group: str, host: str, took_s: float, receipt: Receipt | None) -> None:
        """A send is over, well (`receipt`) or not."""
        if message.topic == self.topic:
            return
        now_ms = self.instance.clock.wall_ms()
        took_ms = round(took_s * 1000)
        delayed = message.delay is not None or message.at is not None
        record = sent(
            at_ms=now_ms - took_ms,
            group=group,
            topic=message.topic,
            message_id=message.id,
            tag=message.tag,
            keys=_keys(message),
            store_host=host,
            body_bytes=len(message.body),
            cost_ms=took_ms,
            kind=Kind.DELAY if delayed else Kind.ORDER if message.order_key else Kind.NORMAL,
            offset_id=receipt.offset_id if receipt is not None else "",
            success=receipt is not None,
        )
        self._put(record, message)

    def consumed(self, message: Received, group: str, took_s: float, *, ok: bool) -> None:
        """A handler is done with a delivery."""
        took_ms = round(took_s * 1000)
        record = consumed(
            at_ms=self.instance.clock.wall_ms() - took_ms,
            group=group,
            message_id=message.id,
            attempt=message.attempt,
            keys=_keys(message),
            request=f"{self.instance.rng.getrandbits(128):032X}",
            cost_ms=took_ms,
            success=ok,
        )
        self._put(record, message)

    def _put(self, record: str, message: Message) -> None:
        if len(self._held) >= HELD_MAX:
            self.dropped += 1
            return
        self._held.append((record, (message.id, *_keys(message))))
        if len(self._held) == BATCH_MAX:
            self._full.set()

    async def run(self, producer: Producer) -> None:
        """Send what has gathered, twice a second or when a message is full, until cancelled."""
        while True:
            with anyio.move_on_after(FLUSH_S):
                await self._full.wait()
            self._full = anyio.Event()
            await self.flush(producer)

    async def flush(self, producer: Producer) -> None:
        """Send everything held; what cannot be sent is dropped, and said once."""
        while self._held:
            body, keys, count = self._take()
            message = Message(topic=self.topic, body=body, keys=keys)
            try:
                await producer.send(message)
            except TrimqError as error:
                self.dropped += count
                if not self._said:
                    self._said = True
                    log.warning("message traces are lost", extra={"topic": self.topic, "error": error})

    def _take(self) -> tuple[bytes, list[str], int]:
        held, size, count = self._held, 0, 0
        text: list[str] = []
        keys: dict[str, None] = {}
        while held and count < BATCH_MAX and (not text or size + len(held[0][0]) <= BODY_MAX_BYTES // 4):
            record, names = held.popleft()
            text.append(record)
            keys.update(dict.fromkeys(names))
            size += len(record)
            count += 1
        return "".join(text).encode(), list(keys), count


def _keys(message: Message) -> Sequence[str]:
    return (message.keys,) if isinstance(message.keys, str) else tuple(message.keys)


@asynccontextmanager
async def run_tracer(tracer: Tracer, producer: Producer) -> AsyncIterator[None]:
    """Trace for the length of the block; on the way out what is held is sent, for two seconds at most."""
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await tracer.run(producer)

    tracer.instance.tasks.start_soon(run)  # the client's own tasks: they end after this block
    try:
        yield
    finally:
        scope.cancel()
        with anyio.move_on_after(LAST_S, shield=True):
            await tracer.flush(producer)
