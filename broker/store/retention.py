"""Which segments may go: by age, at a certain hour or under disk pressure. A pure decision.

Whole sealed segments, oldest first, never the newest two, and only what nobody can need: entries that are committed,
dispatched, and at or below the *older* of the two snapshots. Facts: RocketMQ's `fileReservedTime`, `deleteWhen`,
`diskMaxUsedSpaceRatio`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

__all__ = ["RetentionConfig", "SealedSegment", "expired"]

KEEP_SEGMENTS: Final = 2
"""The newest so many stay whatever happens: a briefly absent follower shall not need an install."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionConfig:
    """When segments go."""

    reserved_ms: int = 72 * 3600 * 1000
    """Keep messages at least so long (`fileReservedTime`)."""
    delete_hours: frozenset[int] = frozenset({4})
    """Hours of the day, local time, in which expired segments are removed (`deleteWhen`)."""
    disk_share_max: float = 0.75
    """Above this share of the disk expired segments go at any hour (`diskMaxUsedSpaceRatio`)."""
    disk_share_force: float = 0.85
    """Above this share the oldest segments go although they have not expired."""


@dataclass(frozen=True, slots=True)
class SealedSegment:
    """What the decision needs of a sealed segment."""

    last_index: int
    newest_ms: int
    """Store time of its newest message."""


def expired(
    segments: Sequence[SealedSegment], config: RetentionConfig, *, now_ms: int, used_share: float, removable: int
) -> int:
    """How many of the sealed segments, oldest first, shall be removed now.

    `segments` are all sealed ones (the active one follows them); `removable`: newest index that nobody needs.
    """
    may_go = max(0, len(segments) - (KEEP_SEGMENTS - 1))
    in_hours = datetime.fromtimestamp(now_ms / 1000).hour in config.delete_hours
    count = 0
    for segment in segments[:may_go]:
        if segment.last_index > removable:
            break
        old = now_ms - segment.newest_ms >= config.reserved_ms
        if not (old and (in_hours or used_share > config.disk_share_max)) and used_share <= config.disk_share_force:
            break
        count += 1
    return count
