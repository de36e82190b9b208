"""Taking over the files of a healthy replica, for one whose log no entry can mend or reach any more.

The source *exports*: its newest snapshot and all segments up to the durable end at that moment; retention waits while
somebody reads. The target *stages* them under `install/`, in order per file and resumable, then verifies everything
that arrived: each segment's header, the chain and every body through all segments, the join to the named last entry,
the snapshot's checksum and its place in that chain. Only then the **manifest** is written.

The manifest is the switch. Before it the old log is the truth and goes on voting; after it the new one is, and the next
opening of the store (`finish_install`) puts the files in place:

1. old segments, side files, snapshots and index files go, except those that an earlier attempt moved in already;
2. staged files are renamed to where they belong, the directories synced;
3. the marks are set to the snapshot's entry (committed), the suspect mark stays;
4. the manifest goes, then what is left of the staging.

Cut at any point before 4, the next opening does all of it again and comes to the same end. The index is rebuilt by
dispatch or by scanning; it is not shipped.
"""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol
from zlib import crc32

import cbor2
import trio

from .commit_log import CommitLog
from .entry import EntryId
from .errors import LogUnusable, StoreError, StoreRefused
from .fs import File, FileSystem, file_size, read_whole, write_whole
from .marks import open_marks
from .scan import walk
from .segment import HEADER_BLOCK_BYTES, LOG_DIR, SegmentHeader, segment_base, segment_path
from .side_file import SIDE_DIR
from .snapshot import META_DIR, Snapshot
from .term_table import TermTable

__all__ = ["Export", "ExportFile", "ExportSource", "Staging", "finish_install", "open_export"]

STAGING_DIR: Final = "install"
PLAN_PATH: Final = "install/plan"
MANIFEST_PATH: Final = "install/manifest"
OWN_DIRS: Final = (LOG_DIR, SIDE_DIR, META_DIR, "queues", "keys")
"""What an installation replaces, with everything in it."""

_NAME = re.compile(rf"(?:{LOG_DIR}|{META_DIR})/[0-9]{{20}}|members")
_FORMAT: Final = 1
_U32 = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class ExportFile:
    """`name` is the path under the store's root, `size` what is to be copied of it."""

    name: str
    size: int


class ExportSource(Protocol):
    """What an export needs of the store (`MessageStore` is one)."""

    pins: list[int]
    """Oldest index that each reader still needs: retention spares it."""

    @property
    def fs(self) -> FileSystem: ...

    @property
    def log(self) -> CommitLog: ...

    async def snapshot(self) -> None:
        """Write a snapshot of now, if there is anything new."""
        ...


class Export:
    """Files that do not change while the export is open. Made by `open_export`."""

    def __init__(self, fs: FileSystem, files: Sequence[ExportFile], lineage: int, last: EntryId) -> None:
        self.files = tuple(files)
        self.lineage = lineage
        self.last = last
        """The entry with which the exported log ends."""
        self._fs = fs
        self._open: dict[str, File] = {}
        self._sizes = {file.name: file.size for file in files}

    async def read(self, name: str, offset: int, size: int) -> bytes:
        """Bytes `[offset, offset + size)` of a file of the export, as far as it goes. Raises `LookupError`."""
        end = min(offset + size, self._sizes[name])
        if not 0 <= offset < end:
            return b""
        file = self._open.get(name)
        if file is None:
            file = await self._fs.open(name)
            if name in self._open:  # another task was faster
                await file.aclose()
                file = self._open[name]
            else:
                self._open[name] = file
        data = await file.pread(offset, end - offset)
        return data.ljust(end - offset, b"\0")  # a filler's gap may not be grown to its end yet

    async def aclose(self) -> None:
        while self._open:
            await self._open.popitem()[1].aclose()


@asynccontextmanager
async def open_export(store: ExportSource) -> AsyncIterator[Export]:
    """Pin what is there and describe it.

    Raises `LogUnusable` when this replica is no source (unformed, damaged, or without a snapshot to give).
    """
    log = store.log
    if not log.formed or log.fault is not None or log.suspect:
        raise LogUnusable("a log that is unformed, damaged or suspect is no source for an installation")
    first = log.first_index
    store.pins.append(first)
    try:
        await store.snapshot()
        names = [name for name in await store.fs.listdir(META_DIR) if len(name) == 20 and name.isdigit()]
        if not names:
            raise LogUnusable("there is no snapshot to give yet")
        snapshot_path = f"{META_DIR}/{max(names)}"
        content = await read_whole(store.fs, snapshot_path)
        last = log.durable
        files = [ExportFile(snapshot_path, len(content))]
        size = log.segment_bytes
        base = log.first_position
        while base < last.end or base == log.first_position:
            files.append(ExportFile(segment_path(base), HEADER_BLOCK_BYTES + min(size, last.end - base)))
            base += size
        export = Export(store.fs, files, log.lineage, last)
        # Held open from the start: a newer snapshot may remove this one's name at any time.
        await export.read(snapshot_path, 0, 1)
        try:
            yield export
        finally:
            with trio.CancelScope(shield=True):  # waits for the disk only
                await export.aclose()
    finally:
        store.pins.remove(first)


class Staging:
    """The target's side. One task uses it."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self._files: dict[str, int] = {}
        self._have: dict[str, int] = {}
        self._lineage = 0
        self._last: EntryId | None = None
        self._writing: tuple[str, File] | None = None

    async def begin(self, files: Sequence[ExportFile], lineage: int, last: EntryId) -> dict[str, int]:
        """Start, or go on with what an earlier attempt left of the very same export.

        Returns the bytes that are there already, by name. Raises `StoreError` for names that have no business here.
        """
        for wanted in files:
            if not _NAME.fullmatch(wanted.name) or wanted.size < 0:
                raise StoreError(f"an installation cannot bring a file {wanted.name!r} of {wanted.size} bytes")
        await self._fs.mkdir(STAGING_DIR)
        await self._fs.sync_dir("")
        plan = _pack([lineage, list(_fields(last)), [[each.name, each.size] for each in files]])
        try:
            same = await read_whole(self._fs, PLAN_PATH) == plan
        except FileNotFoundError:
            same = False
        await self.aclose()
        if not same:
            await clear_staging(self._fs)
            await write_whole(self._fs, PLAN_PATH, [plan])
        self._files = {each.name: each.size for each in files}
        self._lineage, self._last = lineage, last
        there = set(await self._fs.listdir(STAGING_DIR))
        self._have = {}
        for name, size in self._files.items():
            have = 0
            if _staged(name).rpartition("/")[2] in there:
                file = await self._fs.open(_staged(name))
                try:
                    have = min(await file_size(file), size)
                finally:
                    await file.aclose()
            self._have[name] = have
        return dict(self._have)

    async def write(self, name: str, offset: int, data: bytes) -> None:
        """The next bytes of a file, in order. Raises `StoreError` for anything else, and `OSError`."""
        size = self._files.get(name, -1)
        if offset != self._have.get(name) or offset + len(data) > size:
            raise StoreError(f"{name}: {len(data)} bytes at {offset} are not what comes next")
        if self._writing is None or self._writing[0] != name:
            await self.aclose()
            self._writing = name, await self._fs.open(_staged(name), create=True)
        await self._writing[1].write(offset, [data], sync=False)
        self._have[name] = offset + len(data)

    async def finish(self) -> None:
        """Verify everything, make it durable, write the manifest: from here on the new log is the truth.

        Raises `StoreError` when something does not hold (the staging is dropped then) and `OSError`. Afterwards the
        store is to be closed and opened again.
        """
        await self.aclose()
        try:
            snapshot = await self._verify()
        except StoreError:
            await clear_staging(self._fs)
            raise
        for name in self._files:
            file = await self._fs.open(_staged(name))
            try:
                await file.sync()
            finally:
                await file.aclose()
        await self._fs.sync_dir(STAGING_DIR)
        assert self._last is not None
        manifest = [self._lineage, list(_fields(self._last)), list(_fields(snapshot.at)), sorted(self._files)]
        await write_whole(self._fs, MANIFEST_PATH, [_pack(manifest)])

    async def abandon(self) -> None:
        """Remove everything that was staged."""
        await self.aclose()
        await clear_staging(self._fs)

    async def aclose(self) -> None:
        """Close what is open; what was staged stays."""
        if self._writing is not None:
            file = self._writing[1]
            self._writing = None
            await file.aclose()

    async def _verify(self) -> Snapshot:
        short = [name for name, size in self._files.items() if self._have[name] != size]
        if short:
            raise StoreError(f"the installation is not complete: {short[0]}")
        metas = [name for name in self._files if name.startswith(f"{META_DIR}/")]
        snapshot = Snapshot.unpack(await read_whole(self._fs, _staged(metas[0]))) if len(metas) == 1 else None
        if snapshot is None or snapshot.lineage != self._lineage:
            raise StoreError("the installation brings no snapshot that can be read")
        at = snapshot.at
        found_at = False
        last: EntryId | None = None
        for name in sorted(name for name in self._files if name.startswith(f"{LOG_DIR}/")):
            file = await self._fs.open(_staged(name))
            try:
                header, _ = SegmentHeader.parse(await file.pread(0, HEADER_BLOCK_BYTES))
                base = segment_base(name.rpartition("/")[2])
                if header is None or header.lineage != self._lineage or header.base_position != base:
                    raise StoreError(f"{name}: not a segment of this log")
                if last is not None and header.prev != last:
                    raise StoreError(f"{name} does not continue the segment before it")
                found_at = found_at or header.prev == at
                result = await walk(file, header, TermTable(header.base_index - 1, header.prev_term), bodies_from=0)
            finally:
                with trio.CancelScope(shield=True):
                    await file.aclose()
            last = result.last
            segment = result.segment
            if segment.base_index <= at.index <= segment.last_index:
                place = segment.base_position + segment.end_of(at.index)
                found_at = (segment.crc_of(at.index), place) == (at.crc, at.end)
            if result.bad is not None and last != self._last:
                raise StoreError(f"{name}: {result.bad.reason} at {result.last.end}")
        if last is None or last != self._last:
            raise StoreError(f"the installed log ends with {last}, not with {self._last}")
        if not found_at:
            raise StoreError(f"the snapshot at entry {at.index} is not of this log")
        return snapshot


async def finish_install(fs: FileSystem) -> bool:
    """Put an installation in place whose manifest is there. First thing at every opening of a store; True if it did.

    Raises `StoreRefused` when the manifest is of a newer format, and `OSError`; then it is to be tried again.
    """
    if STAGING_DIR not in await fs.listdir(""):
        return False
    try:
        manifest = _unpack(await read_whole(fs, MANIFEST_PATH))
    except FileNotFoundError:
        return False
    if manifest is None:  # written whole or not at all, so this is rot; the old log is still there
        await fs.unlink(MANIFEST_PATH)
        return False
    lineage, _, at, names = manifest
    staged = set(await fs.listdir(STAGING_DIR))
    with trio.CancelScope(shield=True):  # waits for the disk only
        for directory in OWN_DIRS:
            await fs.mkdir(directory)
        await fs.sync_dir("")
        for directory in OWN_DIRS:
            for name in await fs.listdir(directory):
                path = f"{directory}/{name}"
                moved = path in names and _staged(path).rpartition("/")[2] not in staged
                if not moved:
                    await fs.unlink(path)
            await fs.sync_dir(directory)
        for path in names:
            if _staged(path).rpartition("/")[2] in staged:
                await fs.rename(_staged(path), path)
        for directory in ("", *OWN_DIRS, STAGING_DIR):
            await fs.sync_dir(directory)
        await _set_marks(fs, lineage, EntryId(*at))
        await fs.unlink(MANIFEST_PATH)
        await fs.sync_dir(STAGING_DIR)
        await clear_staging(fs)
    return True


async def _set_marks(fs: FileSystem, lineage: int, at: EntryId) -> None:
    names = [name for name in await fs.listdir(LOG_DIR) if segment_base(name) is not None]
    file = await fs.open(f"{LOG_DIR}/{names[0]}")
    try:
        header, _ = SegmentHeader.parse(await file.pread(0, HEADER_BLOCK_BYTES))
    finally:
        await file.aclose()
    marks = await open_marks(fs)
    try:
        size = header.segment_bytes if header is not None else 0
        await marks.put(lineage=lineage, segment_bytes=size, dispatched=at.index, floor=at, clean=None)
    finally:
        await marks.aclose()


async def clear_staging(fs: FileSystem) -> None:
    """Remove staged files, the plan last. The manifest is not touched."""
    if STAGING_DIR not in await fs.listdir(""):
        return
    names = [name for name in await fs.listdir(STAGING_DIR) if name not in ("plan", "manifest")]
    for name in [*names, "plan"]:
        try:
            await fs.unlink(f"{STAGING_DIR}/{name}")
        except FileNotFoundError:
            pass
    await fs.sync_dir(STAGING_DIR)


def _staged(name: str) -> str:
    """Where a file waits."""
    return f"{STAGING_DIR}/{name.replace('/', '@')}"


def _fields(entry: EntryId) -> tuple[int, int, int, int]:
    return entry.index, entry.term, entry.crc, entry.end


def _pack(value: list[object]) -> bytes:
    body = cbor2.dumps([_FORMAT, *value], canonical=True)
    return _U32.pack(crc32(body)) + body


def _unpack(data: bytes) -> tuple[int, list[int], list[int], list[str]] | None:
    """The manifest. None when it is damaged."""
    if len(data) < 5 or _U32.unpack(data[:4])[0] != crc32(data[4:]):
        return None
    version, *fields = cbor2.loads(data[4:])
    if version != _FORMAT:
        raise StoreRefused(
            f"an installation of format {version} waits, this version reads {_FORMAT}: use a newer trimq"
        )
    lineage, last, at, names = fields
    return lineage, last, at, names
