"""What a replica of a group has to know before it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.replication.ha.config import HaConfig
from raft.core.types import Member

__all__ = ["GroupConfig", "Peer"]


@dataclass(frozen=True, slots=True)
class Peer:
    """One configured replica: where it listens for its peers."""

    id: str
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupConfig:
    """What a replica of a group has to know."""

    cluster: str
    group: str
    node_id: str
    peers: tuple[Peer, ...]
    """All replicas, this one included."""
    client_addr: str = ""
    """Where clients reach this replica, `host:port`."""
    segment_bytes: int = 64 << 20
    """For a group that is still to be formed."""
    preferred_leader: str = ""
    listen_host: str | None = None
    """Where to bind the peer listener; by default the host of this replica's own peer address."""
    strategy: str = "raft"
    """raft, sync or async: what a group that is formed here is; afterwards its log says what it is."""
    ha: HaConfig = field(default_factory=HaConfig)
    boot_id: str = ""
    """Changes with every start of the machine; "" when that is not known: what was not synced may be gone."""
    unsafe_async_flush: bool = False
    """raftUnsafeAsyncFlush: acknowledge before the sync. A power cut of a majority loses acknowledged messages."""

    def members(self) -> tuple[Member, ...]:
        """The peers as members. Rank 0 is the preferred leader; without one, the order of the ids counts.

        A master-slave replica knows only itself until its log or the master tells more.
        """
        if self.strategy != "raft":
            return tuple(
                Member(id=peer.id, rank=self.ha.rank, address=f"{peer.host}:{peer.port}") for peer in self.peers
            )
        ids = sorted(peer.id for peer in self.peers)
        if self.preferred_leader in ids:
            ids.remove(self.preferred_leader)
            ids.insert(0, self.preferred_leader)
        return tuple(
            Member(id=peer.id, rank=ids.index(peer.id), address=f"{peer.host}:{peer.port}")
            for peer in sorted(self.peers, key=lambda peer: peer.id)
        )
