"""The files behind the log: handles, and the work that is kept off the hot path.

One background task (`keep`) does, one piece at a time:

1. grow the file that is written to, in zero-filled and synced strips ahead of the writer;
2. prepare the next segment's file once the present one is grown to its end, so that a roll-over costs nothing;
3. bring sealed segments to their full size and write their side files.

It writes through handles of its own: Linux reports a failed write-back once per open file, and a strip's fsync must
never swallow the error that the writer's fsync should have seen. A full disk is not the end of the log: strips are
tried again each second, and only appends that need more room than there is are refused (`NoSpace`).
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from .errors import NoSpace
from .fs import File, FileSystem, PromptFile, write_whole
from .segment import HEADER_BLOCK_BYTES, LOG_DIR, Segment, segment_path
from .side_file import SIDE_DIR, side_path

__all__ = ["STRIP_BYTES", "LogFiles", "grow_file"]

STRIP_BYTES: Final = 16 * 1024 * 1024
PIECE_BYTES: Final = 1024 * 1024
"""Zeros per sync: what a hot fdatasync of the same file may have to wait for at most."""

HANDLES_MAX: Final = 64
"""Open read handles of older segments."""

RETRY_S: Final = 1.0
"""Between attempts to grow on a full disk."""

_ZEROS: Final = bytes(PIECE_BYTES)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


async def grow_file(file: File, start: int, end: int, progress: Callable[[int], None] | None = None) -> None:
    """Fill a segment file with synced zeros over relative `[start, end)`."""
    at = start
    while at < end:
        size = min(PIECE_BYTES, end - at)
        await file.write(HEADER_BLOCK_BYTES + at, [_ZEROS[:size]], sync=False)
        await file.sync()
        at += size
        if progress is not None:
            progress(at)


class LogFiles:
    """Handles of one log. `segments` is the log's own list, oldest first."""

    def __init__(
        self,
        fs: FileSystem,
        segments: list[Segment],
        pack: Callable[[Segment], bytes],
        usable: Callable[[], bool],
        strip_bytes: int,
    ) -> None:
        self.fs = fs
        self.segments = segments
        self.segment_bytes = 0
        self.layout = trio.Lock()
        """Held while files come, go or change their length."""
        self.strip_bytes = strip_bytes
        self.prepared: Segment | None = None
        """The next segment's file: zeros, header block included. Its `header` is that of the present one."""
        self.prepared_base = -1
        self.no_space = False
        self._pack = pack
        self._usable = usable
        self._readers: dict[int, File] = {}
        self._writer: File | None = None
        self._prompt_writer: PromptFile | None = None
        self._writer_base = -1
        self._wake = trio.Event()
        self._grown = trio.Event()
        self._quiet = trio.Event()
        self._failed: OSError | None = None

    def configure(self, segment_bytes: int) -> None:
        """The log is formed, or was opened formed."""
        self.segment_bytes = segment_bytes

    async def reader(self, base: int) -> File:
        """A handle for reading; the least recently used is closed when there are too many."""
        file = self._readers.pop(base, None)
        if file is None:
            file = await self.fs.open(segment_path(base))
            if base in self._readers:  # another task was faster
                await file.aclose()
                file = self._readers.pop(base)
        self._readers[base] = file
        while len(self._readers) > HANDLES_MAX:
            await self._readers.pop(next(iter(self._readers))).aclose()
        return file

    async def writer(self, base: int) -> File:
        """The handle through which the log is written: one at a time."""
        if self._writer is None or self._writer_base != base:
            await self.close_writer()
            self._writer = file = await self.fs.open(segment_path(base))
            self._prompt_writer = file if isinstance(file, PromptFile) else None
            self._writer_base = base
        return self._writer

    def prompt_writer(self, base: int) -> PromptFile | None:
        """The writer of that segment when it is open and takes writes without a task."""
        return self._prompt_writer if self._writer_base == base else None

    async def close_writer(self) -> None:
        if self._writer is not None:
            file, self._writer, self._prompt_writer = self._writer, None, None
            await file.aclose()

    async def forget(self, base: int) -> None:
        """Close what is open of a segment that goes."""
        if base in self._readers:
            await self._readers.pop(base).aclose()
        if base == self._writer_base:
            await self.close_writer()

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):  # waits for the disk only
            await self.close_writer()
            while self._readers:
                await self._readers.popitem()[1].aclose()

    # -- room ahead of the writer --------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something changed that may mean work for `keep`."""
        if self._quiet.is_set():
            self._quiet = trio.Event()
        self._wake.set()

    async def quiet(self) -> None:
        """Wait until `keep` has nothing left to do. Raises the `OSError` that ended it."""
        if self._failed is None:
            await self._quiet.wait()
        if self._failed is not None:
            raise self._failed

    def short(self, segment: Segment) -> bool:
        """Whether the writer has come so close to the end of the zeros that more should be made."""
        return (
            segment.grown < self.segment_bytes
            and segment.grown - segment.end < min(self.strip_bytes, self.segment_bytes) // 2
        )

    async def room(self, segment: Segment, end: int) -> None:
        """Wait until the file is zero-filled up to relative `end`. Raises `NoSpace`."""
        while segment.grown < end:
            await self._more("the log")

    async def next_segment(self, base: int) -> Segment:
        """Wait until the file of the segment at `base` is prepared, and take it. Raises `NoSpace`."""
        while self.prepared is None or self.prepared_base != base:
            await self._more("the log's next segment")
        segment, self.prepared = self.prepared, None
        return segment

    async def _more(self, what: str) -> None:
        if self._failed is not None:
            raise self._failed
        if self.no_space:
            await trio.lowlevel.checkpoint()
            raise NoSpace(what)
        self.wake()
        await self._grown.wait()

    def _tell(self) -> None:
        self._grown.set()
        self._grown = trio.Event()

    async def keep(self, failed: Callable[[OSError], None]) -> None:
        """The background task. A disk error other than "full" goes to `failed` and ends it."""
        while True:
            try:
                async with self.layout:
                    work = self._next_work()
                    if work is not None:
                        await work()
                        self.no_space = False
                        continue
                    self._wake = trio.Event()
                    self._quiet.set()
            except OSError as error:
                if error.errno not in _FULL:
                    self._failed = error
                    self._tell()
                    self._quiet.set()
                    failed(error)
                    return
                self.no_space = True
                self._tell()
                await trio.sleep(RETRY_S)
                continue
            await self._wake.wait()

    def _next_work(self) -> Callable[[], Awaitable[None]] | None:
        if not self.segments or not self._usable():
            return None  # a damaged log's newest good segment is not its last: nothing may be touched
        active = self.segments[-1]
        if self.short(active):
            return lambda: self._grow(active, min(active.grown + self.strip_bytes, self.segment_bytes))
        base = active.base_position + self.segment_bytes
        if active.grown == self.segment_bytes and (self.prepared is None or self.prepared_base != base):
            return lambda: self._prepare(base)
        for segment in reversed(self.segments[:-1]):
            if segment.grown < self.segment_bytes:
                return lambda: self._grow(segment, self.segment_bytes)
            if not segment.sided:
                return lambda: self._write_side(segment)
        return None

    async def _grow(self, segment: Segment, end: int) -> None:
        def progress(at: int) -> None:
            segment.grown = at
            self._tell()

        file = await self.fs.open(segment.path)
        try:
            await grow_file(file, segment.grown, end, progress)
        finally:
            with trio.CancelScope(shield=True):
                await file.aclose()

    async def _prepare(self, base: int) -> None:
        path = segment_path(base)
        if path.rpartition("/")[2] in await self.fs.listdir(LOG_DIR):
            raise OSError(errno.EEXIST, f"{path} is there already, and not as a segment of this log")
        file = await self.fs.open(path + ".new", create=True)
        try:
            await file.truncate(0)
            await file.write(0, [bytes(HEADER_BLOCK_BYTES)], sync=False)
            first = min(self.strip_bytes, self.segment_bytes)
            await grow_file(file, 0, first)
        finally:
            with trio.CancelScope(shield=True):
                await file.aclose()
        with trio.CancelScope(shield=True):  # waits for the disk only; a name that nobody knows of would be in the way
            await self.fs.rename(path + ".new", path)
            await self.fs.sync_dir(LOG_DIR)
            self.prepared = Segment(self.segments[-1].header, grown=first)
            self.prepared_base = base
        self._tell()

    async def drop_prepared(self) -> None:
        """Remove the file that was made ahead (the log was cut back before it)."""
        if self.prepared is not None:
            self.prepared = None
            await self.fs.unlink(segment_path(self.prepared_base))
            await self.fs.sync_dir(LOG_DIR)

    async def _write_side(self, segment: Segment) -> None:
        await self.fs.mkdir(SIDE_DIR)
        await write_whole(self.fs, side_path(segment.base_position), [self._pack(segment)])
        segment.sided = True

    async def drop_side(self, segment: Segment) -> None:
        """Remove a side file durably: its segment is going to change."""
        try:
            await self.fs.unlink(side_path(segment.base_position))
        except FileNotFoundError:
            return
        finally:
            segment.sided = False
        await self.fs.sync_dir(SIDE_DIR)
