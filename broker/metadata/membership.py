"""The payload of a membership entry: who the replicas of this group are, and how they replicate.

`[1, t, {lineage, strategy, master, required, segment_bytes, voters, learners}]`, canonical CBOR. Entry 1 of every log
is one. Consensus reads it when it is *appended*; this table keeps the newest *applied* one, for what clients are told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import cbor2

from broker.metadata.ops import FORMAT, ControlError, NewerVersion

__all__ = ["MembershipView", "ReplicaView", "decode_membership"]


class ReplicaView(NamedTuple):
    """One replica of the group as its membership entry lists it."""

    id: str
    rank: int
    peer_addr: str
    client_addr: str
    store_uuid: bytes | str


@dataclass(frozen=True, slots=True)
class MembershipView:
    """The replicas of a group."""

    strategy: str
    master: str
    required: int
    segment_bytes: int
    lineage: int | bytes
    voters: tuple[ReplicaView, ...]
    learners: tuple[ReplicaView, ...] = ()


def decode_membership(payload: bytes | memoryview) -> tuple[int, MembershipView]:
    """Return log time and membership. Raises as `decode_payload` does."""
    try:
        raw: Any = cbor2.loads(payload)  # Any: checked below
        version, log_time, body = raw
    except Exception as problem:
        raise ControlError(f"membership payload of {len(payload)} bytes is malformed: {problem}") from problem
    if version != FORMAT:
        raise NewerVersion(f"membership version {version!r}: written by a newer version; this one knows {FORMAT}")
    try:
        return log_time, MembershipView(
            strategy=body["strategy"],
            master=body.get("master") or "",
            required=body.get("required") or 0,
            segment_bytes=body["segment_bytes"],
            lineage=body["lineage"],
            voters=tuple(ReplicaView(*each) for each in body["voters"]),
            learners=tuple(ReplicaView(*each) for each in body.get("learners", ())),
        )
    except (KeyError, TypeError, AttributeError) as problem:
        raise ControlError(f"membership payload is malformed: {problem!r}") from problem
