"""Headers of 9007 (ours): a slave joins its group."""

from __future__ import annotations

from trimq.wire.headers.base import I32, Header

__all__ = ["JoinGroupHeader", "JoinGroupResponse"]


class JoinGroupHeader(Header, frozen=True, kw_only=True):
    """What the slave says of itself."""

    cluster: str
    group: str
    node: str
    """Its node id, `n` and the brokerId."""
    rank: I32
    """Its brokerId."""
    peer_addr: str
    """Where it listens for the other replicas (haListenPort)."""
    client_addr: str
    store_uuid: str


class JoinGroupResponse(Header, frozen=True, kw_only=True):
    """Whom to follow."""

    node: str
    peer_addr: str
