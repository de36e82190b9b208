"""A sealed piece of the queue index: the units that all queues got over one range of log entries, in one file.

`queues/<first>-<last>`: units of the entries first..last, grouped by queue. A directory, sorted by queue key, says
where each queue's run is; a run is ConsumeQueue units in RocketMQ's layout (position u64, size u32, tags code i64:
20 bytes), so a queue of a million messages and a million queues of one message cost the same. One file, one sync,
whatever the number of queues. The directory is kept in memory as five flat arrays; each 4,096 units have a checksum.

Merging writes the union of neighbours under the range that covers both; whoever opens the folder takes the widest file
and removes those inside it. So no manifest is needed and a crash at any point leaves a complete index.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from zlib import crc32

from .errors import StoreError, StoreRefused
from .fs import FileSystem, offload, read_whole, write_whole

__all__ = ["INDEX_DIR", "UNIT_BYTES", "UNIT_WORDS", "IndexDamaged", "IndexSegment", "Run", "pack_segment"]

INDEX_DIR: Final = "queues"
UNIT_BYTES: Final = 20
UNIT_WORDS: Final = 3
"""In memory a unit is three signed 64-bit words: position, size, tags code."""

_MAGIC: Final = 0x54514958  # TQIX
_VERSION: Final = 1
_HEAD = struct.Struct(">IIIQQII")
"""Magic, version, lineage, first and last entry index, number of queues, CRC of the directory."""
_U32 = struct.Struct(">I")
_ROW_BYTES: Final = 8 + 8 + 4 + 4 + 4
_CHUNK_UNITS: Final = 256
_ROW_UNITS: Final = 4096
"""A longer run takes several rows, so that reading a few units never means reading, and checking, millions."""


class IndexDamaged(StoreError):
    """Bytes of an index file are not what was written. The index is a function of the log and can be built again."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive units of one queue: `words` holds three per unit."""

    key: int
    first: int
    words: array[int]


@lru_cache(maxsize=512)
def _units(count: int) -> struct.Struct:
    return struct.Struct(">" + "qiq" * count)


def pack_units(words: array[int]) -> bytes:
    """Units as they lie on the disk."""
    count = len(words) // UNIT_WORDS
    if count <= _CHUNK_UNITS:
        return _units(count).pack(*words)
    step = _CHUNK_UNITS * UNIT_WORDS
    return b"".join(
        _units(len(piece) // UNIT_WORDS).pack(*piece)
        for piece in (words[at : at + step] for at in range(0, len(words), step))
    )


def unpack_units(data: bytes) -> array[int]:
    """The three words of each unit."""
    words = array("q")
    step = _CHUNK_UNITS * UNIT_BYTES
    for at in range(0, len(data), step):
        piece = data[at : at + step]
        words.extend(_units(len(piece) // UNIT_BYTES).unpack(piece))
    return words


def _big_endian(column: array[int]) -> bytes:
    if sys.byteorder == "little":
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _column(code: str, data: bytes) -> array[int]:
    column: array[int] = array(code)
    column.frombytes(data)
    if sys.byteorder == "little":
        column.byteswap()
    return column


def pack_segment(runs: Sequence[Run], *, lineage: int, first: int, last: int) -> list[bytes]:
    """The parts of a sealed file over entries first..last. `runs` is sorted by key. Long: runs in a worker."""
    keys, firsts = array("Q"), array("Q")
    counts, starts, crcs = array("I"), array("I"), array("I")
    blocks: list[bytes] = []
    start = 0
    for run in runs:
        for at in range(0, len(run.words), _ROW_UNITS * UNIT_WORDS):
            block = pack_units(run.words[at : at + _ROW_UNITS * UNIT_WORDS])
            count = len(block) // UNIT_BYTES
            keys.append(run.key)
            firsts.append(run.first + at // UNIT_WORDS)
            counts.append(count)
            starts.append(start)
            crcs.append(crc32(block))
            blocks.append(block)
            start += count
    directory = b"".join(map(_big_endian, (keys, firsts, counts, starts, crcs)))
    head = _HEAD.pack(_MAGIC, _VERSION, lineage, first, last, len(keys), crc32(directory))
    return [head, _U32.pack(crc32(head)), directory, *blocks]


class IndexSegment:
    """One sealed file and its directory."""

    def __init__(self, fs: FileSystem, path: str, first: int, last: int, directory: tuple[array[int], ...]) -> None:
        self._fs = fs
        self.path = path
        self.first = first
        """Index of the first log entry it covers."""
        self.last = last
        self.keys, self.firsts, self.counts, self.starts, self.crcs = directory

    @staticmethod
    def path_of(first: int, last: int) -> str:
        return f"{INDEX_DIR}/{first:020d}-{last:020d}"

    @staticmethod
    def range_of(name: str) -> tuple[int, int] | None:
        """The entry range in a file name, None for other files."""
        left, dash, right = name.partition("-")
        if dash and len(left) == len(right) == 20 and left.isdigit() and right.isdigit():
            return int(left), int(right)
        return None

    @classmethod
    async def write(cls, fs: FileSystem, parts: Sequence[bytes], *, first: int, last: int) -> IndexSegment:
        """Write what `pack_segment` made, durably, and open it."""
        path = cls.path_of(first, last)
        await write_whole(fs, path, parts)
        head, directory = _HEAD.unpack(parts[0]), parts[2]
        return cls(fs, path, first, last, _split(directory, head[5]))

    @classmethod
    async def open(cls, fs: FileSystem, first: int, last: int, lineage: int) -> IndexSegment:
        """Read and check the directory. Raises `IndexDamaged`, `StoreRefused`, `OSError`."""
        path = cls.path_of(first, last)
        file = await fs.open(path)
        try:
            raw = await file.pread(0, _HEAD.size + 4)
            if len(raw) < _HEAD.size + 4 or crc32(raw[:-4]) != _U32.unpack(raw[-4:])[0]:
                raise IndexDamaged(path, "bad header")
            magic, version, tag, low, high, count, crc = _HEAD.unpack(raw[:-4])
            if magic != _MAGIC or (low, high) != (first, last):
                raise IndexDamaged(path, "header of another file")
            if version != _VERSION:
                raise StoreRefused(f"{path} has format {version}, this version reads {_VERSION}: use a newer trimq")
            if tag != lineage:
                raise StoreRefused(f"{path} belongs to another log (lineage {tag:08x}, not {lineage:08x})")
            directory = await file.pread(len(raw), count * _ROW_BYTES)
            if len(directory) != count * _ROW_BYTES or crc32(directory) != crc:
                raise IndexDamaged(path, "bad directory")
        finally:
            await file.aclose()
        return cls(fs, path, first, last, _split(directory, count))

    def find(self, key: int, offset: int) -> int | None:
        """The row that has this offset of this queue."""
        low, high = bisect_left(self.keys, key), bisect_right(self.keys, key)
        row = bisect_right(self.firsts, offset, low, high) - 1
        return row if row >= low and offset < self.firsts[row] + self.counts[row] else None

    @property
    def unit_count(self) -> int:
        return self.starts[-1] + self.counts[-1] if self.starts else 0

    async def read(self, row: int, offset: int, count: int) -> array[int]:
        """Up to `count` units of a row from queue offset `offset` on. Raises `IndexDamaged`, `OSError`.

        The whole row is read and checked.
        """
        total = self.counts[row]
        at = _HEAD.size + 4 + len(self.keys) * _ROW_BYTES + self.starts[row] * UNIT_BYTES
        file = await self._fs.open(self.path)
        try:
            block = await file.pread(at, total * UNIT_BYTES)
        finally:
            await file.aclose()
        if len(block) != total * UNIT_BYTES or crc32(block) != self.crcs[row]:
            raise IndexDamaged(self.path, f"bad run of queue {self.keys[row]:x}")
        skip = offset - self.firsts[row]
        return unpack_units(block[skip * UNIT_BYTES : (skip + count) * UNIT_BYTES])

    async def runs(self) -> list[Run]:
        """Everything, one run per queue, for merging. Raises like `read`. The unpacking runs in a worker."""
        data = await read_whole(self._fs, self.path)
        return await offload(self._fs, lambda: self._unpack_runs(data))

    def _unpack_runs(self, data: bytes) -> list[Run]:
        found: list[Run] = []
        base = _HEAD.size + 4 + len(self.keys) * _ROW_BYTES
        for row, key in enumerate(self.keys):
            at = base + self.starts[row] * UNIT_BYTES
            block = data[at : at + self.counts[row] * UNIT_BYTES]
            if crc32(block) != self.crcs[row]:
                raise IndexDamaged(self.path, f"bad run of queue {key:x}")
            words = unpack_units(block)
            if found and found[-1].key == key:
                found[-1].words.extend(words)
            else:
                found.append(Run(key, self.firsts[row], words))
        return found


def _split(directory: bytes, count: int) -> tuple[array[int], ...]:
    columns: list[array[int]] = []
    at = 0
    for code, width in (("Q", 8), ("Q", 8), ("I", 4), ("I", 4), ("I", 4)):
        columns.append(_column(code, directory[at : at + count * width]))
        at += count * width
    return tuple(columns)
