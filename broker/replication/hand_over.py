"""Handing a group's leadership on: when asked, on a clean stop, and back to the replica that is preferred."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import trio

from broker.replication.balance import Balance
from broker.replication.base import LeaderHint, NotLeader, TransferFailed
from broker.replication.leading import Leading, Moved
from raft.core.errors import NotLeader as CoreNotLeader
from raft.core.errors import Refused
from raft.group import RaftGroup

if TYPE_CHECKING:
    from broker.replication.base import EntrySource

__all__ = ["HandOver"]

log = logging.getLogger(__name__)

FLUSH_S = 0.2
BALANCE_S = 1.0


class HandOver:
    """One per replica."""

    def __init__(self, group: str, source: EntrySource, leading: Leading, moved: Moved, rng: random.Random) -> None:
        self._name = group
        self._source = source
        self._leading = leading
        self._moved = moved
        self._balance = Balance(rng)
        self._next_balance = 0.0

    async def transfer(self, group: RaftGroup, target: str | None, hint: LeaderHint) -> None:
        """Hand over to `target`, or to the best replica. Raises NotLeader, TransferFailed."""
        await self._flush_source(group)
        try:
            ended = await group.transfer(target)
        except CoreNotLeader:
            raise NotLeader(hint) from None
        except Refused as error:
            raise TransferFailed(str(error)) from error
        if not ended.done:
            raise TransferFailed(ended.reason)

    async def _flush_source(self, group: RaftGroup) -> None:
        """Let an entry form of what only waits for company, before nobody here can form one."""
        self._source.flush()
        group.wake()
        with trio.move_on_after(FLUSH_S):
            while self._leading.admitting and self._source.has_work():
                await self._moved.wait()

    async def leave(self, group: RaftGroup, hint: LeaderHint) -> None:
        """A clean stop: hand over if somebody can lead; say so if nobody can."""
        await self._try(group, None, hint)

    async def _try(self, group: RaftGroup, target: str | None, hint: LeaderHint) -> None:
        try:
            await self.transfer(group, target, hint)
        except (TransferFailed, NotLeader) as error:
            log.info("leadership was not handed over", extra={"group": self._name, "reason": str(error)})

    def rebalance(self, nursery: trio.Nursery, group: RaftGroup, now: float, hint: LeaderHint) -> None:
        """A ready leader, now and then: hand over to the replica that is preferred, once it is surely healthy."""
        if now < self._next_balance or group.core is None:
            return
        self._next_balance = now + BALANCE_S
        target = self._balance.target(group.core, now)
        if target:
            self._balance.tried(now)
            log.info("handing over to the preferred leader", extra={"group": self._name, "target": target})
            nursery.start_soon(self._try, group, target, hint)
