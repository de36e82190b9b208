"""What a start-up needs to know of a sealed segment, so that it does not read the whole log again.

`side/<base position>`: the segment's identity, where it ends, the start and header CRC of each entry, and where terms
begin; one checksum over all of it. Disposable: missing, stale or bad, the segment's headers are walked instead and the
file is written anew. It is written off the hot path after the segment was sealed, and removed durably before a
truncation reopens the segment.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import Final
from zlib import crc32

from .entry import EntryId
from .segment import Segment, SegmentHeader
from .term_table import TermTable

__all__ = ["SIDE_DIR", "pack_side", "side_path", "unpack_side"]

SIDE_DIR: Final = "side"
_MAGIC: Final = 0x54515346  # TQSF
_VERSION: Final = 1
_HEAD = struct.Struct(">IIQQQIIQIII")
_TERM = struct.Struct(">QQ")


def side_path(base_position: int) -> str:
    return f"{SIDE_DIR}/{base_position:020d}"


def _big_endian(column: array[int]) -> bytes:
    if sys.byteorder == "little":
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _from_big_endian(data: bytes) -> array[int]:
    column = array("I")
    column.frombytes(data)
    if sys.byteorder == "little":
        column.byteswap()
    return column


def pack_side(segment: Segment, terms: TermTable) -> bytes:
    """The side file of a sealed segment."""
    h = segment.header
    first, last = segment.base_index, segment.last_index
    starts = [(t.first_index, t.term) for t in terms.starts() if first < t.first_index <= last]
    starts.insert(0, (first, terms.term_of(first)))
    head = _HEAD.pack(
        _MAGIC, _VERSION, h.base_position, h.base_index, h.prev_term, h.prev_crc, h.lineage,
        h.segment_bytes, segment.end, len(segment.offsets), len(starts),
    )  # fmt: skip
    body = b"".join(
        [head, _big_endian(segment.offsets), _big_endian(segment.crcs), *(_TERM.pack(*start) for start in starts)]
    )
    return body + struct.pack(">I", crc32(body))


def unpack_side(data: bytes, header: SegmentHeader, end: EntryId) -> tuple[Segment, list[tuple[int, int]]] | None:
    """The segment and its `(first index, term)` list, or None when the file does not fit header and end exactly."""
    if len(data) < _HEAD.size + 4 or struct.unpack(">I", data[-4:])[0] != crc32(memoryview(data)[:-4]):
        return None
    magic, version, position, index, term, crc, lineage, size, seg_end, count, term_count = _HEAD.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        return None
    if SegmentHeader(lineage, size, index, position, term, crc) != header:
        return None
    at = _HEAD.size
    if len(data) != at + 8 * count + _TERM.size * term_count + 4 or not count or not term_count:
        return None
    offsets = _from_big_endian(data[at : at + 4 * count])
    crcs = _from_big_endian(data[at + 4 * count : at + 8 * count])
    starts = [_TERM.unpack_from(data, at + 8 * count + i * _TERM.size) for i in range(term_count)]
    segment = Segment(header, offsets, crcs, seg_end, size, sided=True)
    if EntryId(segment.last_index, starts[-1][1], crcs[-1], segment.end_position) != end or not segment.full:
        return None
    return segment, starts
