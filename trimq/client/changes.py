"""Changes of a consumer's assignment, for those who iterate over them (`PushConsumer.changes`)."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

import anyio

from trimq.client.model import Rebalance

__all__ = ["Changes"]

LISTENER_MAX = 256
"""Changes kept for a listener that does not look; the oldest go."""


class Changes:
    """All listeners of one consumer."""

    def __init__(self) -> None:
        self._listeners: list[_Listener] = []

    def listen(self) -> AsyncIterator[Rebalance]:
        """Each change from now on; ends with the consumer."""
        listener = _Listener()
        self._listeners.append(listener)
        return listener

    def tell(self, change: Rebalance) -> None:
        for listener in self._listeners:
            listener.tell(change)

    def end(self) -> None:
        for listener in self._listeners:
            listener.end()


class _Listener(AsyncIterator[Rebalance]):
    """One iteration over `changes`."""

    def __init__(self) -> None:
        self._changes: deque[Rebalance] = deque(maxlen=LISTENER_MAX)
        self._news = anyio.Event()
        self._ended = False

    def tell(self, change: Rebalance) -> None:
        self._changes.append(change)
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    async def __anext__(self) -> Rebalance:
        await anyio.lowlevel.checkpoint()
        while not self._changes:
            if self._ended:
                raise StopAsyncIteration
            self._news = anyio.Event()
            await self._news.wait()
        return self._changes.popleft()
