"""Queue locks of ordered consumption: one reader per queue in the whole consumer group.

A broker gives a lock for 60 s; it is renewed every 20 s, and not trusted by its holder 30 s after the last success,
so a holder that cannot reach the broker stops before another one may start (RocketMQ's numbers).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable

import anyio

from trimq.client.broker_api import BrokerApi
from trimq.client.model import Queue
from trimq.errors import TrimqError

__all__ = ["LOCK_RENEW_S", "LOCK_TRUST_S", "QueueLocks"]

log = logging.getLogger(__name__)

LOCK_RENEW_S = 20.0
LOCK_TRUST_S = 30.0
LOCK_CALL_S = 3.0


class QueueLocks:
    """The locks that one consumer holds."""

    def __init__(self, api: BrokerApi, consumer_group: str) -> None:
        self._api = api
        self._group = consumer_group
        self._held: dict[Queue, float] = {}
        """Queue to the loop's time of the last success."""

    async def take(self, queues: Collection[Queue]) -> tuple[Queue, ...]:
        """Lock queues; returns those that we hold now. Those of a group that cannot be asked stay as they were."""
        for group, some in _by_group(queues).items():
            try:
                with anyio.fail_after(LOCK_CALL_S):
                    locked = await self._api.lock(self._group, group, some)
            except (TrimqError, TimeoutError) as error:
                log.info("queues not locked", extra={"group": group, "error": error})
                continue
            now = anyio.current_time()
            for queue in some:
                if queue in locked:
                    self._held[queue] = now
                else:
                    self._held.pop(queue, None)
        return tuple(queue for queue in sorted(queues) if self.trusted(queue))

    @property
    def held(self) -> tuple[Queue, ...]:
        """Every queue whose lock is ours, as far as we know."""
        return tuple(sorted(self._held))

    def forget(self, queue: Queue) -> None:
        """Neither renew this lock nor give it back: it ends by itself."""
        self._held.pop(queue, None)

    def trusted(self, queue: Queue) -> bool:
        """Whether the lock is surely still ours."""
        since = self._held.get(queue)
        return since is not None and anyio.current_time() - since < LOCK_TRUST_S

    def is_fresh(self, queue: Queue) -> bool:
        """Whether the last renewal went well."""
        since = self._held.get(queue)
        return since is not None and anyio.current_time() - since < LOCK_RENEW_S

    async def give_back(self, queues: Iterable[Queue]) -> None:
        """Unlock; a lock that cannot be given back now runs out by itself."""
        held = [queue for queue in queues if self._held.pop(queue, None) is not None]
        for group, some in _by_group(held).items():
            try:
                await self._api.unlock(self._group, group, some)
            except TrimqError as error:
                log.info("queues not unlocked", extra={"group": group, "error": error})


def _by_group(queues: Iterable[Queue]) -> dict[str, list[Queue]]:
    groups: dict[str, list[Queue]] = defaultdict(list)
    for queue in sorted(queues):
        groups[queue.group].append(queue)
    return groups
