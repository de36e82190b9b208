"""What a formed member hands to those who know less: the beginning of the log, and who belongs to the group now.

    [FORM, 1, membership]         body: entry 1    to an empty store that the membership lists: it may begin its log
    [FORM, 2, index, membership]                   to a replica whose newest membership entry is older

The second one keeps a replica that was away from being shut out: it may know none of today's members by address or
store, and the leader, whom it would learn it from, could be one of them. It only says with whom to talk; who counts is
said by the log alone. It also tells a replica that it was removed, which then does not campaign any more.

Only committed memberships are told, and entry 1's, which is committed by being written.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from raft.codec import DRIVER_CODES
from raft.core.types import Membership, NodeId
from raft.members import GroupMembers, GroupSettings
from raft.storage import LogStorage, StorageDamaged

__all__ = ["BEGIN", "FORM", "KNOW", "Welcome"]

log = logging.getLogger(__name__)

FORM: Final = DRIVER_CODES
BEGIN: Final = 1
KNOW: Final = 2


class Welcome:
    """One per replica. Only the group's loop calls `hand_out`."""

    def __init__(
        self, settings: GroupSettings, storage: LogStorage, members: GroupMembers, commit: Callable[[], int]
    ) -> None:
        self._group = settings.group
        self._open = settings.joins
        """Master-slave: whoever was let in may begin its log before it is listed."""
        self._storage = storage
        self._members = members
        self._commit = commit
        self._newest: tuple[int, Membership] | None = None
        self._to_see: deque[NodeId] = deque()
        self._told: dict[NodeId, int] = {}
        """Index of the membership that a member was told last, in its present session."""
        self._named: set[tuple[NodeId, str]] = set()
        self._waiting = False

    def use(self, index: int, membership: Membership) -> None:
        """This membership is in force."""
        self._newest = (index, membership)
        self._waiting = True

    def hello(self, node: NodeId) -> None:
        """A peer introduced itself."""
        self._told.pop(node, None)
        self._to_see.append(node)

    def joinable(self) -> list[NodeId]:
        """Members with an empty store that cannot begin with entry 1, because it is gone here: they need files."""
        if self._storage.first_index <= 1:
            return []
        return [node for node in sorted(self._members.introductions) if self._is_empty_member(node)]

    async def hand_out(self) -> None:
        """Give everybody what they lack."""
        if self._newest is None or not self._storage.formed:
            return
        index, membership = self._newest
        if index > 1 and index > self._commit() and not self._open:
            return
        if self._waiting:
            self._waiting = False
            self._to_see.extend(sorted(self._members.introductions))
        while self._to_see:
            await self._see(self._to_see.popleft(), index, membership)

    async def _see(self, node: NodeId, index: int, membership: Membership) -> None:
        peer, link = self._members.introductions.get(node), self._members.link(node)
        if peer is None or link is None or self._told.get(node) == index:
            return
        payload = self._storage.pack_membership(membership)
        if peer.formed:
            if peer.members < index and link.send_data(self._group, [FORM, KNOW, index, payload], ()):
                self._told[node] = index
        elif self._open or self._is_empty_member(node):
            if self._storage.first_index > 1:
                return  # the leader offers it an installation
            try:
                entries = self._storage.cached(1, 1) or await self._storage.read(1, 1)
            except (OSError, StorageDamaged):
                return
            if entries and link.send_data(self._group, [FORM, BEGIN, payload], [entries[0].data]):
                self._told[node] = index
        elif (node, peer.store_uuid) not in self._named:
            self._named.add((node, peer.store_uuid))
            log.warning(
                "an empty replica waits to be added to the group (trimq admin group add-replica)",
                extra={"group": self._group, "peer": node, "store": peer.store_uuid[:8]},
            )

    def _is_empty_member(self, node: NodeId) -> bool:
        peer, listed = self._members.introductions.get(node), self._members.member(node)
        return peer is not None and not peer.formed and listed is not None and listed.uuid == peer.store_uuid
