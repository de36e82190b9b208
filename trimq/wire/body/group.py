"""Ours: what two sides can do (HELLO, 9000) and how a replica group stands (GROUP_STATUS, 9001)."""

# ruff: noqa: RUF012  (msgspec gives each value a default list or dict of its own)
from __future__ import annotations

from typing import Final, Self

from trimq.wire.body.base import I32, I64, Body

__all__ = ["FEATURES", "GroupStatus", "Hello", "ReplicaStatus"]

FEATURES: Final = ("cbor", "sequences", "leader-hints")
"""What this release can do: read CBOR headers; number sends (`pid pe ps pf`) and read codes from 9100; follow
`leaderAddr`."""


class Hello(Body, frozen=True, kw_only=True):
    """Request and answer of 9000. A side that never says hello gets nothing that Apache's would not send."""

    clientId: str = ""
    clusterName: str = ""
    features: list[str] = []
    group: str = ""
    """Replica group (brokerName) of a broker."""
    nodeId: str = ""
    product: str = "trimq"
    protocol: I32 = 1
    """Grows when a peer must know more than `features` can say."""

    @classmethod
    def ours(cls, client_id: str = "", *, cluster: str = "", group: str = "", node_id: str = "") -> Self:
        """What this release says of itself, as a client or as a broker."""
        return cls(clientId=client_id, clusterName=cluster, features=list(FEATURES), group=group, nodeId=node_id)


class ReplicaStatus(Body, frozen=True, kw_only=True):
    addr: str = ""
    """`ip:port` for clients."""
    commit: I64 = 0
    """Log index; likewise `last` (written) and `dispatched`."""
    dispatched: I64 = 0
    last: I64 = 0
    lastPosition: I64 = 0
    """Where the log ends, in bytes: what a lag is measured in."""
    learner: bool = False
    """Replicated to, never counted."""
    peer: str = ""
    """`host:port` where it listens for its peers; it alone knows, likewise `uuid`."""
    pid: I64 = 0
    """Process id; 0 when it is not known."""
    rank: I32 = -1
    """Its place among the preferred leaders by its own configuration, 0 first."""
    ready: bool = False
    role: str = "unknown"
    """`leader`, `follower`, `candidate`, `learner`, `unformed`, `impaired`, ... or `unknown` for one that is silent."""
    suspect: bool = False
    """Its log may lack what it had acknowledged: it grants no vote until a leader has made it good."""
    term: I64 = 0
    uuid: str = ""
    """Which store it is: drawn when the store was empty."""


class GroupStatus(Body, frozen=True, kw_only=True):
    """The answer to 9001: the group as the asked replica sees it."""

    answeredBy: str = ""
    """Node id of that replica."""
    cluster: str = ""
    group: str
    leader: str | None = None
    """Node id of the leader, None while nobody is known to lead."""
    replicas: dict[str, ReplicaStatus] = {}
    strategy: str = "raft"
    term: I64 = 0
