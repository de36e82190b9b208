"""Offsets: the consumer's (14, 15) and the queue's (29, 30, 31, 32), with their answers."""

from __future__ import annotations

import msgspec

from trimq.wire.headers.base import I32, I64, Header

__all__ = [
    "EarliestStoreTimeHeader",
    "EarliestStoreTimeResponse",
    "GetMaxOffsetHeader",
    "GetMinOffsetHeader",
    "OffsetResponse",
    "QueryOffsetHeader",
    "SearchOffsetHeader",
    "UpdateOffsetHeader",
]


class QueryOffsetHeader(Header, frozen=True, kw_only=True):
    """Code 14. "Never committed" is answered 22, or 0 while the queue is young."""

    consumer_group: str
    topic: str
    queue_id: I32
    set_zero_if_not_found: bool = True
    bname: str = ""


class OffsetResponse(Header, frozen=True, kw_only=True):
    """The answer to 14, 29, 30 and 31."""

    quiet = frozenset({"provisional"})

    offset: I64
    provisional: bool = False
    """Ours: from a replica that knows no leader; a later answer may be lower."""


class UpdateOffsetHeader(Header, frozen=True, kw_only=True):
    """Code 15. A negative offset is a client's way of saying nothing: ignore it."""

    quiet = frozenset({"set_back"})

    consumer_group: str
    topic: str
    queue_id: I32
    commit_offset: I64
    set_back: bool = msgspec.field(name="set", default=False)
    """Ours: a seek; the offset counts although it is lower than the stored one."""
    bname: str = ""


class GetMaxOffsetHeader(Header, frozen=True, kw_only=True):
    """Code 30; the answer is the queue's exclusive end."""

    topic: str
    queue_id: I32
    committed: bool = True
    bname: str = ""


class GetMinOffsetHeader(Header, frozen=True, kw_only=True):
    """Code 31."""

    topic: str
    queue_id: I32
    bname: str = ""


class SearchOffsetHeader(Header, frozen=True, kw_only=True):
    """Code 29: an offset by store time."""

    topic: str
    queue_id: I32
    timestamp: I64
    """Wall clock, milliseconds."""
    boundary_type: str = "LOWER"
    """`LOWER`: the first offset stored at or after the time; `UPPER`: the last one stored at or before it."""
    bname: str = ""


class EarliestStoreTimeHeader(Header, frozen=True, kw_only=True):
    """Code 32."""

    topic: str
    queue_id: I32
    bname: str = ""


class EarliestStoreTimeResponse(Header, frozen=True, kw_only=True):
    timestamp: I64
    """Wall clock, milliseconds; -1 when the queue is empty."""
