"""Reading a queue: units give places, neighbouring places become one slice, slices come from memory or the disk.

Records are never decoded here; only a filter that looks at properties has them cut out of the record. A read that finds
everything in memory waits for nothing, which is what lets a whole pass of pulls be answered in one go; so what one look
may cost is bounded in units, in bytes read and in the work of the filter.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Container
from dataclasses import dataclass
from typing import Final, Protocol

from trimq.errors import RecordError
from trimq.message.record import properties_of

from .commit_log import CommitLog
from .errors import EntryDamaged
from .index_segment import UNIT_WORDS
from .queue_index import QueueIndex

__all__ = ["Found", "NeedDisk", "PropertyTest", "Pulls"]

SCAN_UNITS: Final = 800
"""Units looked at in one read when a filter drops most (RocketMQ's 16,000 bytes of index)."""


TEST_BYTES: Final = 256 << 10
"""Bytes of properties that a filter may pass over in one look: a few milliseconds of the loop."""
READ_BYTES: Final = 256 << 10
"""Neighbouring records that are read from the disk at once for a filter."""
LOOK_BYTES: Final = 4 << 20
"""Bytes read from the disk for one look of a filter."""


class PropertyTest(Protocol):
    """A filter that looks at the properties of each message."""

    @property
    def cost(self) -> int:
        """How often it passes over them, at most."""
        ...

    def __call__(self, raw: bytes, /) -> bool: ...


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
        self,
        key: int,
        offset: int,
        max_count: int,
        max_bytes: int,
        wanted: Container[int] | None,
        test: PropertyTest | None = None,
    ) -> Found | NeedDisk:
        if test is not None:
            return self._get_tested(key, offset, max_count, max_bytes, test)
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

    def _get_tested(
        self, key: int, offset: int, max_count: int, max_bytes: int, test: PropertyTest
    ) -> Found | NeedDisk:
        words = self._queues.hot(key, offset, SCAN_UNITS)
        if words is None:
            return _NEED_DISK
        picked = _Picked(test, max_count, max_bytes)
        for at in range(0, len(words), UNIT_WORDS):
            if picked.is_full(words[at + 1]):
                break
            view = self._log.cached_bytes(words[at], words[at + 1])
            if view is None:
                if picked.looked:
                    break  # what was looked at so far is an answer; the rest is another look
                return _NEED_DISK
            picked.look(view)
        return picked.found(offset)

    async def get_from_disk(
        self,
        key: int,
        offset: int,
        max_count: int,
        max_bytes: int,
        wanted: Container[int] | None,
        test: PropertyTest | None = None,
    ) -> Found:
        offset = max(offset, self._queues.first_offset(key))
        try:
            if test is not None:
                return await self._read_tested(key, offset, _Picked(test, max_count, max_bytes))
            count_max = max(max_count, SCAN_UNITS) if wanted is not None else max_count
            words = await self._queues.units(key, offset, count_max)
            next_offset, count, ranges = _choose(words, offset, max_count, max_bytes, wanted)
            parts = [await self._log.read_bytes(position, size) for position, size in ranges]
        except LookupError:
            # Retention was faster. The caller looks at the bounds again.
            return Found(self._queues.first_offset(key), 0, [])
        except EntryDamaged as error:
            raise OSError(errno.EIO, str(error)) from error
        return Found(next_offset, count, parts)

    async def _read_tested(self, key: int, offset: int, picked: _Picked) -> Found:
        words = await self._queues.units(key, offset, SCAN_UNITS)
        read = 0
        for position, sizes in _runs(words):
            if read > LOOK_BYTES:
                break
            data = memoryview(await self._log.read_bytes(position, sum(sizes)))
            read += len(data)
            at = 0
            for size in sizes:
                if picked.is_full(size):
                    return picked.found(offset)
                picked.look(data[at : at + size])
                at += size
        return picked.found(offset)


class _Picked:
    """What a filter that looks at properties has let through, in the order of the queue."""

    __slots__ = ("_bytes", "_left", "_max_bytes", "_max_count", "_parts", "_test", "looked")

    def __init__(self, test: PropertyTest, max_count: int, max_bytes: int) -> None:
        self._test = test
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._bytes = 0
        self._left = TEST_BYTES
        self.looked = 0
        """Messages that were looked at."""

    def is_full(self, size: int) -> bool:
        """Must the next message, of `size` bytes, wait for another look?"""
        if self._left <= 0:
            return True
        return bool(self._parts) and (len(self._parts) >= self._max_count or self._bytes + size > self._max_bytes)

    def look(self, record: memoryview) -> None:
        self.looked += 1
        try:
            raw = properties_of(record)
        except RecordError as error:
            raise OSError(errno.EIO, str(error)) from error
        self._left -= (len(raw) + 1) * self._test.cost
        if self._test(raw):
            self._parts.append(bytes(record))
            self._bytes += len(record)

    def found(self, offset: int) -> Found:
        return Found(offset + self.looked, len(self._parts), self._parts)


def _runs(words: array[int]) -> list[tuple[int, list[int]]]:
    """Units as runs of neighbours in the log: the position of the first, and the size of each."""
    runs: list[tuple[int, list[int]]] = []
    end = total = 0
    for at in range(0, len(words), UNIT_WORDS):
        position, size = words[at], words[at + 1]
        if runs and position == end and total + size <= READ_BYTES:
            runs[-1][1].append(size)
            total += size
        else:
            runs.append((position, [size]))
            total = size
        end = position + size
    return runs


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
