"""Commits consumer offsets: what changed, every five seconds, and everything on the way out.

An update is answered once it is durable in its replica group, so the store knows what is committed and sends nothing
twice. A lost update is sent again with the next round; what can be lost by a crash is at most one round, which means
redelivery and never a loss of messages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import anyio

from trimq.client.broker_api import BrokerApi
from trimq.client.model import Queue
from trimq.errors import TrimqError

__all__ = ["COMMIT_EVERY_S", "OffsetStore"]

log = logging.getLogger(__name__)

COMMIT_EVERY_S = 5.0
"""RocketMQ's persistConsumerOffsetInterval."""

PARALLEL = 64
"""Updates that are on their way at the same time."""


class OffsetStore:
    """Commits for one consumer group. `current` says how far each assigned queue is consumed."""

    def __init__(self, api: BrokerApi, consumer_group: str, current: Callable[[], Mapping[Queue, int]]) -> None:
        self._api = api
        self._group = consumer_group
        self._current = current
        self._committed: dict[Queue, int] = {}
        self._turns: dict[Queue, int] = {}
        """How often somebody else said what is committed: the answer to an older update says nothing then."""

    def assume(self, queue: Queue, offset: int) -> None:
        """This offset is what the broker has."""
        self._committed[queue] = offset
        self._turns[queue] = self._turns.get(queue, 0) + 1

    def forget(self, queue: Queue) -> None:
        """The queue went to someone else."""
        self._committed.pop(queue, None)
        self._turns[queue] = self._turns.get(queue, 0) + 1

    async def run(self) -> None:
        """Commit every five seconds until cancelled."""
        while True:
            await anyio.sleep(COMMIT_EVERY_S)
            await self.flush()

    async def flush(self, queues: Mapping[Queue, int] | None = None) -> None:
        """Commit what differs from the broker's state; failures are logged and tried again next time."""
        offsets = self._current() if queues is None else queues
        dirty = [(queue, offset) for queue, offset in offsets.items() if self._committed.get(queue) != offset]
        if not dirty:
            return
        limiter = anyio.CapacityLimiter(PARALLEL)
        failures: list[TrimqError] = []

        async def commit(queue: Queue, offset: int) -> None:
            async with limiter:
                turn = self._turns.get(queue)
                try:
                    await self._api.commit(self._group, queue, offset)
                except TrimqError as error:
                    failures.append(error)
                else:
                    if self._turns.get(queue) == turn:  # else it was reset meanwhile, and the brokers ignored us
                        self._committed[queue] = offset

        async with anyio.create_task_group() as tasks:
            for queue, offset in dirty:
                tasks.start_soon(commit, queue, offset)
        if failures:
            log.warning(
                "offsets not committed", extra={"group": self._group, "queues": len(failures), "error": failures[0]}
            )
