"""Reading a segment file from front to back: walk what chains, then look at what lies behind.

Nothing here decides or writes; `recovery.py` does. Read errors of the disk pass through as `OSError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from zlib import crc32

from .entry import GAP, HEADER_BYTES, MARKER, EntryHeader, EntryId, fits, parse_header
from .errors import EntryDamaged
from .fs import File
from .segment import HEADER_BLOCK_BYTES, Segment, SegmentHeader
from .term_table import TermTable

__all__ = ["Bad", "Beyond", "Walk", "look_beyond", "walk"]

CHUNK_BYTES: Final = 1024 * 1024
SECTOR_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Bad:
    """The first place that does not continue the chain."""

    offset: int
    """Relative to the segment's base position."""
    reason: str
    partial: bool
    """The bytes look like a write that arrived in part: an all-zero sector in it, or the file ends."""
    size: int = HEADER_BYTES
    """Of the record, as far as its header can be believed."""


@dataclass(frozen=True, slots=True)
class Walk:
    segment: Segment
    last: EntryId
    hint: int
    """Largest commit hint seen."""
    bad: Bad | None
    """None only when the segment is full."""


@dataclass(frozen=True, slots=True)
class Beyond:
    """What lies behind the good prefix of a file."""

    all_zero: bool
    file_end: int
    """Relative size of the file."""
    first: EntryHeader | None
    """First and last valid headers that stand in their proper place, of this lineage."""
    last: EntryHeader | None
    hint: int
    """Largest commit hint among such headers."""
    data_end: int = 0
    """Behind the last byte that is not zero, relative like `file_end`; 0 when there is none."""


class _Window:
    """A buffered view of the entry area of a segment file."""

    def __init__(self, file: File) -> None:
        self._file = file
        self.data = b""
        self.at = 0

    async def need(self, offset: int, size: int) -> int:
        """Make `[offset, offset + size)` available as far as the file goes; return where `offset` is in `data`."""
        start = offset - self.at
        if not 0 <= start <= len(self.data) or start + size > len(self.data):
            self.data = await self._file.pread(HEADER_BLOCK_BYTES + offset, max(size, CHUNK_BYTES))
            self.at = offset
            start = 0
        return start


async def walk(file: File, header: SegmentHeader, terms: TermTable, *, bodies_from: int) -> Walk:
    """Follow the chain through a segment; check the bodies of entries that end above position `bodies_from`.

    Every good entry is noted in `terms`.
    """
    segment = Segment(header)
    window = _Window(file)
    last, hint, at = header.prev, 0, 0
    size, base = header.segment_bytes, header.base_position
    offsets, crcs = segment.offsets, segment.crcs
    while at < size:
        start = await window.need(at, HEADER_BYTES)
        try:
            h = parse_header(window.data, start, position=base + at)
        except EntryDamaged as error:
            return Walk(segment, last, hint, Bad(at, error.reason, _partial(window, at, HEADER_BYTES)))
        wrong = _chain_fault(h, last, header)
        if wrong:
            return Walk(segment, last, hint, Bad(at, wrong, False))
        if h.end > bodies_from and not h.flags & GAP:
            start = await window.need(at, h.size)
            body = memoryview(window.data)[start + HEADER_BYTES : start + h.size]
            if len(body) < h.body_length or crc32(body) != h.body_crc:
                return Walk(segment, last, hint, Bad(at, "body checksum", _partial(window, at, h.size), h.size))
        offsets.append(at)
        crcs.append(h.crc)
        terms.note(h.index, h.term, h.position)
        hint = max(hint, h.commit_hint)
        last = h.id
        at += h.size
        segment.end = at
    return Walk(segment, last, hint, None)


def _chain_fault(h: EntryHeader, last: EntryId, header: SegmentHeader) -> str:
    """Why an entry with a good checksum cannot follow `last`; empty when it can."""
    if h.lineage != header.lineage:
        return "entry of another lineage"
    if h.position != last.end:
        return "entry of another position"
    if h.index != last.index + 1 or h.prev_crc != last.crc or h.term < last.term:
        return "entry does not continue the chain"
    if not fits(h.position, h.size, header.segment_bytes):
        return "entry does not fit the segment"
    return ""


def _partial(window: _Window, at: int, size: int) -> bool:
    """Whether a record at `at` looks like a write that arrived in part. The window holds it as far as the file goes."""
    start = at - window.at
    data = window.data[start : start + size]
    if len(data) < size:
        return True
    place = HEADER_BLOCK_BYTES + at
    first = 0
    while first < size:
        end = min(first + SECTOR_BYTES - (place + first) % SECTOR_BYTES, size)
        if not any(data[first:end]):
            return True
        first = end
    return False


def is_prefix(bad: Bad, beyond: Beyond) -> bool:
    """Whether a record looks like a write that stopped half-way: what has arrived is its beginning, by whole sectors.

    A write that a dying process leaves behind can look no other way as long as the machine stays up.
    """
    place = HEADER_BLOCK_BYTES + beyond.data_end
    stopped = place + -place % SECTOR_BYTES - HEADER_BLOCK_BYTES
    return min(stopped, beyond.file_end) < bad.offset + bad.size


async def look_beyond(file: File, header: SegmentHeader, offset: int) -> Beyond:
    """Scan from `offset` to the end of the file, for anything but zeros and for valid headers behind `offset`."""
    zero, hint, at, data_end = True, 0, offset, 0
    first: EntryHeader | None = None
    last: EntryHeader | None = None
    carry = b""
    while True:
        chunk = await file.pread(HEADER_BLOCK_BYTES + at, CHUNK_BYTES)
        if chunk != bytes(len(chunk)):
            zero, data_end = False, at + len(chunk.rstrip(b"\0"))
        if not zero:
            data = carry + chunk
            data_at = at - len(carry)
            found = data.find(MARKER)
            while found >= 0:
                place = data_at + found
                h = _header_at(data, found, header, place) if place > offset else None
                if h is not None:
                    first = first or h
                    last = h
                    hint = max(hint, h.commit_hint)
                found = data.find(MARKER, found + 1)
            carry = data[-(HEADER_BYTES - 1) :]
        at += len(chunk)
        if len(chunk) < CHUNK_BYTES:
            return Beyond(zero, at, first, last, hint, data_end)


def _header_at(data: bytes, found: int, header: SegmentHeader, place: int) -> EntryHeader | None:
    try:
        h = parse_header(data, found)
    except EntryDamaged:
        return None
    return h if h.lineage == header.lineage and h.position == header.base_position + place else None
