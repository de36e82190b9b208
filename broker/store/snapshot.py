"""The state of a replica at one entry, in one file: what dispatch need not do again after a restart.

`meta/<index>`: header (lineage, and index, term, CRC and end of the entry it was taken at), then the machine's own
snapshot and the bounds of every queue, one CRC over all of it. The indexes are sealed and synced first, so one file is
the mark for state *and* index. Temporary name, sync, rename, sync of the directory; the newest two are kept, so that
damage to one costs a longer redo and nothing else.
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from .entry import EntryId
from .errors import StoreRefused
from .fs import FileSystem, read_whole, write_whole

__all__ = ["META_DIR", "Snapshot", "list_snapshots", "read_snapshot", "remove_old", "write_snapshot"]

META_DIR: Final = "meta"
KEEP: Final = 2
_MAGIC: Final = 0x5451534E  # TQSN
_VERSION: Final = 1
_HEAD = struct.Struct(">IIIQQIQQQ")
"""Magic, version, lineage, index, term, entry CRC, entry end, bytes of the machine's part, number of queues."""
_U32 = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a file holds."""

    lineage: int
    at: EntryId
    machine: bytes
    keys: array[int]
    lows: array[int]
    ends: array[int]

    def pack(self) -> list[bytes]:
        """The parts of the file."""
        parts = [
            _HEAD.pack(
                _MAGIC, _VERSION, self.lineage, self.at.index, self.at.term, self.at.crc, self.at.end,
                len(self.machine), len(self.keys),
            ),
            self.machine,
            *(_big_endian(column) for column in (self.keys, self.lows, self.ends)),
        ]  # fmt: skip
        crc = 0
        for part in parts:
            crc = crc32(part, crc)
        return [*parts, _U32.pack(crc)]

    @classmethod
    def unpack(cls, data: bytes) -> Snapshot | None:
        """None when the bytes are damaged. Raises `StoreRefused` for a newer format."""
        if len(data) < _HEAD.size + 4 or crc32(data[:-4]) != _U32.unpack(data[-4:])[0]:
            return None
        magic, version, lineage, index, term, crc, end, size, count = _HEAD.unpack_from(data)
        if magic != _MAGIC or len(data) != _HEAD.size + size + count * 24 + 4:
            return None
        if version != _VERSION:
            raise StoreRefused(f"snapshot of format {version}, this version reads {_VERSION}: use a newer trimq")
        at = _HEAD.size + size
        columns = [_column(data[at + i * count * 8 : at + (i + 1) * count * 8]) for i in range(3)]
        return cls(lineage, EntryId(index, term, crc, end), data[_HEAD.size : at], *columns)


def snapshot_path(index: int) -> str:
    return f"{META_DIR}/{index:020d}"


async def list_snapshots(fs: FileSystem) -> list[int]:
    """Indexes of the snapshot files, newest first. Makes the directory."""
    await fs.mkdir(META_DIR)
    await fs.sync_dir("")
    names = [name for name in await fs.listdir(META_DIR) if len(name) == 20 and name.isdigit()]
    return sorted(map(int, names), reverse=True)


async def read_snapshot(fs: FileSystem, index: int) -> Snapshot | None:
    """The snapshot at `index`, None when it is damaged. Raises `StoreRefused`, `OSError`."""
    return Snapshot.unpack(await read_whole(fs, snapshot_path(index)))


async def write_snapshot(fs: FileSystem, snapshot: Snapshot) -> None:
    """Write it durably."""
    await write_whole(fs, snapshot_path(snapshot.at.index), snapshot.pack())


async def remove_old(fs: FileSystem) -> list[int]:
    """Keep the newest two; returns their indexes, newest first."""
    found = await list_snapshots(fs)
    for index in found[KEEP:]:
        await fs.unlink(snapshot_path(index))
    return found[:KEEP]


def _big_endian(column: array[int]) -> bytes:
    if sys.byteorder == "little":
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _column(data: bytes) -> array[int]:
    column = array("Q")
    column.frombytes(data)
    if sys.byteorder == "little":
        column.byteswap()
    return column
