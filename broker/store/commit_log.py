"""The CommitLog: one log per replica group, the only truth; everything else is a function of it.

Files: `commitlog/<base position>` (`segment.py`), `side/<base position>` (`side_file.py`), `marks` (`marks.py`).

**Order of writes, and what a power cut leaves at each point**

- *append*: the clean mark is withdrawn durably before the first write of a run; then one write and one sync per group
  of whole entries, at most 8 MiB. Cut before the sync: the sectors arrive in any order, and recovery cuts what is torn
  (nobody was told). An entry in the next segment is written after everything in the one before is synced, together with
  the new segment's header block.
- *truncate*: side file of the segment that is reopened goes, later segments go (newest first, the directory synced
  each time), the file is cut and synced, only then it is grown again and written to. Cut anywhere before the end: the
  old tail may be back in part, but always as a prefix of what it was; the truncation was not yet reported.
- *form*: the first segment is made under another name and renamed. Without entry 1 it is unformed again.
- *retention*: oldest segment first; what is left is always one run.
- After any failed write or sync the log is **impaired** for good: `durable` stands still, every call that writes
  raises; the store is opened anew, which writes the tail above the marks' floor once more before believing it.

**Damage** (a checksum that does not hold, a record of another place) raises `EntryDamaged`, sets `fault`, and nothing
is cut: `repair` puts verified entries from a peer in its place.

One task appends and truncates; any number of tasks read.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from .boot import last_life
from .entry import ENTRY_MAX_BYTES, START, Entry, EntryId, fits
from .errors import LogMismatch, LogUnusable, NoSpace
from .fs import FileSystem
from .log_files import STRIP_BYTES, grow_file
from .log_index import SegmentInfo
from .log_mending import FIRST_STRIP_BYTES, MendingLog
from .log_reader import LogFault
from .marks import Marks, open_marks
from .recovery import Verdict, recover
from .segment import (
    HEADER_BLOCK_BYTES,
    LOG_DIR,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    Segment,
    SegmentHeader,
    segment_path,
)
from .side_file import SIDE_DIR

__all__ = ["CommitLog", "LogFault", "SegmentInfo", "Verdict", "open_commit_log"]

log = logging.getLogger(__name__)

RECENT_BYTES: Final = 32 * 1024 * 1024
COLD_BYTES: Final = 16 * 1024 * 1024


class CommitLog(MendingLog):
    """See the module's docstring. Made by `open_commit_log`."""

    def __init__(self, fs: FileSystem, marks: Marks, *, recent_bytes: int, cold_bytes: int, strip_bytes: int) -> None:
        super().__init__(fs, marks, recent_bytes=recent_bytes, cold_bytes=cold_bytes, strip_bytes=strip_bytes)
        self.sync_started_at: float | None = None
        """`trio.current_time()` when the write now under way began; None when the disk is idle (stall detection)."""

    async def form(self, lineage: int, segment_bytes: int) -> None:
        """Give an unformed log its lineage (32-bit tag) and segment size; entry 1 is appended next.

        Raises `LogUnusable` when the log is formed with something in it. Cancelled, the log is unformed.
        """
        if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX:
            raise ValueError(f"segment size {segment_bytes} is not in [{SEGMENT_BYTES_MIN}, {SEGMENT_BYTES_MAX}]")
        if not 0 < lineage < 1 << 32:
            raise ValueError(f"lineage tag {lineage} is not a 32-bit number above 0")
        self._check_no_fault()
        if self.last != START or len(self._segments) > 1 or self.marks.values.lineage:
            raise LogUnusable("the log is formed already")
        self._begin_write()
        try:
            async with self._files.layout:
                await self._reset_files()
                header = SegmentHeader.after(START, lineage=lineage, segment_bytes=segment_bytes)
                await self._create_first(header)
        except OSError as error:
            self._impair(error)
            raise
        finally:
            self._busy = False
        self.verdict = Verdict.NORMAL
        self._files.wake()

    async def _reset_files(self) -> None:
        await self._files.drop_prepared()
        for segment in self._segments:
            await self._files.forget(segment.base_position)
        self._segments.clear()
        self._note_segments()

    async def _create_first(self, header: SegmentHeader) -> None:
        path = segment_path(header.base_position)
        file = await self._fs.open(path + ".new", create=True)
        try:
            await file.truncate(0)
            await file.write(0, [header.block()], sync=False)
            grown = min(FIRST_STRIP_BYTES, header.segment_bytes)
            await grow_file(file, 0, grown)
        finally:
            with trio.CancelScope(shield=True):
                await file.aclose()
        await self._fs.rename(path + ".new", path)
        await self._fs.sync_dir(LOG_DIR)
        self.lineage, self.segment_bytes = header.lineage, header.segment_bytes
        self._files.configure(header.segment_bytes)
        self._segments.append(Segment(header, grown=grown))
        self._note_segments()

    async def append(self, entries: Sequence[Entry], *, sync: bool = True) -> None:
        """Write entries that continue the log; with `sync`, return when all of them are on the disk.

        `begin_append` is the same without a task, where nothing is in the way.

        Raises `LogMismatch` (they do not chain; nothing written), `NoSpace` (what was written before the full segment
        stays, `last` says how far; try again later), `LogUnusable`, and `OSError` after which the log is impaired.
        Cancelled, a prefix of the entries may have been written: `last` says which. Not to be called concurrently.
        """
        self._check_usable()
        self._check_chain(entries)
        self._begin_write()
        try:
            await self._withdraw_clean()
            at, count = 0, len(entries)
            size = self.segment_bytes
            while at < count:
                base = entries[at].position // size
                end, total = at, 0
                while end < count and entries[end].position // size == base:
                    total += len(entries[end].data)
                    if total > ENTRY_MAX_BYTES and end > at:
                        break
                    end += 1
                await self._write_group(entries[at:end], sync)
                at = end
            if not self._lineage_marked:
                await self.marks.put(lineage=self.lineage, segment_bytes=self.segment_bytes)
                self._lineage_marked = True
        except NoSpace:
            raise
        except OSError as error:
            self._impair(error)
            raise
        finally:
            self.sync_started_at = None
            self._busy = False

    async def _write_group(self, group: Sequence[Entry], sync: bool) -> None:
        """One write of entries that lie in one segment."""
        files = self._files
        segment = self._segments[-1]
        last = group[-1]
        if segment.full:
            header = SegmentHeader.after(self.last, lineage=self.lineage, segment_bytes=self.segment_bytes)
            if self.durable != self.last:
                await self.sync()  # a sealed segment is a synced one: recovery relies on it
            segment = await files.next_segment(header.base_position)
            segment.header = header
            self._segments.append(segment)
            self._note_segments()
        parts = [entry.data for entry in group]
        at = HEADER_BLOCK_BYTES + segment.end
        if not segment.end:
            parts.insert(0, segment.header.block())
            at = 0
        need = last.end - segment.base_position
        if segment.grown < need:
            await files.room(segment, need)
        writer = await files.writer(segment.base_position)
        self.sync_started_at = trio.current_time()
        await writer.write(at, parts, sync=sync)
        self._wrote(segment, group, sync=sync)

    def begin_append(self, entries: Sequence[Entry], done: Callable[[OSError | None], None]) -> bool:
        """Begin to write and sync entries if nothing has to be waited for before that; else False: `append` does it.

        `done` is called once, in a later pass: without an error the entries are on the disk, with one the log is
        impaired. Nothing else may be written before.
        """
        if self._busy or self._closed or self.fault is not None or not self._segments:
            return False
        segment = self._segments[-1]
        base, size = segment.base_position, self.segment_bytes
        last = entries[-1]
        writer = self._files.prompt_writer(base)
        if (
            writer is None
            or not (self._withdrawn and self._lineage_marked)
            or segment.full
            or not segment.end
            or last.position // size != base // size
            or last.end - base > segment.grown
            or last.end - entries[0].position > ENTRY_MAX_BYTES
        ):
            return False
        try:
            self._check_chain(entries)
        except LogMismatch:
            return False

        def ended(error: OSError | None) -> None:
            self.sync_started_at = None
            self._busy = False
            if error is None:
                self._wrote(segment, entries, sync=True)
            else:
                self._impair(error)
            done(error)

        try:
            writer.begin_write(HEADER_BLOCK_BYTES + segment.end, [entry.data for entry in entries], ended)
        except OSError:
            return False
        self._begin_write()
        self.sync_started_at = trio.current_time()
        return True

    def _wrote(self, segment: Segment, group: Sequence[Entry], *, sync: bool) -> None:
        """Entries stand at the end of a segment: note where."""
        base, last = segment.base_position, group[-1]
        add_offset, add_crc, note, remember = (
            segment.offsets.append, segment.crcs.append, self.terms.note, self._recent.add,
        )  # fmt: skip
        for entry in group:
            add_offset(entry.position - base)
            add_crc(entry.crc)
            note(entry.index, entry.term, entry.position)
            remember(entry)
        segment.end = last.end - base
        self.last = last.id
        if sync:
            self.durable = self.last
        if group[0].position == base or self._files.short(segment) or segment.full:
            self._files.wake()

    def _check_chain(self, entries: Sequence[Entry]) -> None:
        last = self.last
        index, term, crc, end = last.index, last.term, last.crc, last.end
        lineage, size = self.lineage, self.segment_bytes
        for e in entries:
            index += 1
            if e.index != index or e.prev_crc != crc or e.position != end or e.term < term or e.lineage != lineage:
                raise LogMismatch(
                    f"entry (index {e.index}, term {e.term}, position {e.position}, prev {e.prev_crc:08x}, lineage "
                    f"{e.lineage:08x}) does not follow (index {index - 1}, term {term}, end {end}, crc {crc:08x}, "
                    f"lineage {lineage:08x})"
                )
            if not fits(end, e.size, size):
                raise LogMismatch(f"entry {e.index} of {e.size} bytes does not fit its segment at {end}")
            term, crc, end = e.term, e.crc, e.end

    async def sync(self) -> None:
        """Make everything appended so far durable. For strategies that acknowledge before the flush."""
        self._check_no_fault()
        target = self.last
        if self.durable == target:
            return
        try:
            writer = await self._files.writer(self._segments[-1].base_position)
            await writer.sync()
        except OSError as error:
            self._impair(error)
            raise
        if self.durable.index < target.index <= self.last.index:
            self.durable = target

    async def truncate_after(self, index: int) -> None:
        """Cut the log durably after entry `index`. Raises `LogUnusable` below the marks' floor, and `OSError`.

        Shielded: it waits for the disk only, and half a truncation has no meaning to anyone.
        """
        self._check_usable()
        if index >= self.last.index:
            return
        target = self.entry_id(index)
        if target is None or index < self.marks.values.floor.index:
            raise LogUnusable(
                f"cannot cut after {index}: the log keeps [{self.first_index}, ...] and what is committed"
            )
        self._begin_write()
        try:
            with trio.CancelScope(shield=True):
                await self._withdraw_clean()
                async with self._files.layout:
                    await self._cut_files(target)
        except OSError as error:
            self._impair(error)
            raise
        finally:
            self._busy = False
        self._files.wake()

    async def _cut_files(self, target: EntryId) -> None:
        keep = max(bisect_right(self._bases, target.index) - 1, 0)
        segment = self._segments[keep]
        # In memory first: from here on nobody may read or count what goes.
        self.generation += 1
        self.last = target
        if self.durable.index > target.index:
            self.durable = target
        self.terms.truncate_after(target.index)
        self._recent.cut(target.index)
        self._cold.cut(target.index)
        later = self._segments[keep + 1 :]
        del self._segments[keep + 1 :]
        segment.cut(target.index)
        self._note_segments()
        await self._files.drop_prepared()
        for gone in reversed(later):
            await self._files.forget(gone.base_position)
            await self._files.drop_side(gone)
            await self._fs.unlink(gone.path)
            await self._fs.sync_dir(LOG_DIR)
        if later:
            await self._files.drop_side(segment)
        await self._cut_file(segment)

    async def drop_first_segments(self, count: int) -> None:
        """Delete the `count` oldest segments, never the newest. The caller knows that nobody needs them."""
        self._check_no_fault()
        if not 0 <= count < len(self._segments):
            raise ValueError(f"cannot drop {count} of {len(self._segments)} segments")
        with trio.CancelScope(shield=True):
            async with self._files.layout:
                for _ in range(count):
                    gone = self._segments[0]
                    self.terms.drop_to(gone.last_index)
                    del self._segments[0]
                    self._note_segments()
                    await self._files.forget(gone.base_position)
                    await self._fs.unlink(gone.path)
                    await self._fs.sync_dir(LOG_DIR)
                    await self._files.drop_side(gone)

    def _check_no_fault(self) -> None:
        if self._closed:
            raise LogUnusable("the log is closed")
        if self.fault is not None:
            raise LogUnusable(f"the log is {self.fault.kind}: {self.fault.detail}")

    def _check_usable(self) -> None:
        self._check_no_fault()
        if not self._segments:
            raise LogUnusable("the log is unformed")

    async def mark_clean(self) -> None:
        """Everything is on the disk and nothing will be written any more: say so durably. Last call before closing."""
        self._check_no_fault()
        if self.formed:
            await self.sync()
            self._withdrawn = False
            await self.marks.put(clean=self.last)


@asynccontextmanager
async def open_commit_log(
    fs: FileSystem,
    *,
    recent_bytes: int = RECENT_BYTES,
    cold_bytes: int = COLD_BYTES,
    strip_bytes: int = STRIP_BYTES,
    clean_on_exit: bool = True,
    boot_id: str = "",
) -> AsyncIterator[CommitLog]:
    """Recover the log and keep its files for as long as the block runs.

    `verdict` says what was found. A damaged log opens too (its good prefix can be read, and repaired); only files of
    another lineage or a newer format raise `StoreRefused`. Left without an error, the log is marked clean.
    `boot_id` names this life of the machine; empty: not known.
    """
    await fs.mkdir(LOG_DIR)
    await fs.mkdir(SIDE_DIR)
    await fs.sync_dir("")
    marks = await open_marks(fs)
    self = CommitLog(fs, marks, recent_bytes=recent_bytes, cold_bytes=cold_bytes, strip_bytes=strip_bytes)
    try:
        lost = marks.lost or (marks.fresh and any(len(name) == 20 for name in await fs.listdir(LOG_DIR)))
        self.machine_stayed_up = stayed_up = (await last_life(fs, boot_id)).same_boot
        found = await recover(fs, marks.values, marks_lost=lost, machine_stayed_up=stayed_up)
        await self._adopt(found)
        if self.verdict not in (Verdict.NORMAL, Verdict.UNFORMED):
            log.warning("log recovered", extra={"verdict": self.verdict.value, "detail": self.detail})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._files.keep, self._impair)
            yield self
            nursery.cancel_scope.cancel()
        if clean_on_exit and self.fault is None and self.formed:
            with trio.CancelScope(shield=True):  # waits for the disk only
                try:
                    await self.mark_clean()
                except OSError as error:
                    log.warning("log not marked clean", extra={"detail": str(error)})
    finally:
        self._closed = True
        with trio.CancelScope(shield=True):
            await self._files.aclose()
            await marks.aclose()
