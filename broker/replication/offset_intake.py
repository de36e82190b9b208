"""Consumer offsets on their way into the log: what is taken, what is ignored, what waits.

Updates come far more often than they matter, so the leader keeps the newest per (consumer group, queue) as *pending*,
and every entry that closes takes up to 4,096 of them along. This module holds the rules and the pending rows; the
intake asks, the open batch collects.

Order in which an update is judged: negative → ignored; beyond the queue's end → refused; behind a reset's fence →
ignored; lower than what is stored → only from the connection that made the newest pull of that queue, or when the
client says that it seeks; else ignored and counted (a late owner's commit).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from broker.metadata.offsets import FENCE_MS
from broker.metadata.ops import queue_of, tid_of

if TYPE_CHECKING:
    from broker.replication.base import Settled

__all__ = ["ROWS_MAX", "ROW_BYTES", "OffsetVerdict", "PendingOffsets", "ProvisionalOffsets", "judge_offset"]

ROWS_MAX: Final = 4096
"""Offsets in one entry."""
ROW_BYTES: Final = 24
"""Upper bound of one row in op 5: four integers, five bytes for ids, three for a queue, nine for an offset."""


class OffsetVerdict(enum.Enum):
    TAKE = enum.auto()
    SAME = enum.auto()
    """Stored, or on its way, already."""
    NEGATIVE = enum.auto()
    BEYOND = enum.auto()
    FENCED = enum.auto()
    LOWER = enum.auto()


def judge_offset(
    offset: int,
    *,
    stored: int | None,
    end: int,
    newest_puller: bool,
    forced: bool,
    fence: tuple[int, int] | None,
    now_ms: int,
) -> OffsetVerdict:
    """The verdict on one update. `fence` is the last reset that no pull has answered yet, as (offset, log time)."""
    if offset < 0:
        return OffsetVerdict.NEGATIVE
    if offset > end:
        return OffsetVerdict.BEYOND
    if fence is not None and now_ms - fence[1] < FENCE_MS:
        return OffsetVerdict.FENCED
    if stored is None or offset > stored:
        return OffsetVerdict.TAKE
    if offset == stored:
        return OffsetVerdict.SAME
    return OffsetVerdict.TAKE if newest_puller or forced else OffsetVerdict.LOWER


@dataclass(slots=True)
class _Row:
    offset: int
    waiting: list[Settled] = field(default_factory=list)


class PendingOffsets:
    """What the next entries take: (consumer group id, queue key) → offset, oldest change first."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], _Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, gid: int, key: int) -> int | None:
        row = self._rows.get((gid, key))
        return None if row is None else row.offset

    def put(self, gid: int, key: int, offset: int, waiter: Settled | None) -> None:
        """The newest value of a row counts; everybody who waits for it is told when it is applied."""
        row = self._rows.get((gid, key))
        if row is None:
            row = self._rows[gid, key] = _Row(offset)
        else:
            row.offset = offset
        if waiter is not None:
            row.waiting.append(waiter)

    def drop(self, gid: int, key: int) -> list[Settled]:
        """A reset overtook the row. Returns who waited for it."""
        row = self._rows.pop((gid, key), None)
        return [] if row is None else row.waiting

    def drop_where(self, unwanted: Callable[[int, int], bool]) -> list[Settled]:
        """The topic or consumer group of some rows is deleted. Returns who waited for them."""
        waiting: list[Settled] = []
        for gid, key in [each for each in self._rows if unwanted(*each)]:
            waiting += self.drop(gid, key)
        return waiting

    def take(self, room_bytes: int) -> tuple[list[tuple[int, int, int, int]], list[Settled]]:
        """Rows for one op 5, `(gid, tid, queue, offset)` each, and who waits for them."""
        count = min(len(self._rows), ROWS_MAX, room_bytes // ROW_BYTES)
        if count <= 0:
            return [], []
        keys = list(self._rows)[:count] if count < len(self._rows) else list(self._rows)
        rows: list[tuple[int, int, int, int]] = []
        waiting: list[Settled] = []
        for gid, key in keys:
            row = self._rows.pop((gid, key))
            rows.append((gid, tid_of(key), queue_of(key), row.offset))
            waiting += row.waiting
        return rows, waiting

    def rows(self) -> list[tuple[int, int, int]]:
        """(consumer group id, queue key, offset) of everything pending."""
        return [(gid, key, row.offset) for (gid, key), row in self._rows.items()]

    def waiters(self) -> list[Settled]:
        return [waiter for row in self._rows.values() for waiter in row.waiting]


class ProvisionalOffsets:
    """What a replica was told while it knew no leader: by name, the highest value wins.

    Its answers to queries are marked provisional; once there is a leader the rows are forwarded to it. They survive a
    restart in the marks file, which stores `rows()`.
    """

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, int], int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, group: str, topic: str, queue: int, offset: int) -> None:
        if offset >= 0 and offset >= self._rows.get((group, topic, queue), 0):
            self._rows[group, topic, queue] = offset

    def get(self, group: str, topic: str, queue: int, applied: int | None) -> int | None:
        """The answer to a query: max(applied, pending); None when neither is known."""
        told = self._rows.get((group, topic, queue))
        if told is None or applied is None:
            return applied if told is None else told
        return max(told, applied)

    def rows(self) -> list[tuple[str, str, int, int]]:
        """(consumer group, topic, queue, offset), oldest first."""
        return [(*key, offset) for key, offset in self._rows.items()]

    def take(self) -> list[tuple[str, str, int, int]]:
        """All rows, which are then somebody else's."""
        rows = self.rows()
        self._rows.clear()
        return rows
