"""Fills a leader's append requests with their entries.

The core names a range; the bytes come from the core itself (what is not durable yet), from the log's cache, or from the
disk. The common case is synchronous. A request whose entries have to be read goes to a task, and everything for that
peer queues behind it, so that requests leave in order; other peers are not held up. What was read must be exactly what
the core named, first and last entry, else leadership was lost meanwhile and the request is dropped.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

import trio

from raft.core.messages import AppendRequest
from raft.core.types import EntryLike
from raft.signals import Signal
from raft.storage import LogStorage, StorageDamaged

__all__ = ["Feeder"]

log = logging.getLogger(__name__)


class Feeder:
    """The requests to one peer."""

    def __init__(
        self,
        storage: LogStorage,
        pending: Callable[[int, int], Sequence[EntryLike]],
        send: Callable[[AppendRequest, Sequence[EntryLike]], None],
        damaged: Callable[[StorageDamaged], None],
    ) -> None:
        self._storage = storage
        self._pending = pending
        self._send = send
        self._damaged = damaged
        self._queue: deque[AppendRequest] = deque()
        self._reading = False
        self._wake = Signal()

    def push(self, request: AppendRequest) -> None:
        """Send the request as soon as its entries are at hand; at once when they are in memory."""
        if not self._reading:
            entries = self._at_hand(request.prev.index + 1, request.last.index)
            if entries is not None:
                self._finish(request, entries)
                return
        self._reading = True
        self._queue.append(request)
        self._wake.set()

    def clear(self) -> None:
        """Leadership ended or the link broke: what waits is void."""
        self._queue.clear()

    async def run(self) -> None:
        """Read what is not in memory, until cancelled."""
        while True:
            await self._wake.wait()
            while self._queue:
                request = self._queue.popleft()
                entries = await self._read(request.prev.index + 1, request.last.index)
                if entries is not None:
                    self._finish(request, entries)
            self._reading = False

    def _at_hand(self, first: int, last: int) -> Sequence[EntryLike] | None:
        """All entries of the range from memory, or None."""
        if first > last:
            return ()
        pending = self._pending(first, last)
        stable_last = pending[0].index - 1 if pending else last
        if stable_last < first:
            return pending
        cached = self._storage.cached(first, stable_last)
        if cached is None:
            return None
        return [*cached, *pending] if pending else cached

    async def _read(self, first: int, last: int) -> Sequence[EntryLike] | None:
        entries: list[EntryLike] = []
        at = first
        while at <= last:
            rest = self._at_hand(at, last)
            if rest is not None:
                entries.extend(rest)
                break
            pending = self._pending(at, last)
            stable_last = pending[0].index - 1 if pending else last
            try:
                read = await self._storage.read(at, stable_last)
            except StorageDamaged as error:
                self._damaged(error)
                return None
            except OSError as error:
                log.error("the log cannot be read", extra={"error": str(error), "index": at})
                await trio.sleep(1)
                return None
            if not read:
                return None
            entries.extend(read)
            at = read[-1].index + 1
        return entries

    def _finish(self, request: AppendRequest, entries: Sequence[EntryLike]) -> None:
        prev, last = request.prev, request.last
        if entries:
            head, tail = entries[0], entries[-1]
            if head.index != prev.index + 1 or head.prev_crc != prev.crc:
                return
            if (tail.index, tail.term, tail.crc) != (last.index, last.term, last.crc):
                return
        elif last.index != prev.index:
            return
        self._send(request, entries)
