"""Small lower bounds about the log, written about once a second, and the clean mark.

One preallocated file with two slots written in turn (sequence number, CRC, sync), so that a torn write leaves the
other one. Everything in it is a *lower bound*: it says what was certainly there, nothing about what lies beyond.

- `floor`: the entry at min(durable, commit). Committed, so no truncation ever passes below it.
- `dispatched`: index up to which queues and tables had been fed.
- `clean`: the log's end at a clean stop. It is **withdrawn durably before the first write of the next run**.
- `lineage`, `segment_bytes`: the log was formed; if its files are gone, that is damage and not a new store.
- `suspect`: recovery cut off a tail that may have been acknowledged. Set *before* the cut, kept over restarts, until
  the replica has caught up with a leader that was elected without it.
- `pending`: consumer offsets that wait for a leader (opaque bytes; left out when they do not fit the slot).

Crash points: before the slot is written nothing changed; torn, the older slot counts; a lower bound that is older
than it could be only makes recovery look at more.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any, Final
from zlib import crc32

import trio

from .entry import START, EntryId
from .errors import StoreRefused
from .fs import File, FileSystem

__all__ = ["PENDING_MAX_BYTES", "MarkValues", "Marks", "open_marks"]

MARKS_PATH: Final = "marks"
SLOT_BYTES: Final = 64 * 1024
_MAGIC: Final = 0x54514D4B  # TQMK
_VERSION: Final = 1
_HEAD = struct.Struct(">IIQI")  # magic, version, sequence, length of the body; then a CRC over these and the body
_U32 = struct.Struct(">I")
_BODY = struct.Struct(">IIQQQIQQQIQBxxx")
PENDING_MAX_BYTES: Final = SLOT_BYTES - _HEAD.size - 4 - _BODY.size


@dataclass(frozen=True, slots=True)
class MarkValues:
    lineage: int = 0
    segment_bytes: int = 0
    dispatched: int = 0
    floor: EntryId = START
    clean: EntryId | None = None
    suspect: bool = False
    pending: bytes = b""

    def pack(self) -> bytes:
        clean = self.clean or START
        flags = (1 if self.clean is not None else 0) | (2 if self.suspect else 0)
        f = self.floor
        fixed = _BODY.pack(
            self.lineage, self.segment_bytes, self.dispatched,
            f.index, f.term, f.crc, f.end, clean.index, clean.term, clean.crc, clean.end, flags,
        )  # fmt: skip
        return fixed + (self.pending if len(self.pending) <= PENDING_MAX_BYTES else b"")

    @classmethod
    def unpack(cls, body: bytes) -> MarkValues:
        lineage, size, dispatched, fi, ft, fc, fe, ci, ct, cc, ce, flags = _BODY.unpack_from(body)
        clean = EntryId(ci, ct, cc, ce) if flags & 1 else None
        return cls(lineage, size, dispatched, EntryId(fi, ft, fc, fe), clean, bool(flags & 2), body[_BODY.size :])


class Marks:
    """The open marks file. `values` is what the disk holds."""

    def __init__(self, file: File, values: MarkValues, sequence: int, *, fresh: bool, lost: bool) -> None:
        self._file = file
        self._lock = trio.Lock()
        self._sequence = sequence
        self.values = values
        self.fresh = fresh
        """There was no marks file: the store is new, or somebody removed it."""
        self.lost = lost
        """There was one, and neither slot can be read."""

    async def put(self, **changes: Any) -> None:  # Any: the fields of MarkValues, checked by `replace`
        """Change some values durably. Raises `OSError`; then nothing can be said about the change."""
        async with self._lock:
            values = replace(self.values, **changes)
            if values == self.values and self._sequence:
                return
            sequence = self._sequence + 1
            body = values.pack()
            head = _HEAD.pack(_MAGIC, _VERSION, sequence, len(body))
            crc = _U32.pack(crc32(body, crc32(head)))
            with trio.CancelScope(shield=True):  # waits for the disk only; else memory and disk would part
                await self._file.write(sequence % 2 * SLOT_BYTES, [head, crc, body], sync=True)
            self._sequence = sequence
            self.values = values

    async def aclose(self) -> None:
        await self._file.aclose()


def _parse(slot: bytes) -> tuple[int, MarkValues] | None:
    start = _HEAD.size + 4
    if len(slot) < start + _BODY.size:
        return None
    magic, version, sequence, length = _HEAD.unpack_from(slot)
    body = slot[start : start + length]
    if magic != _MAGIC or len(body) != length or length < _BODY.size:
        return None
    if crc32(body, crc32(slot[: _HEAD.size])) != _U32.unpack_from(slot, _HEAD.size)[0]:
        return None
    if version != _VERSION:
        raise StoreRefused(f"marks file of format {version}, this version reads {_VERSION}: use a newer trimq")
    return sequence, MarkValues.unpack(body)


async def open_marks(fs: FileSystem) -> Marks:
    """Open the marks, or make the file. Whoever opens it closes it."""
    fresh = MARKS_PATH not in await fs.listdir("")
    file = await fs.open(MARKS_PATH, create=True)
    try:
        whole = await file.pread(0, 2 * SLOT_BYTES)
        slots = [s for s in (_parse(whole[:SLOT_BYTES]), _parse(whole[SLOT_BYTES:])) if s is not None]
        sequence, values = max(slots, key=lambda s: s[0], default=(0, MarkValues()))
        # A crash while the file was being made leaves zeros: that is new, not lost.
        made = any(whole)
        if not slots and not made:
            await file.write(0, [bytes(2 * SLOT_BYTES)], sync=True)
            await fs.sync_dir("")
        marks = Marks(file, values, sequence, fresh=fresh or (not slots and not made), lost=not slots and made)
        if not slots and not made:
            await marks.put()
        return marks
    except BaseException:
        with trio.CancelScope(shield=True):
            await file.aclose()
        raise
