"""A disk in memory that can fail in every way a disk fails, on command and repeatably.

Used by tests and by the deterministic simulator: no threads, no clock of its own, and every random choice comes from
the `random.Random` that is passed in. It passes the same suite as the real file system and keeps, beside what a reader
sees, what a power cut would leave:

- File content: the synced bytes, and the writes and truncations since the last sync, in order. `crash()` applies a
  random subset of them, each write torn at 512-byte sectors; where two survive, the later one wins.
- Names: creations, renames and removals since the directory's last sync. `crash()` keeps a prefix of them per
  directory (journalling file systems do so); a rename between two directories stays atomic.

Faults are asked for by rules (`Fault`): the n-th call of a kind on a matching path fails, stalls, or is the moment of
a power cut. `capacity` gives ENOSPC after a short write, `lying` lets a sync succeed and do nothing, `flip` rots a bit.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

import trio

from .fs import File, check_path

__all__ = ["SECTOR_BYTES", "Fault", "MemoryFileSystem", "PowerLost"]

SECTOR_BYTES: Final = 512
"""What a disk writes atomically."""

DURABLE_CALLS: Final = frozenset({"write", "sync", "truncate", "create", "rename", "unlink", "mkdir", "sync_dir"})
"""Calls that change the disk: the points at which a power cut makes a difference."""


class PowerLost(OSError):
    """The machine is off: every call fails until `crash()` has decided what is left."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "power lost")


@dataclass(slots=True)
class Fault:
    """One rule. `kind` is a call name (`write`, `pread`, `sync`, ...) or `*`; `path` a shell pattern."""

    kind: str = "*"
    path: str = "*"
    after: int = 0
    """Matching calls that still go well."""
    times: int = 1 << 60
    """Matching calls that fail, then the rule is spent."""
    errno: int = 0
    """Error to raise; 0: none, the call goes on after the stall."""
    stall_s: float = 0.0
    """Seconds to sleep first."""
    seen: int = 0

    def hit(self, kind: str, path: str) -> bool:
        if (self.kind not in ("*", kind)) or not fnmatchcase(path, self.path):
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


@dataclass(slots=True)
class _Truncate:
    size: int


@dataclass(slots=True)
class _Write:
    at: int
    data: bytes


@dataclass(slots=True, eq=False)
class _Inode:
    serial: int
    now: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    pending: list[_Write | _Truncate] = field(default_factory=list)

    def settle(self) -> None:
        for change in self.pending:
            _apply(self.synced, change)
        self.pending.clear()


def _apply(content: bytearray, change: _Write | _Truncate) -> None:
    if isinstance(change, _Truncate):
        if change.size < len(content):
            del content[change.size :]
        else:
            content.extend(bytes(change.size - len(content)))
        return
    end = change.at + len(change.data)
    if change.at > len(content):
        content.extend(bytes(change.at - len(content)))
    content[change.at : end] = change.data


@dataclass(slots=True)
class _NameChange:
    """`path` becomes `inode` (None: gone); `old` is the source of a rename."""

    path: str
    inode: _Inode | None
    old: str = ""

    @property
    def dirs(self) -> tuple[str, ...]:
        mine = _parent(self.path)
        return (mine, _parent(self.old)) if self.old and _parent(self.old) != mine else (mine,)

    def apply(self, names: dict[str, _Inode]) -> None:
        if self.old:
            names.pop(self.old, None)
        if self.inode is None:
            names.pop(self.path, None)
        else:
            names[self.path] = self.inode


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


class MemoryFileSystem:
    """See the module's docstring. `latency_s` is slept by every call (0: a bare checkpoint)."""

    def __init__(
        self,
        rng: random.Random | None = None,
        *,
        capacity: int = 1 << 40,
        latency_s: float = 0.0,
        jitter_s: float = 0.0,
    ) -> None:
        self.rng = random.Random(0) if rng is None else rng
        self.capacity = capacity
        self.latency_s = latency_s
        self.jitter_s = jitter_s
        self.faults: list[Fault] = []
        self.lying = False
        """Syncs succeed and do nothing."""
        self.durable_calls = 0
        """Calls so far that change the disk."""
        self.power_cut_at = 0
        """The durable call (counted from 1) in which the power goes; 0: never."""
        self.off = False
        self.hands: trio.Nursery | None = None
        """Who carries out what is only begun (`PromptFile`), in the place of threads; None: nothing can be."""
        self._serial = 0
        self._names: dict[str, _Inode] = {}
        self._dirs: set[str] = {""}
        self._durable_names: dict[str, _Inode] = {}
        self._durable_dirs: set[str] = {""}
        self._pending_names: list[_NameChange | str] = []  # a plain string is a mkdir
        self._incarnation = 0

    # -- the protocol ------------------------------------------------------------------------------------------------

    async def open(self, path: str, *, create: bool = False) -> File:
        check_path(path)
        inode = self._names.get(path)
        if inode is None and create:
            await self._call("create", path)
            inode = self._names.get(path)  # two tasks may create at once
            if inode is None:
                if _parent(path) not in self._dirs:
                    raise FileNotFoundError(errno.ENOENT, path)
                inode = self._inode()
                self._change(_NameChange(path, inode))
            self._alive()
        else:
            await self._call("open", path)
            inode = self._names.get(path)
        if inode is None or path in self._dirs:
            raise FileNotFoundError(errno.ENOENT, path)
        kind = _MemoryFile if self.hands is None else _PromptMemoryFile
        return kind(self, path, inode, self._incarnation)

    async def listdir(self, path: str) -> list[str]:
        check_path(path)
        await self._call("listdir", path)
        if path not in self._dirs:
            raise FileNotFoundError(errno.ENOENT, path)
        here = [name for name in (*self._names, *self._dirs) if name and _parent(name) == path]
        return sorted(name.rpartition("/")[2] for name in here)

    async def mkdir(self, path: str) -> None:
        check_path(path)
        await self._call("mkdir", path)
        if path in self._dirs:
            return
        if _parent(path) not in self._dirs:
            raise FileNotFoundError(errno.ENOENT, path)
        self._dirs.add(path)
        self._pending_names.append(path)
        self._alive()

    async def rename(self, old: str, new: str) -> None:
        check_path(old)
        check_path(new)
        await self._call("rename", old)
        inode = self._names.get(old)
        if inode is None or _parent(new) not in self._dirs:
            raise FileNotFoundError(errno.ENOENT, old)
        if old != new:
            self._change(_NameChange(new, inode, old))
        self._alive()

    async def unlink(self, path: str) -> None:
        check_path(path)
        await self._call("unlink", path)
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, path)
        self._change(_NameChange(path, None))
        self._alive()

    async def sync_dir(self, path: str) -> None:
        check_path(path)
        await self._call("sync_dir", path)
        if path not in self._dirs:
            raise FileNotFoundError(errno.ENOENT, path)
        self._alive()
        if not self.lying:
            self._settle_names(path)

    async def space(self) -> tuple[int, int]:
        await self._call("space", "")
        return max(0, self.capacity - self._used()), self.capacity

    # -- what tests and the simulator do -------------------------------------------------------------------------------

    def fail(
        self, kind: str = "*", path: str = "*", *, after: int = 0, times: int = 1 << 60, error: int = errno.EIO
    ) -> Fault:
        """Let matching calls fail with `error`, the first `after` of them excepted."""
        fault = Fault(kind, path, after, times, error)
        self.faults.append(fault)
        return fault

    def stall(self, kind: str, seconds: float, path: str = "*", *, after: int = 0, times: int = 1 << 60) -> Fault:
        """Let matching calls sleep first."""
        fault = Fault(kind, path, after, times, 0, seconds)
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """Drop all rules; a failed open file stays failed."""
        self.faults.clear()

    def flip(self, path: str, at: int, mask: int = 1) -> None:
        """Rot: change bits of one byte, for readers and for good."""
        inode = self._names[path]
        inode.now[at] ^= mask
        if at < len(inode.synced):
            inode.synced[at] ^= mask

    def content(self, path: str) -> bytes:
        """What a reader sees."""
        return bytes(self._names[path].now)

    def replace(self, path: str, content: bytes) -> None:
        """Put other content in place, durably (a stale copy, a file of another node)."""
        inode = self._names.get(path)
        if inode is None:
            inode = self._names[path] = self._durable_names[path] = self._inode()
        inode.now[:] = content
        inode.synced[:] = content
        inode.pending.clear()

    def remove(self, path: str) -> None:
        """Make a file vanish, durably."""
        self._names.pop(path, None)
        self._durable_names.pop(path, None)
        self._pending_names = [c for c in self._pending_names if isinstance(c, str) or c.path != path]

    def paths(self) -> list[str]:
        """All files, sorted."""
        return sorted(self._names)

    def unsynced(self, path: str) -> bool:
        """Whether a power cut could change this file."""
        return bool(self._names[path].pending)

    def crash(self, *, keep: float | None = None) -> None:
        """Cut the power: open files are dead, and unsynced changes survive by chance.

        `keep` is the share of sectors and names that survive: 0 nothing, 1 everything, None drawn anew for each file.
        """
        rng = self.rng
        self._incarnation += 1
        cut: set[str] = set()
        name_share = rng.choice((0.0, 0.5, 1.0)) if keep is None else keep
        for change in self._pending_names:
            dirs = (_parent(change),) if isinstance(change, str) else change.dirs
            if any(d in cut for d in dirs) or rng.random() >= name_share:
                cut.update(dirs)
                if isinstance(change, str):
                    cut.add(change)
            elif isinstance(change, str):
                self._durable_dirs.add(change)
            else:
                change.apply(self._durable_names)
        self._pending_names.clear()
        self._dirs = set(self._durable_dirs)
        self._names = {path: inode for path, inode in self._durable_names.items() if _parent(path) in self._dirs}
        self._durable_names = dict(self._names)
        for inode in sorted(set(self._names.values()), key=lambda i: i.serial):
            share = rng.choice((0.0, 0.0, 0.3, 0.7, 1.0)) if keep is None else keep
            for content_change in inode.pending:
                self._survive(inode.synced, content_change, share)
            inode.pending.clear()
            inode.now[:] = inode.synced
        self.off = False
        self.power_cut_at = 0

    # -- inside ------------------------------------------------------------------------------------------------------

    def _survive(self, content: bytearray, change: _Write | _Truncate, share: float) -> None:
        rng = self.rng
        if isinstance(change, _Truncate):
            if rng.random() < share:
                _apply(content, change)
            return
        at, data = change.at, change.data
        first = at
        while first < at + len(data):
            end = min((first // SECTOR_BYTES + 1) * SECTOR_BYTES, at + len(data))
            if rng.random() < share:
                _apply(content, _Write(first, data[first - at : end - at]))
            first = end

    def _inode(self) -> _Inode:
        self._serial += 1
        return _Inode(self._serial)

    def _change(self, change: _NameChange) -> None:
        change.apply(self._names)
        self._pending_names.append(change)

    def _settle_names(self, directory: str) -> None:
        """Durable: this directory's changes and, order being kept, everything earlier in the directories it touches."""
        wanted = {directory}
        chosen: list[bool] = []
        for change in reversed(self._pending_names):
            dirs = (_parent(change),) if isinstance(change, str) else change.dirs
            take = any(d in wanted for d in dirs)
            if take:
                wanted.update(dirs)
            chosen.append(take)
        rest: list[_NameChange | str] = []
        for change, take in zip(self._pending_names, reversed(chosen), strict=True):
            if not take:
                rest.append(change)
            elif isinstance(change, str):
                self._durable_dirs.add(change)
            else:
                change.apply(self._durable_names)
        self._pending_names = rest

    def _used(self) -> int:
        return sum(len(inode.now) for inode in self._names.values())

    async def _call(self, kind: str, path: str) -> None:
        """The common start of every call: latency, faults, the power."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._alive()
        durable = kind in DURABLE_CALLS
        delay = self.latency_s + (self.rng.random() * self.jitter_s if self.jitter_s else 0.0)
        error = 0
        for fault in self.faults:
            if fault.hit(kind, path):
                delay += fault.stall_s
                error = error or fault.errno
        await self._take(delay, shielded=durable)
        self._alive()
        if error:
            raise OSError(error, f"injected: {kind} {path}")
        if durable:
            self.durable_calls += 1
            if self.durable_calls == self.power_cut_at:
                self.off = True  # in the middle of this call: its change is left pending, `crash` decides

    async def _take(self, seconds: float, *, shielded: bool) -> None:
        """Let a call last so long; what changes the disk is finished once it has begun, as in a thread."""
        if not seconds:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        with trio.CancelScope(shield=shielded):
            await trio.sleep(seconds)

    def _alive(self) -> None:
        if self.off:
            raise PowerLost


class _MemoryFile:
    def __init__(self, fs: MemoryFileSystem, path: str, inode: _Inode, incarnation: int) -> None:
        self._fs = fs
        self._path = path
        self._inode = inode
        self._incarnation = incarnation
        self._fault = 0
        self._closed = False

    async def write(self, at: int, parts: Sequence[bytes], *, sync: bool) -> None:
        fs = self._fs
        self._check()
        data = b"".join(parts)
        try:
            await fs._call("write", self._path)
            self._check()
            growth = at + len(data) - len(self._inode.now)
            if growth > 0 and (room := fs.capacity - fs._used() - growth) < 0:
                self._put(at, data[: max(0, len(data) + room)])  # a short write comes first
                raise OSError(errno.ENOSPC, f"no space: {self._path}")
            self._put(at, data)
            fs._alive()
            if sync:
                with trio.CancelScope(shield=True):
                    await fs._call("sync", self._path)
                self._settle()
        except OSError as error:
            if sync:
                self._fault = error.errno or errno.EIO
            raise

    async def pread(self, at: int, size: int) -> bytes:
        if self._closed:
            raise OSError(errno.EBADF, f"{self._path} is closed")
        await self._fs._call("pread", self._path)
        return bytes(self._inode.now[at : at + size])

    async def sync(self) -> None:
        self._check()
        try:
            await self._fs._call("sync", self._path)
            self._check()
        except OSError as error:
            self._fault = error.errno or errno.EIO
            raise
        self._settle()

    async def truncate(self, size: int) -> None:
        self._check()
        await self._fs._call("truncate", self._path)
        self._check()
        change = _Truncate(size)
        _apply(self._inode.now, change)
        self._inode.pending.append(change)
        self._fs._alive()

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _put(self, at: int, data: bytes) -> None:
        if data:
            change = _Write(at, data)
            _apply(self._inode.now, change)
            self._inode.pending.append(change)

    def _settle(self) -> None:
        self._fs._alive()
        if not self._fs.lying:
            self._inode.settle()

    def _check(self) -> None:
        if self._closed or self._incarnation != self._fs._incarnation:
            raise OSError(errno.EBADF, f"{self._path} is closed")
        if self._fault:
            raise OSError(self._fault, f"{self._path}: an earlier sync failed, which is final")


class _PromptMemoryFile(_MemoryFile):
    """See `PromptFile`."""

    def begin_write(self, at: int, parts: Sequence[bytes], done: Callable[[OSError | None], None]) -> None:
        self._check()
        assert self._fs.hands is not None, "opened with hands"
        self._fs.hands.start_soon(self._carry_out, at, parts, done)

    async def _carry_out(self, at: int, parts: Sequence[bytes], done: Callable[[OSError | None], None]) -> None:
        error: OSError | None = OSError(errno.EIO, "nobody is left to write")
        try:
            await self.write(at, parts, sync=True)
            error = None
        except OSError as failed:
            error = failed
        finally:
            done(error)
