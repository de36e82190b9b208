"""Files behind a small protocol, so that tests and the simulator own the disk.

Promises of every implementation (`tests/store/test_fs.py` runs one suite over all of them):

- Paths are relative to the store's root, with `/` between parts; `..`, absolute and empty parts are refused.
- `write(sync=True)` returns only when all parts are on the disk. A short write is continued until done or failed.
- **A failed sync is final** for that open file: the kernel may have marked the dirty pages clean, so a later success
  would prove nothing. Every later write or sync of it fails too.
- A call that has begun outlives cancellation: the caller gets `Cancelled` after the disk is done, never in the middle.
- A new, renamed or removed name is durable only after `sync_dir` of its directory.

The real implementation gives each file that is written with `sync=True` one thread of its own (jobs in through a
`SimpleQueue`, results out through `run_sync_soon`: half the cost of a pool's hop). Everything queued when the thread
comes round is written first and then made durable by *one* fdatasync. All other calls use Trio's threads, with a
limiter of their own. Nothing maps files into memory: a page fault would block the loop where no one sees it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Protocol, TypeVar, runtime_checkable

import outcome
import trio

__all__ = [
    "File",
    "FileSystem",
    "Offloading",
    "PromptFile",
    "RealFileSystem",
    "check_path",
    "file_size",
    "offload",
    "open_file_system",
    "read_whole",
    "write_whole",
]

T = TypeVar("T")

IOV_MAX: Final = 1024
"""Buffers per pwritev (Linux's UIO_MAXIOV)."""

DISK_THREADS: Final = 8
"""Disk calls of one store that may run in Trio's threads at once; the rest wait their turn."""


class File(Protocol):
    """An open file."""

    async def write(self, at: int, parts: Sequence[bytes], *, sync: bool) -> None:
        """Write all parts back to back from offset `at`; with `sync`, return when they are on the disk. `OSError`."""
        ...

    async def pread(self, at: int, size: int) -> bytes:
        """Read; shorter than `size` only at the end of the file."""
        ...

    async def sync(self) -> None:
        """Make everything written so far durable (fdatasync)."""
        ...

    async def truncate(self, size: int) -> None:
        """Cut or extend (with zeros) to `size`; durable after the next sync."""
        ...

    async def aclose(self) -> None:
        """Close. Twice is harmless. Unsynced writes stay unsynced."""
        ...


@runtime_checkable
class PromptFile(Protocol):
    """An open file that can also begin to write from where nothing may wait."""

    def begin_write(self, at: int, parts: Sequence[bytes], done: Callable[[OSError | None], None]) -> None:
        """Like `write` with `sync`; `done` is called once, always in a later pass, and must not raise."""
        ...


class FileSystem(Protocol):
    """The directory tree of one store."""

    async def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing. `FileNotFoundError` unless `create`, which never cuts an existing file."""
        ...

    async def listdir(self, path: str) -> list[str]:
        """Names in a directory, sorted; the root is `""`. `FileNotFoundError` when it is missing."""
        ...

    async def mkdir(self, path: str) -> None:
        """Make a directory whose parent exists; no error when it is there already."""
        ...

    async def rename(self, old: str, new: str) -> None:
        """Replace `new` by `old` atomically."""
        ...

    async def unlink(self, path: str) -> None:
        """Remove a file. `FileNotFoundError` when it is missing."""
        ...

    async def sync_dir(self, path: str) -> None:
        """Make the directory's names durable."""
        ...

    async def space(self) -> tuple[int, int]:
        """Free and total bytes."""
        ...


@runtime_checkable
class Offloading(Protocol):
    """A file system that also has threads for long computations. The in-memory one has none, on purpose."""

    async def offload(self, work: Callable[[], T]) -> T: ...


async def offload(fs: FileSystem, work: Callable[[], T]) -> T:
    """Run a long computation beside the loop where there are threads, else right here."""
    if isinstance(fs, Offloading):
        return await fs.offload(work)
    await trio.lowlevel.checkpoint()
    return work()


def check_path(path: str) -> str:
    """Return `path` if it stays inside the root. Raises `ValueError`."""
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"not a path inside the store: {path!r}")
    return path


async def file_size(file: File) -> int:
    """Size of an open file, by doubling and bisection over `pread` (the protocol has no stat)."""
    if not await file.pread(0, 1):
        return 0
    low, high = 0, 1  # a byte at `low` exists
    while await file.pread(high, 1):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if await file.pread(middle, 1):
            low = middle
        else:
            high = middle
    return high


READ_CHUNK_BYTES: Final = 1024 * 1024


async def read_whole(fs: FileSystem, path: str, *, limit: int = 1 << 40) -> bytes:
    """Content of a file. Raises `FileNotFoundError`, and `OSError` (EFBIG) above `limit` bytes."""
    file = await fs.open(path)
    try:
        parts, at = [], 0
        while True:
            part = await file.pread(at, READ_CHUNK_BYTES)
            parts.append(part)
            at += len(part)
            if at > limit:
                raise OSError(errno.EFBIG, f"{path} is longer than {limit} bytes")
            if len(part) < READ_CHUNK_BYTES:
                return b"".join(parts)
    finally:
        await _close(file)


async def write_whole(fs: FileSystem, path: str, parts: Sequence[bytes]) -> None:
    """Write a new file so that after a crash it is there in full or not at all.

    Temporary name, sync, rename, sync of the directory. A half-written `*.tmp` of an earlier crash is overwritten.
    """
    temporary = path + ".tmp"
    file = await fs.open(temporary, create=True)
    try:
        await file.truncate(0)
        await file.write(0, parts, sync=False)
        await file.sync()
    finally:
        await _close(file)
    await fs.rename(temporary, path)
    await fs.sync_dir(path.rpartition("/")[0])


async def _close(file: File) -> None:
    with trio.CancelScope(shield=True):  # waits for the disk at most
        await file.aclose()


def _pwrite_all(fd: int, at: int, parts: Sequence[bytes]) -> None:
    """Write everything or raise. The kernel may take less than asked (a nearly full disk): go on from there."""
    for first in range(0, len(parts), IOV_MAX):
        chunk: list[bytes | memoryview] = list(parts[first : first + IOV_MAX])
        left = sum(map(len, chunk))
        while left:
            done = os.pwritev(fd, chunk, at)
            if done <= 0:
                raise OSError(errno.EIO, "the disk took no byte")
            at += done
            left -= done
            if left:
                while done >= len(chunk[0]):
                    done -= len(chunk.pop(0))
                chunk[0] = memoryview(chunk[0])[done:]


Done = Callable[[OSError | None], None]
Job = tuple[int, Sequence[bytes], Done]


class _SyncThread:
    """Writes and syncs one file. Ends when it is given `None`."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def begin(self, at: int, parts: Sequence[bytes], done: Done) -> None:
        """Queue a write; `done` is called in the loop."""
        self._jobs.put((at, parts, done))

    async def write(self, at: int, parts: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        task = trio.lowlevel.current_task()

        def done(error: OSError | None) -> None:
            trio.lowlevel.reschedule(task, outcome.Value(None) if error is None else outcome.Error(error))

        self.begin(at, parts, done)
        # Once begun it is finished: buffers and file must stay until the disk has answered.
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)

    def stop(self) -> None:
        """Let the thread end behind the jobs that it has. Returns when it is gone."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        fault: OSError | None = None
        open_ = True
        while open_:
            batch = [self._jobs.get()]
            while not self._jobs.empty():
                batch.append(self._jobs.get())
            waiting = []
            written = False
            for job in batch:
                if job is None:
                    open_ = False
                    continue
                at, parts, done = job
                waiting.append(done)
                if fault is None:
                    try:
                        _pwrite_all(self._fd, at, parts)
                        written = True
                    except OSError as error:
                        fault = error
            if written and fault is None:
                try:
                    os.fdatasync(self._fd)
                except OSError as error:
                    fault = error
            try:
                for done in waiting:
                    self._token.run_sync_soon(done, None if fault is None else _again(fault))
            except trio.RunFinishedError:
                pass  # the loop is gone and with it everyone who waited


def _again(error: OSError) -> OSError:
    """A fresh exception of the same kind: one object must not be raised in several tasks."""
    fresh = OSError(error.errno, error.strerror)
    fresh.__cause__ = error
    return fresh


class _RealFile:
    def __init__(self, fd: int, path: str, limiter: trio.CapacityLimiter) -> None:
        self._fd = fd
        self._path = path
        self._limiter = limiter
        self._thread: _SyncThread | None = None
        self._fault: OSError | None = None
        self._calls = 0
        self._closed = False

    async def write(self, at: int, parts: Sequence[bytes], *, sync: bool) -> None:
        self._check()
        if not sync:
            await self._in_thread(lambda: _pwrite_all(self._fd, at, parts))
            return
        await self._guarded(self._syncing().write(at, parts))

    def begin_write(self, at: int, parts: Sequence[bytes], done: Done) -> None:
        """See `PromptFile`."""
        self._check()

        def ended(error: OSError | None) -> None:
            if error is not None:
                self._fault = error
            done(error)

        self._syncing().begin(at, parts, ended)

    def _syncing(self) -> _SyncThread:
        if self._thread is None:
            self._thread = _SyncThread(self._fd, f"sync {self._path}")
        return self._thread

    async def pread(self, at: int, size: int) -> bytes:
        if self._closed:
            raise _closed(self._path)
        return await self._in_thread(lambda: _pread_all(self._fd, at, size))

    async def sync(self) -> None:
        self._check()
        await self._guarded(self._in_thread(lambda: os.fdatasync(self._fd)))

    async def truncate(self, size: int) -> None:
        self._check()
        await self._in_thread(lambda: os.ftruncate(self._fd, size))

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            with trio.CancelScope(shield=True):  # waits for the disk only
                await trio.to_thread.run_sync(thread.stop, limiter=self._limiter)
        if not self._calls:
            os.close(self._fd)

    def _check(self) -> None:
        if self._closed:
            raise _closed(self._path)
        if self._fault is not None:
            raise OSError(self._fault.errno, f"{self._path}: an earlier sync failed, which is final: {self._fault}")

    async def _guarded(self, call: Awaitable[None]) -> None:
        try:
            await call
        except OSError as error:
            self._fault = error
            raise

    async def _in_thread(self, call: Callable[[], T]) -> T:
        self._calls += 1
        try:
            return await trio.to_thread.run_sync(call, limiter=self._limiter)
        finally:
            self._calls -= 1
            if self._closed and not self._calls:
                os.close(self._fd)  # closed meanwhile: the last reader takes the descriptor with it, never a reused one


def _closed(path: str) -> OSError:
    return OSError(errno.EBADF, f"{path} is closed")


def _pread_all(fd: int, at: int, size: int) -> bytes:
    data = os.pread(fd, size, at)
    if len(data) == size or not data:
        return data
    parts = [data]
    got = len(data)
    while got < size:
        data = os.pread(fd, size - got, at + got)
        if not data:
            break
        parts.append(data)
        got += len(data)
    return b"".join(parts)


class RealFileSystem:
    """Files of the operating system under `root`, which must exist."""

    def __init__(self, root: str | os.PathLike[str], *, limiter: trio.CapacityLimiter | None = None) -> None:
        self.root = Path(root)
        self._limiter = trio.CapacityLimiter(DISK_THREADS) if limiter is None else limiter

    async def open(self, path: str, *, create: bool = False) -> File:
        full = self._full(path)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        fd = await self._in_thread(lambda: os.open(full, flags, 0o644))
        return _RealFile(fd, path, self._limiter)

    async def listdir(self, path: str) -> list[str]:
        full = self._full(path)
        return sorted(await self._in_thread(lambda: os.listdir(full)))

    async def mkdir(self, path: str) -> None:
        full = self._full(path)
        await self._in_thread(lambda: full.mkdir(exist_ok=True))

    async def rename(self, old: str, new: str) -> None:
        source, target = self._full(old), self._full(new)
        await self._in_thread(lambda: os.replace(source, target))

    async def unlink(self, path: str) -> None:
        full = self._full(path)
        await self._in_thread(lambda: os.unlink(full))

    async def sync_dir(self, path: str) -> None:
        full = self._full(path)

        def sync() -> None:
            fd = os.open(full, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        await self._in_thread(sync)

    async def space(self) -> tuple[int, int]:
        stat = await self._in_thread(lambda: os.statvfs(self.root))
        return stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize

    async def offload(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)

    def _full(self, path: str) -> Path:
        return self.root / check_path(path)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._limiter)


@asynccontextmanager
async def open_file_system(root: str | os.PathLike[str]) -> AsyncIterator[RealFileSystem]:
    """Make `root` if needed and hold its lock file, so that no second process opens the same store.

    Raises `BlockingIOError` when another process has it.
    """
    path = Path(root)
    await trio.to_thread.run_sync(lambda: path.mkdir(parents=True, exist_ok=True))
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, f"{path} is in use by another process") from None
        yield RealFileSystem(path)
    finally:
        os.close(fd)
