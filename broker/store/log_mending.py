"""Carrying out what recovery found, and putting verified entries in the place of damage."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import trio

from .entry import GAP, HEADER_BYTES, Entry, fits
from .errors import EntryDamaged, LogMismatch, LogUnusable
from .fs import FileSystem
from .log_files import grow_file
from .log_reader import LogFault, LogReader
from .marks import Marks
from .recovery import Damage, Recovered, Verdict, recover
from .segment import HEADER_BLOCK_BYTES, LOG_DIR, Segment, SegmentHeader, segment_path
from .side_file import SIDE_DIR, side_path

__all__ = ["MendingLog"]

log = logging.getLogger(__name__)

REWRITE_BYTES: Final = 1024 * 1024
FIRST_STRIP_BYTES: Final = 1024 * 1024
"""Grown before a new or cut segment is used again; the rest follows off the hot path."""


class MendingLog(LogReader):
    """A log with its marks."""

    def __init__(self, fs: FileSystem, marks: Marks, *, recent_bytes: int, cold_bytes: int, strip_bytes: int) -> None:
        super().__init__(fs, recent_bytes=recent_bytes, cold_bytes=cold_bytes, strip_bytes=strip_bytes)
        self.marks = marks
        self.verdict = Verdict.UNFORMED
        """What recovery found when the log was opened."""
        self.detail = ""
        self.hint = 0
        """Largest commit hint or mark found by recovery: entries up to here are committed."""
        self.machine_stayed_up = False
        """Since the log was written to before it was opened; False: not known."""
        self.tail_cut = False
        """When the log was read last, bytes at its end were cut off: torn, or suspect."""
        self._busy = False
        self._withdrawn = False
        self._lineage_marked = False
        self._closed = False

    async def repair(self, entries: Sequence[Entry]) -> None:
        """Put verified entries in the place of damage. `fault.damage` says which are missing.

        They must chain onto the good entry before the damage and, where one is known, onto the good one behind it;
        without that nothing is written and `LogMismatch` is raised. Afterwards `fault` is None, or names what is
        still missing. Raises `LogUnusable` when there is nothing to repair or only an install would help.
        """
        damage = self.fault.damage if self.fault is not None else None
        if damage is None or damage.needs_install:
            raise LogUnusable("install from a peer" if damage is not None else "the log has no damage to repair")
        self._check_repair(damage, entries)
        self._begin_write()
        try:
            with trio.CancelScope(shield=True):
                async with self._files.layout:
                    await self._write_over(entries)
                    await self._reload()
                    for entry in entries:
                        if self.first_index <= entry.index <= self.last.index:
                            await self._read_disk(entry.index, 0)
        except EntryDamaged:
            return  # the disk did not keep it: `fault` says so
        except OSError as error:
            self._impair(error)
            raise
        finally:
            self._busy = False
        log.warning("log repaired", extra={"first": entries[0].index, "last": entries[-1].index})
        self._files.wake()

    def _check_repair(self, damage: Damage, entries: Sequence[Entry]) -> None:
        if not entries:
            raise LogMismatch("no entries to repair with")
        index, crc, end, term = damage.prev.index, damage.prev.crc, damage.prev.end, damage.prev.term
        for e in entries:
            index += 1
            if e.index != index or e.prev_crc != crc or e.position != end or e.term < term or e.lineage != self.lineage:
                raise LogMismatch(f"entry {e.index} does not follow {index - 1} at {end}")
            if not fits(end, e.size, self.segment_bytes):
                raise LogMismatch(f"entry {e.index} of {e.size} bytes does not fit its segment at {end}")
            crc, end, term = e.crc, e.end, e.term
        if damage.next_index and (index + 1, end, crc) != (
            damage.next_index, damage.next_position, damage.next_prev_crc,
        ):  # fmt: skip
            raise LogMismatch(f"entries up to {index} do not join entry {damage.next_index} behind the damage")

    async def _write_over(self, entries: Sequence[Entry]) -> None:
        """Write entries at their places in the files, gaps as zeros, and sync.

        The clean mark stays: it is a lower bound of what is to be there again.
        """
        size = self.segment_bytes
        prev = self.entry_id(entries[0].index - 1)
        for entry in entries:
            base = entry.position - entry.position % size
            file = await self._fs.open(segment_path(base), create=True)
            try:
                if entry.position == base and prev is not None:
                    header = SegmentHeader.after(prev, lineage=self.lineage, segment_bytes=size)
                    await file.write(0, [header.block()], sync=False)
                at = HEADER_BLOCK_BYTES + entry.position - base
                await file.write(at, [entry.data], sync=False)
                if entry.flags & GAP and entry.body_length:
                    await grow_file(file, at + HEADER_BYTES - HEADER_BLOCK_BYTES, size)
                await file.sync()
            finally:
                await file.aclose()
            prev = entry.id
        await self._fs.sync_dir(LOG_DIR)

    async def _reload(self) -> None:
        """Read everything anew and swap it in."""
        self._files.prepared = None  # the sweep removes the file
        await self._files.aclose()
        found = await recover(
            self._fs, self.marks.values, marks_lost=self.marks.lost, machine_stayed_up=self.machine_stayed_up
        )
        self.generation += 1
        self._recent.clear()
        self._cold.clear()
        self.fault = None
        await self._adopt(found)

    async def _adopt(self, found: Recovered) -> None:
        """Carry out what recovery found: mend, cut, rewrite, sync."""
        self.verdict, self.detail, self.tail_cut = found.verdict, found.detail, found.cut
        self.terms, self.last = found.terms, found.last
        self.hint = min(max(found.hint, self.marks.values.floor.index), found.last.index)
        self._segments[:] = found.segments
        self._note_segments()
        self.lineage = found.segments[0].header.lineage if found.segments else 0
        self.segment_bytes = found.segments[0].header.segment_bytes if found.segments else 0
        self._files.configure(self.segment_bytes)
        self._lineage_marked = self.marks.values.lineage != 0
        if found.verdict is Verdict.DAMAGED:
            self.durable = self.last
            self._set_fault(LogFault("damaged", found.detail, found.damage))
            return
        if found.verdict is Verdict.SUSPECT and not self.marks.values.suspect:
            await self.marks.put(suspect=True)
        await self._sweep(found)
        for header in found.headers_to_mend:
            await self._mend_header(header)
        if found.cut:
            await self._cut_file(self._segments[-1])
        if found.verdict is not Verdict.NORMAL and self._segments:
            await self._write_tail_again()
        if self.formed and not self._lineage_marked:
            await self.marks.put(lineage=self.lineage, segment_bytes=self.segment_bytes)
            self._lineage_marked = True
        self.durable = self.last

    async def _sweep(self, found: Recovered) -> None:
        """Remove files that mean nothing: prepared ahead, half made, or side files without a segment."""
        for path in found.unused:
            await self._fs.unlink(path)
        await self._fs.sync_dir(LOG_DIR)
        wanted = {side_path(segment.base_position) for segment in found.segments[:-1]}
        for name in await self._fs.listdir(SIDE_DIR):
            if f"{SIDE_DIR}/{name}" not in wanted:
                await self._fs.unlink(f"{SIDE_DIR}/{name}")

    async def _mend_header(self, header: SegmentHeader) -> None:
        log.warning("segment header mended", extra={"position": header.base_position})
        file = await self._fs.open(segment_path(header.base_position))
        try:
            await file.write(0, [header.block()], sync=False)
            await file.sync()
        finally:
            await file.aclose()

    async def _write_tail_again(self) -> None:
        """Make what was read durable: after a failed sync the page cache shows bytes that the disk does not have."""
        floor = self.marks.values.floor.end
        for segment in self._segments:
            if segment.end_position <= floor and segment is not self._segments[-1]:
                continue
            file = await self._fs.open(segment.path)
            try:
                at = max(floor - segment.base_position, 0)
                await file.write(0, [segment.header.block()], sync=False)
                while at < segment.end:
                    size = min(REWRITE_BYTES, segment.end - at)
                    data = await file.pread(HEADER_BLOCK_BYTES + at, size)
                    await file.write(HEADER_BLOCK_BYTES + at, [data], sync=False)
                    at += size
                await file.sync()
            finally:
                await file.aclose()

    def declare_lost(self, detail: str) -> None:
        """What belongs to this log is gone and no entry can mend it (the state before its first entry): install."""
        damage = Damage(self.first_index, self.first_position, self.base, needs_install=True, detail=detail)
        self._set_fault(LogFault("damaged", detail, damage))

    async def note_suspect(self) -> None:
        """Damage was found: acknowledged entries may be missing, whatever a recovery after this makes of the bytes.

        Durable when it returns. Raises `OSError`.
        """
        await self.marks.put(suspect=True)

    async def clear_suspect(self) -> None:
        """The replica has caught up with a leader elected without it: what was cut off has been made good."""
        await self.marks.put(suspect=False)
        if self.verdict is Verdict.SUSPECT:
            self.verdict = Verdict.CRASH

    @property
    def suspect(self) -> bool:
        """Whether a tail may be missing that was acknowledged: no vote may be granted."""
        return self.marks.values.suspect

    def _impair(self, error: OSError) -> None:
        """A write or sync failed: final for this open log."""
        self._set_fault(LogFault("impaired", str(error)))

    def _begin_write(self) -> None:
        if self._busy:
            raise LogUnusable("two tasks write to the log at once")
        self._busy = True

    async def _withdraw_clean(self) -> None:
        """Before the first write of a run."""
        if not self._withdrawn:
            await self.marks.put(clean=None)
            self._withdrawn = True

    async def _cut_file(self, segment: Segment) -> None:
        """Leave nothing behind the segment's end, durably. Zeros come back off the hot path: cutting needs no space."""
        await self._files.forget(segment.base_position)
        file = await self._fs.open(segment.path)
        try:
            await file.truncate(HEADER_BLOCK_BYTES + segment.end)
            await file.sync()
            segment.grown = segment.end
        finally:
            await file.aclose()
