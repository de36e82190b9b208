"""Headers of the requests by which operators run replica groups (ours, 9002 to 9006, 9008; docs/protocol.md 5.5)."""

from __future__ import annotations

from trimq.wire.headers.base import I32, Header

__all__ = [
    "ChangeMembersHeader",
    "CreateGroupHeader",
    "PromoteMasterHeader",
    "SetStrategyHeader",
    "TransferLeaderHeader",
    "TrustLogHeader",
]


class ChangeMembersHeader(Header, frozen=True, kw_only=True):
    """Code 9002: one change of who belongs to a group."""

    group: str
    action: str
    """`add` (as a learner), `promote` (a learner to a voter) or `remove`."""
    node: str
    """Node id of the replica in question."""
    peer_addr: str = ""
    """`add`: where it listens for its peers."""
    client_addr: str = ""
    """`add`: where it serves clients."""
    store_uuid: str = ""
    """`add`: the uuid of its store, as 9001 of that replica tells it."""
    rank: I32 = -1
    """`add`: its place among the preferred leaders, 0 first; -1: behind all others."""
    maintenance: bool = False
    """`remove`: two voters or fewer may be left, although such a group stands still when one of them fails."""


class TransferLeaderHeader(Header, frozen=True, kw_only=True):
    """Code 9003: hand leadership over."""

    group: str
    node: str = ""
    """To whom; empty: to the best replica."""


class CreateGroupHeader(Header, frozen=True, kw_only=True):
    """Code 9004: this broker process takes a replica of a new group. What it needs beside is its own configuration."""

    group: str
    """The new group (brokerName)."""
    node: str
    """Its node id here (`dLegerSelfId`)."""
    peers: str
    """`dLegerPeers` of the new group: `n0-host:port;n1-host:port;...`, this node among them."""
    preferred: str = ""
    """`preferredLeaderId`."""
    port: I32 = 0
    """Client port; 0: the broker finds a free one."""


class SetStrategyHeader(Header, frozen=True, kw_only=True):
    """Code 9005: move a live group to another replication strategy."""

    group: str
    strategy: str
    """`raft`, `sync` or `async`."""
    required: I32 = 0
    """`sync`: how many replicas have to hold an entry, the master included; 0: the strategy's default."""


class PromoteMasterHeader(Header, frozen=True, kw_only=True):
    """Code 9006: make a slave of a master-slave group its master."""

    group: str
    node: str
    force: bool = False
    """Also with fewer grants than prove that it holds every acknowledged entry."""


class TrustLogHeader(Header, frozen=True, kw_only=True):
    """Code 9008, to the replica itself: let a suspect replica vote and lead with the log that it has."""

    group: str
    node: str
    accept_loss: bool = False
    """Without it the answer is a refusal that says what may be lost."""
