"""The feeders of one group: append requests to all its peers, filled and sent (`raft.feeder` does one peer)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from raft.codec import encode_message
from raft.core.messages import AppendRequest
from raft.core.types import EntryLike, NodeId
from raft.feeder import Feeder
from raft.members import GroupMembers
from raft.storage import LogStorage, StorageDamaged

__all__ = ["Feeders"]


class Feeders:
    """Made on demand, one per peer; their tasks live in the group's nursery."""

    def __init__(
        self,
        group: str,
        storage: LogStorage,
        members: GroupMembers,
        pending: Callable[[int, int], Sequence[EntryLike]],
        damaged: Callable[[StorageDamaged], None],
    ) -> None:
        self._group = group
        self._storage = storage
        self._members = members
        self._pending = pending
        self._damaged = damaged
        self._of: dict[NodeId, Feeder] = {}

    def push(self, request: AppendRequest, nursery: trio.Nursery) -> None:
        """Send a request as soon as its entries are at hand."""
        feeder = self._of.get(request.to)
        if feeder is None:
            feeder = self._of[request.to] = Feeder(self._storage, self._pending, self._send, self._damaged)
            nursery.start_soon(feeder.run)
        feeder.push(request)

    def clear(self, node: NodeId) -> None:
        """The link to a peer broke: what waits for it is void."""
        feeder = self._of.get(node)
        if feeder is not None:
            feeder.clear()

    def clear_all(self) -> None:
        """Leadership ended."""
        for feeder in self._of.values():
            feeder.clear()

    def _send(self, request: AppendRequest, entries: Sequence[EntryLike]) -> None:
        link = self._members.link(request.to)
        if link is None:
            return
        fields = encode_message(request)
        if entries:
            link.send_data(self._group, fields, [entry.data for entry in entries], prompt=True)
        else:
            link.send_control(self._group, fields)
