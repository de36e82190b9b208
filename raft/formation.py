"""How an empty group becomes one, exactly once.

An empty replica has drawn a store uuid and is *unformed*: it neither votes nor counts. When **all** configured peers
have said hello as unformed, the first by id draws the lineage and writes entry 1, which lists every peer with its
uuid; the others adopt entry 1 if it lists *theirs*. So two groups can never be formed out of one set of empty stores,
and a replica that lost its disk cannot come back under its old name and vote: its uuid is not the listed one.

This class only decides; the group's driver talks, writes and logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raft.core.types import Member, Membership, NodeId

__all__ = ["Formation", "Introduction"]


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a replica says of itself when a link comes up."""

    node_id: NodeId
    store_uuid: str
    client_address: str
    lineage: int
    """0: unformed."""
    term: int
    """Its durable term."""
    feature: int = 1
    members: int = 0
    """Index of the newest membership entry in its log."""

    @property
    def formed(self) -> bool:
        return self.lineage != 0


class Formation:
    """What an unformed replica knows of its peers."""

    def __init__(self, me: Introduction, peers: Sequence[Member]) -> None:
        """`peers` are all configured replicas, this one included; their uuids and client addresses are unknown."""
        assert any(peer.id == me.node_id for peer in peers), "the replica is one of the configured peers"
        self._me = me
        self._peers = tuple(sorted(peers, key=lambda peer: peer.id))
        self._known: dict[NodeId, Introduction] = {me.node_id: me}

    def hello(self, peer: Introduction) -> None:
        """A peer introduced itself (again)."""
        self._known[peer.node_id] = peer

    def lost(self, node_id: NodeId) -> None:
        """The link to a peer is down: what it said may be outdated."""
        if node_id != self._me.node_id:
            self._known.pop(node_id, None)

    @property
    def missing(self) -> tuple[NodeId, ...]:
        """Peers that have not said anything yet."""
        return tuple(peer.id for peer in self._peers if peer.id not in self._known)

    @property
    def formed_peers(self) -> tuple[NodeId, ...]:
        """Peers that belong to a group already: one of them has to hand over its entry 1."""
        return tuple(peer.id for peer in self._peers if peer.id in self._known and self._known[peer.id].formed)

    def membership(self) -> Membership | None:
        """The group to form, if it is this replica's turn: all are here, none is formed, this is the first by id."""
        if self.missing or self.formed_peers or self._peers[0].id != self._me.node_id:
            return None
        voters = []
        for peer in self._peers:
            said = self._known[peer.id]
            voters.append(
                Member(
                    id=peer.id,
                    rank=peer.rank,
                    address=peer.address,
                    client_address=said.client_address,
                    uuid=said.store_uuid,
                )
            )
        return Membership(tuple(voters))

    def refusal(self, membership: Membership) -> str | None:
        """Why a group must not be joined whose membership this is; None: it lists this store."""
        member = membership.member(self._me.node_id)
        if member is None:
            return f"it does not list {self._me.node_id}"
        if member.uuid != self._me.store_uuid:
            return (
                f"it lists {self._me.node_id} with another store ({member.uuid[:8]}, this one is "
                f"{self._me.store_uuid[:8]}): the disk was replaced; remove the replica from the group and add it again"
            )
        return None
