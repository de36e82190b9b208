"""The consumer that is handed its messages, for threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import anyio
import anyio.to_thread

from trimq.blocking.portal import Portal
from trimq.blocking.received import Received, next_message
from trimq.client.model import Queue
from trimq.client.push_consumer import PushConsumer as AsyncPushConsumer
from trimq.client.received import Received as AsyncReceived

__all__ = ["PushConsumer"]


class PushConsumer:
    """See `trimq.PushConsumer`. Several threads may iterate over it at the same time."""

    def __init__(self, consumer: AsyncPushConsumer, portal: Portal) -> None:
        self._consumer = consumer
        self._portal = portal

    def __iter__(self) -> Iterator[Received]:
        return self

    def __next__(self) -> Received:
        """The next message; waits for one. Ends when the consumer's block is left."""
        message = next_message(self._consumer, self._portal)
        if message is None:
            raise StopIteration
        return message

    def poll(self, timeout: float) -> Received | None:
        """The next message, or None when none comes within `timeout` seconds."""
        return next_message(self._consumer, self._portal, timeout=timeout)

    def run(self, handler: Callable[[Received], object], *, concurrency: int = 20) -> None:
        """Call `handler` in worker threads, up to `concurrency` at a time, until interrupted or the block is left."""

        async def in_thread(message: AsyncReceived) -> None:
            await anyio.to_thread.run_sync(handler, Received(message, self._portal), limiter=limiter)

        async def serve() -> None:
            await self._consumer.run(in_thread, concurrency=concurrency)

        limiter = self._portal.act(anyio.CapacityLimiter, concurrency)
        future = self._portal.portal.start_task_soon(serve)
        try:
            future.result()
        finally:
            future.cancel()

    def pause(self, *queues: Queue) -> None:
        """Stop reading these queues, or all."""
        self._portal.act(self._consumer.pause, *queues)

    def resume(self, *queues: Queue) -> None:
        """Undo `pause`."""
        self._portal.act(self._consumer.resume, *queues)

    def commit(self) -> None:
        """Commit now what is finished."""
        self._portal.call(self._consumer.commit)

    @property
    def assignment(self) -> frozenset[Queue]:
        """The queues that this consumer reads now."""
        return self._consumer.assignment
