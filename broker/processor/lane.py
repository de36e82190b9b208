"""A lane: the bounded queue and the few workers for requests that may wait.

Hot requests (send, pull, offset updates) never come here: they are answered in the pass that reads them. Everything
else shares a small pool per lane, so that a slow query neither holds up heartbeats nor makes a task per request. The
queue is bounded in requests and in bytes; a full lane answers SYSTEM_BUSY at once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable

import trio

__all__ = ["Lane", "Work"]

log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]
"""Serves one request to its end, answer included."""


class Lane:
    """`workers` tasks over one queue of at most `requests_max` requests and `bytes_max` bytes."""

    def __init__(self, name: str, *, workers: int, requests_max: int, bytes_max: int) -> None:
        self.name = name
        self._workers = workers
        self._requests_max = requests_max
        self._bytes_max = bytes_max
        self._bytes = 0
        # The limit is checked in `offer`, together with the bytes; the channel itself never fills up.
        self._send, self._receive = trio.open_memory_channel[tuple[Work, int]](math.inf)
        self.served = 0
        self.refused = 0

    @property
    def queued(self) -> int:
        return self._send.statistics().current_buffer_used

    def offer(self, work: Work, size: int) -> bool:
        """Queue the work of a request of `size` bytes; False when the lane is full."""
        if self.queued >= self._requests_max or self._bytes + size > self._bytes_max:
            self.refused += 1
            return False
        self._bytes += size
        self._send.send_nowait((work, size))
        return True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._workers):
                nursery.start_soon(self._work)
            task_status.started()

    async def _work(self) -> None:
        while True:
            work, size = await self._receive.receive()
            self._bytes -= size
            self.served += 1
            try:
                await work()
            except Exception:
                # The top of a task: one request must not end the lane for all others.
                log.exception("request failed", extra={"lane": self.name})
