"""One file of the log: a 4 KiB header block and the entries behind it.

The block lies outside the position space: `position = base position + file offset - 4096`. It names the lineage, the
segment's base and the entry before it, so each segment can be verified alone. Two copies stand in the block, half a
block apart: a bad sector is not the end of the segment.

A file grows in zero-filled, synced strips ahead of the writer (`strips.py`). Recovery reads zero sectors as the mark
of a write that never arrived, so a file never holds anything but zeros behind its end.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

from .entry import EntryId
from .errors import StoreRefused

__all__ = [
    "HEADER_BLOCK_BYTES",
    "LOG_DIR",
    "SEGMENT_BYTES_MAX",
    "SEGMENT_BYTES_MIN",
    "Segment",
    "SegmentHeader",
    "segment_base",
    "segment_path",
]

LOG_DIR: Final = "commitlog"
HEADER_BLOCK_BYTES: Final = 4096
SEGMENT_BYTES_MIN: Final = 4096
SEGMENT_BYTES_MAX: Final = 1 << 31

_MAGIC: Final = 0x54515347  # TQSG
_VERSION: Final = 1
_HEADER = struct.Struct(">IIQQQQII")
_U32 = struct.Struct(">I")
_COPY_AT: Final = 2048


def segment_path(base_position: int, directory: str = LOG_DIR) -> str:
    return f"{directory}/{base_position:020d}"


def segment_base(name: str) -> int | None:
    """Base position from a file name; None for files that are not segments."""
    return int(name) if len(name) == 20 and name.isascii() and name.isdigit() else None


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    lineage: int
    segment_bytes: int
    base_index: int
    base_position: int
    prev_term: int
    prev_crc: int

    @property
    def prev(self) -> EntryId:
        """The entry before the segment's first."""
        return EntryId(self.base_index - 1, self.prev_term, self.prev_crc, self.base_position)

    def block(self) -> bytes:
        """The 4 KiB as they stand in the file."""
        head = _HEADER.pack(
            _MAGIC, _VERSION, self.segment_bytes, self.base_index, self.base_position,
            self.prev_term, self.prev_crc, self.lineage,
        )  # fmt: skip
        copy = (head + _U32.pack(crc32(head))).ljust(_COPY_AT, b"\0")
        return copy + copy.ljust(HEADER_BLOCK_BYTES - _COPY_AT, b"\0")

    @classmethod
    def parse(cls, block: bytes) -> tuple[SegmentHeader | None, bool]:
        """The header, None when neither copy is good, and whether the whole block is as `block()` writes it.

        Raises `StoreRefused` for a newer format.
        """
        found: SegmentHeader | None = None
        for at in (0, _COPY_AT):
            if len(block) < at + _HEADER.size + 4:
                continue
            head = block[at : at + _HEADER.size]
            (crc,) = _U32.unpack_from(block, at + _HEADER.size)
            if crc32(head) != crc:
                continue
            magic, version, size, index, position, term, prev_crc, lineage = _HEADER.unpack(head)
            if magic != _MAGIC:
                continue
            if version != _VERSION:
                raise StoreRefused(f"log segment of format {version}, this version reads {_VERSION}: use a newer trimq")
            found = cls(lineage, size, index, position, term, prev_crc)
            break
        return found, found is not None and block == found.block()

    @classmethod
    def after(cls, prev: EntryId, *, lineage: int, segment_bytes: int) -> SegmentHeader:
        """The header of the segment that begins where `prev` ends."""
        assert prev.end % segment_bytes == 0, (prev, segment_bytes)
        return cls(lineage, segment_bytes, prev.index + 1, prev.end, prev.term, prev.crc)


@dataclass(slots=True, eq=False)
class Segment:
    """What is kept in memory of one segment: two small numbers per entry."""

    header: SegmentHeader
    offsets: array[int] = field(default_factory=lambda: array("I"))
    """Start of each entry, relative to the segment's base position."""
    crcs: array[int] = field(default_factory=lambda: array("I"))
    """Header CRC of each entry."""
    end: int = 0
    """Relative end of the last entry."""
    grown: int = 0
    """Relative end of what is allocated and, behind `end`, zero-filled and synced."""
    sided: bool = False
    """Its side file is on the disk."""

    @property
    def path(self) -> str:
        return segment_path(self.header.base_position)

    @property
    def base_index(self) -> int:
        return self.header.base_index

    @property
    def base_position(self) -> int:
        return self.header.base_position

    @property
    def last_index(self) -> int:
        """Index of the last entry; `base_index - 1` when there is none."""
        return self.header.base_index + len(self.offsets) - 1

    @property
    def end_position(self) -> int:
        return self.header.base_position + self.end

    @property
    def full(self) -> bool:
        return self.end == self.header.segment_bytes

    def start_of(self, index: int) -> int:
        """Relative start of an entry in this segment."""
        return self.offsets[index - self.header.base_index]

    def end_of(self, index: int) -> int:
        """Relative end of an entry in this segment."""
        at = index - self.header.base_index + 1
        return self.offsets[at] if at < len(self.offsets) else self.end

    def crc_of(self, index: int) -> int:
        return self.crcs[index - self.header.base_index]

    def index_at(self, position: int) -> int:
        """Index of the entry that contains `position`, which lies in this segment below its end."""
        return self.header.base_index + bisect_right(self.offsets, position - self.header.base_position) - 1

    def cut(self, last_index: int) -> None:
        """Forget the entries above `last_index`."""
        keep = last_index - self.header.base_index + 1
        if keep < len(self.offsets):
            self.end = self.offsets[keep]
            del self.offsets[keep:], self.crcs[keep:]
