"""Reading a queue: units give places, neighbouring places become one slice, slices come from memory or the disk.

Records are never decoded here. A read that finds everything in memory waits for nothing, which is what lets a whole
pass of pulls be answered in one go.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from .commit_log import CommitLog
from .errors import EntryDamaged
from .index_segment import UNIT_WORDS
from .queue_index import QueueIndex

__all__ = ["Found", "NeedDisk", "Pulls"]

SCAN_UNITS: Final = 800
"""Units looked at in one read when a filter drops most (RocketMQ's 16,000 bytes of index)."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a read gave: `parts` joined are `count` whole records."""

    next_offset: int
    """Where to read on; behind what the filter dropped, too."""
    count: int
    parts: list[bytes]


@dataclass(frozen=True, slots=True)
class NeedDisk:
    """Something of it is not in memory."""


_NEED_DISK: Final = NeedDisk()


class Pulls:
    """Reads queues of one store."""

    def __init__(self, log: CommitLog, queues: QueueIndex) -> None:
        self._log = log
        self._queues = queues

    def get(
        self, key: int, offset: int, max_count: int, max_bytes: int, wanted: Container[int] | None
    ) -> Found | NeedDisk:
        words = self._queues.hot(key, offset, max(max_count, SCAN_UNITS) if wanted is not None else max_count)
        if words is None:
            return _NEED_DISK
        next_offset, count, ranges = _choose(words, offset, max_count, max_bytes, wanted)
        parts: list[bytes] = []
        for position, size in ranges:
            view = self._log.cached_bytes(position, size)
            if view is None:
                return _NEED_DISK
            parts.append(bytes(view))
        return Found(next_offset, count, parts)

    async def get_from_disk(
        self, key: int, offset: int, max_count: int, max_bytes: int, wanted: Container[int] | None
    ) -> Found:
        count_max = max(max_count, SCAN_UNITS) if wanted is not None else max_count
        offset = max(offset, self._queues.first_offset(key))
        try:
            words = await self._queues.units(key, offset, count_max)
            next_offset, count, ranges = _choose(words, offset, max_count, max_bytes, wanted)
            parts = [await self._log.read_bytes(position, size) for position, size in ranges]
        except LookupError:
            # Retention was faster. The caller looks at the bounds again.
            return Found(self._queues.first_offset(key), 0, [])
        except EntryDamaged as error:
            raise OSError(errno.EIO, str(error)) from error
        return Found(next_offset, count, parts)


def _choose(
    words: array[int], offset: int, max_count: int, max_bytes: int, wanted: Container[int] | None
) -> tuple[int, int, list[tuple[int, int]]]:
    """Pick units: at least one, within the limits; join records that lie side by side in the log.

    Records of one entry only: between entries lies a header, so neighbours never span two.
    """
    ranges: list[tuple[int, int]] = []
    start = end = count = total = 0
    at = 0
    for at in range(0, len(words), UNIT_WORDS):
        if wanted is not None and words[at + 2] not in wanted:
            continue
        size = words[at + 1]
        if count and (count >= max_count or total + size > max_bytes):
            break
        position = words[at]
        if position == end and count:
            end += size
        else:
            if count:
                ranges.append((start, end - start))
            start, end = position, position + size
        count += 1
        total += size
    else:
        at = len(words)
    if count:
        ranges.append((start, end - start))
    return offset + at // UNIT_WORDS, count, ranges
