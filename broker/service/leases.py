"""Queue locks of orderly consumption, as the ready leader serves them.

Owners are in the log (op 10), leases in memory: `broker.metadata.locks` has both tables and the rule. This service
starts the leases with each term, logs changes of owner, and answers only when they are applied.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from broker.metadata.locks import LockLeases
from broker.metadata.ops import Locks, key_of, queue_of, tid_of
from broker.replication.base import NO_LEADER, NotLeader
from broker.replication.intake import Intake
from broker.service.members import Members

__all__ = ["Leases"]


class Leases:
    """The lock service of one replica; works between `begin_term` and `end_term`."""

    def __init__(self, intake: Intake, members: Members) -> None:
        self._intake = intake
        self._members = members
        self._leases: LockLeases | None = None

    def begin_term(self) -> None:
        """This replica became the ready leader: every lock in the log gets a full lease."""
        self._leases = LockLeases(self._intake.view.tables.locks, trio.current_time())

    def end_term(self) -> None:
        self._leases = None

    async def lock(self, gid: int, client: str, keys: Sequence[int]) -> list[int]:
        """Take or renew the locks of these queue keys; returns those that `client` owns now.

        Returns after a change of owner is applied. Raises NotLeader when leadership ends meanwhile; the client asks
        again, which is harmless.
        """
        info = self._intake.view.tables.groups.by_id.get(gid)
        there = frozenset(self._members.consumer_ids(info.name)) if info is not None else frozenset()
        verdict = self._current().lock(
            gid, client, list(dict.fromkeys(keys)), trio.current_time(), gone=lambda owner: owner not in there
        )
        if verdict.changed:
            await self._intake.apply([Locks(gid, client, [(tid_of(key), queue_of(key)) for key in verdict.changed])])
        return verdict.granted

    async def unlock(self, gid: int, client: str, keys: Sequence[int]) -> None:
        """Give locks back; those of other owners are left alone. Returns when applied."""
        freed = self._current().unlock(gid, client, list(dict.fromkeys(keys)))
        if freed:
            await self._intake.apply([Locks(gid, "", [(tid_of(key), queue_of(key)) for key in freed])])

    def locked(self, gid: int, tid: int, queue: int) -> bool:
        """Does anybody hold an unexpired lock on this queue?"""
        leases, key = self._leases, key_of(tid, queue)
        if leases is None or self._intake.view.lock_owner(gid, key) is None:
            return False
        return trio.current_time() < leases.deadline(gid, key)

    def _current(self) -> LockLeases:
        if self._leases is None:
            raise NotLeader(NO_LEADER)
        return self._leases
