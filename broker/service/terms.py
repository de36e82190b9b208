"""Services that work only while this replica is the ready leader.

One loop follows the replicator's role events. On *ready* it opens the term: the services start, each a task; when
readiness ends they are cancelled before anything of the next role begins. A service re-checks nothing by time: all its
effects go through the intake, which refuses whoever does not lead.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from broker.replication.base import Busy, NotLeader, Replicator, RoleEvent
from broker.replication.requests import Refused

__all__ = ["TermService", "Terms"]

log = logging.getLogger(__name__)

TermService = Callable[[], Awaitable[None]]
RESTART_S = 0.2
"""A service that was refused in the middle of a term starts again after this pause."""


class Terms:
    """Runs term services and tells observers of every role change."""

    def __init__(
        self,
        replicator: Replicator,
        *,
        begin: Sequence[Callable[[], None]] = (),
        end: Sequence[Callable[[], None]] = (),
        services: Sequence[TermService] = (),
        observers: Sequence[Callable[[RoleEvent], None]] = (),
    ) -> None:
        self._replicator = replicator
        self._begin = begin
        self._end = end
        self._services = services
        self._observers = observers

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow role events until cancelled."""
        task_status.started()
        events = self._replicator.subscribe()
        event = await anext(events)
        while True:
            for observe in self._observers:
                observe(event)
            if not event.ready:
                event = await anext(events)
                continue
            event = await self._lead(event, events.__anext__)

    async def _lead(self, event: RoleEvent, following: Callable[[], Awaitable[RoleEvent]]) -> RoleEvent:
        """Serve one ready term; returns the event that ended it."""
        for begin in self._begin:
            begin()
        newer = event
        try:
            async with trio.open_nursery() as nursery:
                for service in self._services:
                    nursery.start_soon(self._keep, service)
                while newer.ready and newer.term == event.term:
                    newer = await following()
                nursery.cancel_scope.cancel()
        finally:
            for end in self._end:
                end()
        return newer

    async def _keep(self, service: TermService) -> None:
        while True:
            try:
                await service()
            except (NotLeader, Busy, Refused) as error:
                log.debug("service of the leader refused", extra={"error": str(error)})
            else:
                return
            await trio.sleep(RESTART_S)
