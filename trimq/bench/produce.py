"""Measure producing: messages a second and latency, for one body size and one way of sending.

A closed loop: `window` sends are in flight at any time, each waits for its acknowledgement. The latency of a message
is the time from the call to its receipt. With batches one call carries `batch` messages and all of them share its
latency. The first tenth of the time is warm-up and is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio

import trimq
from trimq import Client, Message, Producer, Queue

_WARM_UP_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One row of the table."""

    name: str
    body_bytes: int
    window: int
    """Sends in flight."""
    batch: int = 1
    """Messages per send."""


STANDARD: tuple[Workload, ...] = tuple(
    Workload(name=name, body_bytes=size, window=window, batch=batch)
    for size in (100, 1024)
    for name, window, batch in (
        ("one by one", 1, 1),
        ("64 in flight", 64, 1),
        ("256 in flight", 256, 1),
        ("batches of 32, 16 in flight", 16, 32),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a workload reached."""

    workload: Workload
    messages: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        return self.messages / self.seconds

    @property
    def mb_per_second(self) -> float:
        """Body bytes, in units of 10^6."""
        return self.per_second * self.workload.body_bytes / 1e6


async def measure(client: Client, queues: Sequence[Queue], workload: Workload, seconds: float) -> Figures:
    """Run one workload for `seconds`. Errors of the client end the run."""
    body = bytes(workload.body_bytes)
    latencies: list[float] = []
    begin = trio.current_time()
    count_from = begin + seconds * _WARM_UP_SHARE
    end = begin + seconds

    async def worker(producer: Producer, at: int) -> None:
        turn = at
        while (called := trio.current_time()) < end:
            queue = queues[turn % len(queues)]
            turn += workload.window
            if workload.batch == 1:
                await producer.send(Message(topic=queue.topic, body=body), queue=queue)
            else:
                messages = [Message(topic=queue.topic, body=body) for _ in range(workload.batch)]
                await producer.send_batch(messages, queue=queue)
            if called >= count_from:
                latencies.append(trio.current_time() - called)

    async with client.producer("trimq-bench") as producer, trio.open_nursery() as nursery:
        for at in range(workload.window):
            nursery.start_soon(worker, producer, at)
    latencies.sort()
    return Figures(
        workload=workload,
        messages=len(latencies) * workload.batch,
        seconds=trio.current_time() - count_from,
        p50_ms=_at(latencies, 0.50),
        p99_ms=_at(latencies, 0.99),
    )


def _at(ordered: Sequence[float], share: float) -> float:
    """A percentile of ascending seconds, in milliseconds; NaN when nothing was measured."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else float("nan")


async def run(
    namesrv: str, topic: str, queues: int, seconds: float, workloads: Sequence[Workload] = STANDARD
) -> list[Figures]:
    """Create `topic` with `queues` queues in every replica group and run the workloads on it, one after the other."""
    found: list[Figures] = []
    async with trimq.connect(namesrv) as client:
        await client.admin.create_topic(topic, queues=queues)
        async with client.producer("trimq-bench") as producer:
            places = sorted(await producer.queues(topic))
        for workload in workloads:
            found.append(await measure(client, places, workload, seconds))
    return found
