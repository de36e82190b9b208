"""Reading the log: from memory where it is recent, else from the disk, always checked.

A checksum that does not hold raises `EntryDamaged` and sets `fault`; nothing unchecked is ever handed out.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from .cache import ColdCache, RecentEntries
from .entry import ENTRY_MAX_BYTES, HEADER_BYTES, Entry, parse_entry
from .errors import EntryDamaged
from .fs import FileSystem
from .log_files import LogFiles
from .log_index import LogIndex
from .recovery import Damage
from .segment import HEADER_BLOCK_BYTES, Segment
from .side_file import pack_side

__all__ = ["LogFault", "LogReader"]

log = logging.getLogger(__name__)

READ_AHEAD_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class LogFault:
    """Why the log takes no writes. Either kind forbids voting, campaigning and acknowledging."""

    kind: str
    """`impaired` (a disk error; reopen the store) or `damaged` (see `damage`; repair or install)."""
    detail: str
    damage: Damage | None = None


class LogReader(LogIndex):
    """Any number of tasks read."""

    def __init__(self, fs: FileSystem, *, recent_bytes: int, cold_bytes: int, strip_bytes: int) -> None:
        super().__init__()
        self._fs = fs
        self._recent = RecentEntries(recent_bytes)
        self._cold = ColdCache(cold_bytes)
        self._files = LogFiles(fs, self._segments, self._pack_side, lambda: self.fault is None, strip_bytes)
        self._loading: dict[int, trio.Event] = {}
        """Entries that somebody reads from the disk at the moment."""
        self.fault: LogFault | None = None
        self.on_fault: Callable[[LogFault], None] | None = None
        """Called when `fault` is set. Must not raise."""

    def cached(self, index: int, max_bytes: int) -> list[Entry] | None:
        """Recent entries from `index` on, at least one; None when the first is not in memory."""
        return self._recent.run(index, max_bytes)

    async def read(self, index: int, max_bytes: int) -> list[Entry]:
        """Entries from `index` on: at least one, else at most `max_bytes`, perhaps fewer (a segment's end).

        Checked against their checksums and the chain. Raises `LookupError` outside the log, `EntryDamaged`, `OSError`.
        """
        found = self._recent.run(index, max_bytes)
        if found is not None:
            return found
        return await self._read_disk(index, max_bytes)

    async def check(self, index: int, max_bytes: int) -> list[Entry]:
        """As `read`, but always from the disk."""
        return await self._read_disk(index, max_bytes)

    async def load(self, index: int) -> Entry:
        """One entry, from memory or with some read-ahead from the disk. Raises like `read`."""
        while True:
            entry = self._recent.get(index) or self._cold.get(index)
            if entry is not None:
                return entry
            under_way = self._loading.get(index)
            if under_way is None:
                break
            await under_way.wait()  # consumers of many queues want the same entry; when that failed, we try
        done = self._loading[index] = trio.Event()
        try:
            entries = await self._read_disk(index, READ_AHEAD_BYTES)
            for entry in reversed(entries):
                self._cold.add(entry)
        finally:
            del self._loading[index]
            done.set()
        return entries[0]

    def at_hand(self, index: int) -> Entry | None:
        """One entry if it is in memory."""
        return self._recent.get(index) or self._cold.get(index)

    def cached_bytes(self, position: int, size: int) -> memoryview | None:
        """Bytes inside one entry that is in memory, else None. Raises `LookupError` outside the log."""
        entry = self.at_hand(self.index_at(position))
        if entry is None:
            return None
        start = position - entry.position
        view = memoryview(entry.data)[start : start + size]
        return view if len(view) == size else None

    async def read_bytes(self, position: int, size: int) -> bytes:
        """Bytes inside one entry, checked with it. Raises `LookupError`, `EntryDamaged`, `OSError`."""
        entry = await self.load(self.index_at(position))
        start = position - entry.position
        data = entry.data[start : start + size]
        if len(data) != size:
            raise LookupError(f"[{position}, {position + size}) is not inside entry {entry.index}")
        return data

    async def read_record(self, position: int) -> bytes:
        """The message record that starts at a position. Raises `LookupError` when none starts there."""
        entry = await self.load(self.index_at(position))
        start = position - entry.position
        at, end = HEADER_BYTES, HEADER_BYTES + entry.records_length
        data = entry.data
        if start >= end:
            raise LookupError(f"no record at position {position}")
        while at < start:
            at += int.from_bytes(data[at : at + 4], "big")
        if at != start:
            raise LookupError(f"no record at position {position}")
        return data[start : start + int.from_bytes(data[start : start + 4], "big")]

    async def _read_disk(self, index: int, max_bytes: int) -> list[Entry]:
        while True:
            if not self.first_index <= index <= self.last.index:
                raise LookupError(f"entry {index} is not in the log [{self.first_index}, {self.last.index}]")
            generation, first = self.generation, self.first_index
            segment = self._segment_of(index)
            start = segment.start_of(index)
            limit = start + min(max_bytes, ENTRY_MAX_BYTES)
            if segment.end <= limit:
                end_index = segment.last_index + 1
            else:  # the entry that begins last within the limit is the first one that does not end within it
                end_index = max(segment.base_index + bisect_right(segment.offsets, limit) - 1, index + 1)
            size = segment.end_of(end_index - 1) - start
            if size > ENTRY_MAX_BYTES:
                size = HEADER_BYTES  # a filler: its gap is not worth reading
            try:
                file = await self._files.reader(segment.base_position)
                data = await file.pread(HEADER_BLOCK_BYTES + start, size)
            except OSError:
                if generation != self.generation or first != self.first_index:
                    continue  # the segment went while we were reaching for it
                raise
            if generation != self.generation:
                continue
            return self._cut_entries(segment, index, end_index, data)

    def _cut_entries(self, segment: Segment, index: int, end_index: int, data: bytes) -> list[Entry]:
        entries: list[Entry] = []
        start = segment.start_of(index)
        for i in range(index, end_index):
            at = segment.start_of(i)
            position = segment.base_position + at
            try:
                entry = parse_entry(data, at - start, position=position)
                if (entry.index, entry.position, entry.crc) != (i, position, segment.crc_of(i)):
                    raise EntryDamaged("not the entry that was written here", position=position, index=i)
            except EntryDamaged as error:
                if entries:
                    break  # what came before it is good; the next read will find it
                self._damage_at(i, segment, error)
                raise EntryDamaged(error.reason, position=position, index=i) from None
            entries.append(entry)
        return entries

    def _damage_at(self, index: int, segment: Segment, error: EntryDamaged) -> None:
        prev = self.entry_id(index - 1)
        this = self.entry_id(index)
        assert prev is not None
        assert this is not None
        detail = (
            f"entry {index} in {segment.path} at offset {HEADER_BLOCK_BYTES + segment.start_of(index)}: {error.reason}"
        )
        self._set_fault(
            LogFault("damaged", detail, Damage(index, prev.end, prev, index + 1, this.end, this.crc, detail=detail))
        )

    async def quiet(self) -> None:
        """Wait until growing, preparing and side files are done for now."""
        await self._files.quiet()

    def _set_fault(self, fault: LogFault) -> None:
        if self.fault is not None and self.fault.kind == "impaired":
            return
        self.fault = fault
        log.error("log unusable", extra={"kind": fault.kind, "detail": fault.detail})
        if self.on_fault is not None:
            self.on_fault(fault)

    def _pack_side(self, segment: Segment) -> bytes:
        return pack_side(segment, self.terms)
