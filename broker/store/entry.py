"""The log entry: a 64-byte header and a body, one format under every replication strategy.

An entry is a *batch* formed by group commit. Its body is a run of message records in RocketMQ's own byte layout and,
when `CONTROL` is set, a control payload (CBOR) behind them; the payload is applied before the records. Everything is
fixed by the leader, so the bytes it writes are the bytes it sends and the bytes every follower writes.

Header, big-endian (docs/protocol.md has the same table):

    ==== ==== =============== ==========================================================================
    off  size field           why
    ==== ==== =============== ==========================================================================
    0    4    header size     always 64; with the magic a pattern that a scan can look for
    4    4    magic, version  three bytes `TQE` and the version
    8    1    kind            `EntryKind`
    9    1    flags           `CONTROL`, `GAP`
    10   2    record count
    12   4    body length     a `GAP` body exists as zeros in the segment only: not sent, not checked
    16   8    index
    24   8    term            master-slave: epoch
    32   8    position        must match the place: catches misplaced and recycled bytes
    40   8    commit hint     the leader's commit index when the entry was formed: never cut at or below it
    48   4    lineage tag     catches bytes of another group or of a previous life
    52   4    previous CRC    header CRC of the entry before: equal CRC at i means equal prefix up to i
    56   4    body CRC32
    60   4    header CRC32    over bytes 0..59: a header's validity is decidable without its body
    ==== ==== =============== ==========================================================================

Nothing here does I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final
from zlib import crc32

from .errors import EntryDamaged

__all__ = [
    "BODY_MAX_BYTES",
    "CONTROL",
    "ENTRY_MAX_BYTES",
    "GAP",
    "HEADER_BYTES",
    "MAGIC",
    "MARKER",
    "RECORDS_MAX_COUNT",
    "START",
    "Entry",
    "EntryHeader",
    "EntryId",
    "EntryKind",
    "fits",
    "lineage_tag",
    "parse_entries",
    "parse_entry",
    "parse_header",
    "seal_entry",
    "seal_filler",
]

HEADER_BYTES: Final = 64
MAGIC: Final = 0x54514501
"""`TQE` and version 1."""

MARKER: Final = struct.pack(">II", HEADER_BYTES, MAGIC)
"""The eight bytes that every entry starts with."""

ENTRY_MAX_BYTES: Final = 8 * 1024 * 1024
"""Header and body. Also the most that one sync may cover (the distance in the proof-of-sync rule)."""

BODY_MAX_BYTES: Final = ENTRY_MAX_BYTES - HEADER_BYTES
RECORDS_MAX_COUNT: Final = 65_535

CONTROL: Final = 1
"""Flag: the body ends with a control payload."""

GAP: Final = 2
"""Flag: the body is a gap of zeros, present in the segment file only."""

_HEADER = struct.Struct(">IIBBHIQQQQIIII")
_WITHOUT_CRC = struct.Struct(">IIBBHIQQQQIII")
_U32 = struct.Struct(">I")


class EntryKind(IntEnum):
    MESSAGES = 1
    METADATA = 2
    MEMBERSHIP = 3
    NOOP = 4
    FILLER = 5


@dataclass(frozen=True, slots=True)
class EntryId:
    """Names one entry and, through the chained CRC, the whole prefix that ends with it."""

    index: int
    term: int
    crc: int
    """Header CRC32."""
    end: int
    """First position after the entry."""


START: Final = EntryId(0, 0, 0, 0)
"""What stands before the first entry."""


@dataclass(frozen=True, slots=True)
class EntryHeader:
    """A checked header whose body has not been looked at."""

    index: int
    term: int
    kind: int
    flags: int
    record_count: int
    position: int
    commit_hint: int
    lineage: int
    prev_crc: int
    body_crc: int
    crc: int
    body_length: int

    @property
    def size(self) -> int:
        """Bytes in the position space, a filler's gap included."""
        return HEADER_BYTES + self.body_length

    @property
    def end(self) -> int:
        return self.position + HEADER_BYTES + self.body_length

    @property
    def data_size(self) -> int:
        """Bytes on the wire: a filler travels as its header alone."""
        return HEADER_BYTES if self.flags & GAP else HEADER_BYTES + self.body_length

    @property
    def id(self) -> EntryId:
        return EntryId(self.index, self.term, self.crc, self.end)


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete, checked entry and its bytes."""

    index: int
    term: int
    kind: int
    flags: int
    record_count: int
    position: int
    commit_hint: int
    lineage: int
    prev_crc: int
    body_crc: int
    crc: int
    body_length: int
    data: bytes
    """Header and body; of a filler the header alone."""
    _records_length: int = field(default=-1, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Bytes in the position space, a filler's gap included."""
        return HEADER_BYTES + self.body_length

    @property
    def end(self) -> int:
        """First position after the entry."""
        return self.position + HEADER_BYTES + self.body_length

    @property
    def id(self) -> EntryId:
        return EntryId(self.index, self.term, self.crc, self.position + HEADER_BYTES + self.body_length)

    @property
    def records_length(self) -> int:
        """Bytes of the records, which stand first in the body. Raises `EntryDamaged` when they do not add up."""
        known = self._records_length
        if known < 0:
            known = _walk_records(self)
            object.__setattr__(self, "_records_length", known)
        return known

    @property
    def records(self) -> memoryview:
        """The message records, back to back; empty when there are none."""
        return memoryview(self.data)[HEADER_BYTES : HEADER_BYTES + self.records_length]

    @property
    def control(self) -> bytes:
        """The control payload (CBOR), `b""` when there is none."""
        if not self.flags & CONTROL:
            return b""
        return self.data[HEADER_BYTES + self.records_length :]


def _walk_records(entry: Entry) -> int:
    """Length of the run of `record_count` records: each begins with its own total size (u32)."""
    if entry.flags & GAP:
        return 0
    body = entry.body_length
    if not entry.flags & CONTROL:
        return body
    at, end, data = HEADER_BYTES, HEADER_BYTES + body, entry.data
    unpack = _U32.unpack_from
    for _ in range(entry.record_count):
        if at + 4 > end:
            raise EntryDamaged("records run past the body", position=entry.position, index=entry.index)
        at += unpack(data, at)[0]
    if at > end:
        raise EntryDamaged("records run past the body", position=entry.position, index=entry.index)
    return at - HEADER_BYTES


def lineage_tag(lineage: int) -> int:
    """The 32-bit tag that entries carry for a replica group's 64-bit lineage."""
    return crc32(lineage.to_bytes(8, "big"))


def seal_entry(
    *,
    kind: EntryKind,
    prev: EntryId,
    term: int,
    lineage: int,
    commit_hint: int,
    records: Sequence[bytes] = (),
    control: bytes = b"",
    record_count: int = 0,
) -> Entry:
    """Close a batch that was opened on `prev`: index `prev.index + 1`, position `prev.end`.

    `lineage` is the 32-bit tag. `records` may hold several records per element, so their number is given apart.
    The caller keeps the limits (`BODY_MAX_BYTES`, `RECORDS_MAX_COUNT`) and the segment's end (`fits`).
    """
    body = b"".join((*records, control)) if records else control
    assert len(body) <= BODY_MAX_BYTES, len(body)
    assert record_count <= RECORDS_MAX_COUNT, record_count
    flags = CONTROL if control else 0
    index, position, length, body_crc = prev.index + 1, prev.end, len(body), crc32(body)
    head = _WITHOUT_CRC.pack(
        HEADER_BYTES, MAGIC, kind, flags, record_count, length,
        index, term, position, commit_hint, lineage, prev.crc, body_crc,
    )  # fmt: skip
    crc = crc32(head)
    return Entry(
        index, term, int(kind), flags, record_count, position, commit_hint, lineage, prev.crc, body_crc, crc, length,
        b"".join((head, _U32.pack(crc), body)), length - len(control),
    )  # fmt: skip


def seal_filler(*, prev: EntryId, term: int, lineage: int, commit_hint: int, segment_bytes: int) -> Entry:
    """The entry that takes the rest of the segment in which `prev` ends."""
    rest = -prev.end % segment_bytes
    assert rest >= HEADER_BYTES, (prev, segment_bytes)
    length = rest - HEADER_BYTES
    head = _WITHOUT_CRC.pack(
        HEADER_BYTES, MAGIC, EntryKind.FILLER, GAP, 0, length,
        prev.index + 1, term, prev.end, commit_hint, lineage, prev.crc, 0,
    )  # fmt: skip
    crc = crc32(head)
    return Entry(
        prev.index + 1, term, int(EntryKind.FILLER), GAP, 0, prev.end, commit_hint, lineage, prev.crc, 0, crc, length,
        head + _U32.pack(crc), 0,
    )  # fmt: skip


def fits(prev_end: int, size: int, segment_bytes: int) -> bool:
    """Whether an entry of `size` bytes may follow at `prev_end`, or a filler must come first.

    It ends exactly at the segment's end, or leaves room for at least a filler's header.
    """
    rest = segment_bytes - prev_end % segment_bytes
    return size == rest or size + HEADER_BYTES <= rest


def parse_header(buf: bytes | bytearray | memoryview, at: int = 0, *, position: int = 0) -> EntryHeader:
    """Check one header at `buf[at:]`; `position` only names the place in an error. Raises `EntryDamaged`."""
    if len(buf) - at < HEADER_BYTES:
        raise EntryDamaged("header cut short", position=position)
    (
        size, magic, kind, flags, count, length, index, term, own_position, hint, lineage, prev_crc, body_crc, crc,
    ) = _HEADER.unpack_from(buf, at)  # fmt: skip
    if size != HEADER_BYTES or magic != MAGIC:
        raise EntryDamaged("no entry header", position=position)
    if crc32(memoryview(buf)[at : at + HEADER_BYTES - 4]) != crc:
        raise EntryDamaged("header checksum", position=position)
    if not EntryKind.MESSAGES <= kind <= EntryKind.FILLER or flags & ~(CONTROL | GAP):
        raise EntryDamaged("written by a newer version: unknown kind or flags", position=position, index=index)
    if length > BODY_MAX_BYTES and not flags & GAP:
        raise EntryDamaged("body too long", position=position, index=index)
    return EntryHeader(
        index, term, kind, flags, count, own_position, hint, lineage, prev_crc, body_crc, crc, length
    )  # fmt: skip


def parse_entry(buf: bytes | bytearray | memoryview, at: int = 0, *, position: int = 0) -> Entry:
    """Check one entry at `buf[at:]`, header and body. Raises `EntryDamaged`."""
    h = parse_header(buf, at, position=position)
    end = at + h.data_size
    if end > len(buf):
        raise EntryDamaged("body cut short", position=h.position, index=h.index)
    data = bytes(buf) if at == 0 and end == len(buf) else bytes(memoryview(buf)[at:end])
    if h.flags & GAP:
        if h.body_crc:
            raise EntryDamaged("filler with a body checksum", position=h.position, index=h.index)
    elif crc32(memoryview(data)[HEADER_BYTES:]) != h.body_crc:
        raise EntryDamaged("body checksum", position=h.position, index=h.index)
    return Entry(
        h.index, h.term, h.kind, h.flags, h.record_count, h.position, h.commit_hint, h.lineage, h.prev_crc,
        h.body_crc, h.crc, h.body_length, data,
    )  # fmt: skip


def parse_entries(buf: bytes | bytearray | memoryview) -> list[Entry]:
    """Cut a run of entries as they travel (fillers as bare headers) and check each. Raises `EntryDamaged`.

    That they chain onto each other is the receiver's check: it knows what they are to follow.
    """
    entries = []
    at, end = 0, len(buf)
    while at < end:
        entry = parse_entry(buf, at)
        entries.append(entry)
        at += len(entry.data)
    return entries
