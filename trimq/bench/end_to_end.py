"""Measure from send to hand-over: latency at a fixed rate, and how fast a consumer group reads what is there.

The latency is taken in an **open loop**: a message begins when it is due, whatever became of those before it, and its
latency counts from when it was due. A stall of the broker then shows in every message that was due during it, instead
of in the one that happened to be on its way ("coordinated omission").
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import trio

import trimq
from trimq import Message, Queue, Start

__all__ = ["Latency", "Rate", "catch_up", "latency"]

_DUE = struct.Struct(">d")
_BATCH = 32
_FILLERS = 8
_LATE_S = 5.0
"""How long the last messages may take before they count as missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """From when a message was due to when the consumer had it, in milliseconds."""

    rate: float
    messages: int
    missing: int
    """Acknowledged, but not handed over in time."""
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How fast a consumer group read a topic from its beginning."""

    consumers: int
    messages: int
    seconds: float
    """From the first message to the last."""

    @property
    def per_second(self) -> float:
        return self.messages / self.seconds if self.seconds else float("nan")


async def latency(namesrv: str, topic: str, *, rate: float, seconds: float, body_bytes: int = 1024) -> Latency:
    """Send at `rate` messages a second and consume them in the same process. The first fifth is warm-up."""
    waits: list[float] = []
    came = 0
    count = int(rate * seconds)
    filler = bytes(max(0, body_bytes - _DUE.size))
    async with trimq.connect(namesrv) as client, trimq.connect(namesrv) as reader:
        await client.admin.create_topic(topic, queues=4)
        async with (
            reader.subscribe(topic, group=f"{topic}-latency", start=Start.LAST) as consumer,
            client.producer("trimq-bench") as producer,
            trio.open_nursery() as nursery,
        ):
            count_from = float("inf")
            all_here = trio.Event()

            async def consume() -> None:
                nonlocal came
                async for message in consumer:
                    async with message:
                        (due,) = _DUE.unpack_from(message.body)
                        came += due > 0
                        if due >= count_from:
                            waits.append(trio.current_time() - due)
                        if came >= count:
                            all_here.set()

            async def one(due: float) -> None:
                await producer.send(Message(topic=topic, body=_DUE.pack(due) + filler))

            nursery.start_soon(consume)
            await one(0.0)
            await trio.sleep(1)  # the member has its queues by then
            begin = trio.current_time()
            count_from = begin + seconds * 0.2
            async with trio.open_nursery() as sends:
                for number in range(count):
                    due = begin + number / rate
                    if due > trio.current_time():
                        await trio.sleep_until(due)
                    sends.start_soon(one, due)
            with trio.move_on_after(_LATE_S):
                await all_here.wait()
            nursery.cancel_scope.cancel()
    waits.sort()
    return Latency(
        rate=rate,
        messages=len(waits),
        missing=max(0, count - came),
        p50_ms=_at(waits, 0.5),
        p99_ms=_at(waits, 0.99),
        p999_ms=_at(waits, 0.999),
        max_ms=_at(waits, 1.0),
    )


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else float("nan")


async def catch_up(
    namesrv: str, topic: str, group: str, *, messages: int, consumers: int = 1, body_bytes: int = 1024, queues: int = 4
) -> Rate:
    """Fill `topic`, which should be new, then read it with the members of a new consumer group."""
    messages -= messages % (_BATCH * _FILLERS)
    async with trimq.connect(namesrv) as client:
        await client.admin.create_topic(topic, queues=queues)
        async with client.producer("trimq-bench") as producer:
            places = sorted(await producer.queues(topic))

            async def fill(at: int) -> None:
                for number in range(messages // _BATCH // _FILLERS):
                    queue: Queue = places[(at + number) % len(places)]
                    bodies = [Message(topic=topic, body=bytes(body_bytes)) for _ in range(_BATCH)]
                    await producer.send_batch(bodies, queue=queue)

            async with trio.open_nursery() as nursery:
                for at in range(_FILLERS):
                    nursery.start_soon(fill, at)
    left = messages
    first = last = 0.0

    async def member(scope: trio.CancelScope) -> None:
        nonlocal left, first, last
        async with trimq.connect(namesrv) as own, own.subscribe(topic, group=group, start=Start.FIRST) as consumer:
            async for message in consumer:
                async with message:
                    last = trio.current_time()
                    first = first or last
                    left -= 1
                if left <= 0:
                    scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(consumers):
            nursery.start_soon(member, nursery.cancel_scope)
    return Rate(consumers=consumers, messages=messages, seconds=last - first)
