"""The messages that a consumer has ready, and the tasks that wait for one: where `async for` gets its next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import anyio

from trimq.client.received import Received

__all__ = ["Offered"]


class Offered:
    """A queue that wakes one waiter per message."""

    def __init__(self) -> None:
        self.ready: deque[Received] = deque()
        """In the order in which they are handed out."""
        self.demand = anyio.Event()
        """Set while somebody waits, for those who fetch messages only then. Replaced when nobody waits any more."""
        self.closed = False
        self._waiters: deque[anyio.Event] = deque()

    @property
    def waiting(self) -> int:
        """Tasks that wait for a message."""
        return len(self._waiters)

    async def take(self) -> Received:
        """The next message. Raises `StopAsyncIteration` when there is none and none will come."""
        while not self.ready:
            if self.closed:
                raise StopAsyncIteration
            await self._wait()
        return self.ready.popleft()

    def offer(self, messages: Sequence[Received]) -> None:
        """Hand out these behind all others."""
        self.ready.extend(messages)
        self._wake(len(messages))

    def offer_first(self, message: Received) -> bool:
        """Hand out this one ahead of all others; False when nothing is handed out any more."""
        if self.closed:
            return False
        self.ready.appendleft(message)
        self._wake(1)
        return True

    def keep(self, wanted: Callable[[Received], bool]) -> None:
        """Forget the others."""
        self.ready = deque(message for message in self.ready if wanted(message))

    def close(self) -> None:
        """No new messages from here on; whoever waits is told."""
        self.closed = True
        while self._waiters:
            self._waiters.popleft().set()

    def _wake(self, count: int) -> None:
        for _ in range(min(count, len(self._waiters))):
            self._waiters.popleft().set()
        self._note_rest()

    def _note_rest(self) -> None:
        """Nobody waits any more? (An event that is not set yet may have fetchers waiting: it stays.)"""
        if not self._waiters and self.demand.is_set():
            self.demand = anyio.Event()

    async def _wait(self) -> None:
        event = anyio.Event()
        self._waiters.append(event)
        self.demand.set()
        try:
            await event.wait()
        except BaseException:
            if not event.is_set():
                self._waiters.remove(event)
                self._note_rest()
            elif self.ready and self._waiters:
                self._waiters.popleft().set()  # the wake-up was meant for a message: pass it on
            raise
