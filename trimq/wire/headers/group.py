"""Headers of the requests by which operators run replica groups (ours; docs/protocol.md 5.5)."""

from __future__ import annotations

from trimq.wire.headers.base import I32, Header

__all__ = [
    "PromoteMasterHeader",
    "SetStrategyHeader",
]


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
