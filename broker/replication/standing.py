"""Who leads a Raft group and what this replica is in it, as it tells others: its role events, and the leader's address.

The core says both by id. What is told has the address that clients use, which may become known later than the id (with
the leader's link), and says whether a leader is ready.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from broker.replication.base import NO_LEADER, LeaderHint, Role, RoleEvent
from broker.replication.raft_status import ROLES
from broker.replication.roles import RoleBoard
from raft.core.ready import RoleChange
from raft.core.types import Role as CoreRole
from raft.group import RaftGroup

__all__ = ["Standing"]

log = logging.getLogger(__name__)


class Standing:
    """One per replica."""

    def __init__(self, group: str, node_id: str) -> None:
        self.hint = NO_LEADER
        self._labels = {"group": group, "node": node_id}
        self._board = RoleBoard()

    @property
    def present(self) -> RoleEvent:
        return self._board.present

    def subscribe(self) -> AsyncIterator[RoleEvent]:
        return self._board.subscribe()

    def take_hint(self, group: RaftGroup, change: RoleChange) -> None:
        """Note who leads; for a leader that was removed, whom it handed over to. Published by `publish`."""
        leader = change.leader
        if not leader and group.members.removed and group.core is not None:
            leader = group.core.successor
        self.hint = LeaderHint(leader, group.members.client_address(leader) if leader else "", change.term)

    def publish(self, role: CoreRole, term: int, *, ready: bool) -> None:
        """Tell all who follow, unless it is nothing new."""
        before = self._board.present
        self._board.publish(RoleEvent(ROLES[role], term, self.hint, ready))
        present = self._board.present
        if present is not before:
            log.info(
                "role changed",
                extra={
                    **self._labels,
                    "role": present.role.value,
                    "term": present.term,
                    "leader": present.leader.leader_id,
                    "ready": present.ready,
                },
            )

    def link_came(self, group: RaftGroup, node: str) -> None:
        """A member is heard again: it may have said another address."""
        if self.hint.leader_id != node:
            return
        addr = group.members.client_address(node)
        if addr != self.hint.addr:
            self.hint = LeaderHint(node, addr, self.hint.term)
            present = self._board.present
            self._board.publish(RoleEvent(present.role, present.term, self.hint, present.ready))

    def stop(self) -> None:
        """The group is over in this process: a last word, without a line in the log."""
        self._board.publish(RoleEvent(Role.FOLLOWER, self._board.present.term, NO_LEADER, False))
