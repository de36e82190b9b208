"""`python -m trimq.testing.troubled_broker TROUBLE_FILE -c broker-a.conf ...`: a broker in a world that breaks.

The broker is the real one, on real sockets and real files; between it and them stand thin layers that do what the
trouble file says (`trimq.testing.trouble`). That is the place where a drill can cut one direction of one link, or let
fdatasync fail, without being root.

A cut link behaves as TCP does when packets are dropped: what was sent waits and arrives late, nothing is reset, and a
new connection does not come about. Every pair of nodes has one connection, so it is gated where it was opened.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from broker.__main__ import main as broker_main
from broker.env import Env
from broker.store.fs import File, FileSystem, offload
from trimq.env import Clock, Network, Stream, StreamHandler, TaskStatus
from trimq.testing.trouble import Trouble, read_trouble

__all__ = ["TroubledClock", "TroubledFiles", "TroubledNetwork", "World", "main", "surround"]

T = TypeVar("T")

LOOK_EVERY_S = 0.01


class World:
    """The trouble as it is now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.now = read_trouble(path)
        self._seen = self._stamp()
        self._changed = trio.Event()

    async def until_it_is(self, trouble: Trouble) -> None:
        """Return when the file has been read that says exactly this."""
        while self.now != trouble:
            await self._changed.wait()

    async def until(self, mended: str) -> None:
        """Return when the named field of the trouble is false again."""
        while getattr(self.now, mended):
            await self._changed.wait()

    async def until_reachable(self, port: int, *, sending: bool, receiving: bool) -> None:
        """Return when nothing is cut between this node and the peer port, in the directions asked for."""
        while (sending and port in self.now.cut_to) or (receiving and port in self.now.cut_from):
            await self._changed.wait()

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the file whenever it has changed, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(LOOK_EVERY_S)
            stamp = self._stamp()
            if stamp == self._seen:
                continue
            self._seen = stamp
            before, self.now = self.now, read_trouble(self._path)
            self._changed.set()
            self._changed = trio.Event()
            self._stall(before)

    def _stall(self, before: Trouble) -> None:
        if self.now.stall_number != before.stall_number:
            time.sleep(self.now.stall_ms / 1000)  # noqa: TID251 - stopping the whole loop is the fault

    def _stamp(self) -> tuple[int, int]:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino


class TroubledClock:
    """A wall clock that may be off."""

    def __init__(self, clock: Clock, world: World) -> None:
        self._clock = clock
        self._world = world

    def wall_ms(self) -> int:
        return self._clock.wall_ms() + self._world.now.wall_offset_ms


class _GatedStream:
    """A connection to a peer. What is received while the way is cut is kept back, what is sent waits."""

    def __init__(self, inner: Stream, port: int, world: World) -> None:
        self._inner = inner
        self._port = port
        self._world = world
        self.peer: str = getattr(inner, "peer", "")
        self.local: str = getattr(inner, "local", "")

    async def receive_some(self, max_bytes: int) -> bytes:
        data = await self._inner.receive_some(max_bytes)
        await self._world.until_reachable(self._port, sending=False, receiving=True)
        return data

    async def send_all(self, data: bytes) -> None:
        await self._world.until_reachable(self._port, sending=True, receiving=False)
        await self._inner.send_all(data)

    async def aclose(self) -> None:
        await self._inner.aclose()


class TroubledNetwork:
    """The network, with gates in the connections that this node opens."""

    def __init__(self, network: Network, world: World) -> None:
        self._network = network
        self._world = world

    async def connect(self, host: str, port: int) -> Stream:
        await self._world.until_reachable(port, sending=True, receiving=True)
        return _GatedStream(await self._network.connect(host, port), port, self._world)

    async def serve(self, handler: StreamHandler, host: str, port: int, *, task_status: TaskStatus) -> None:
        await self._network.serve(handler, host, port, task_status=task_status)


class _TroubledFile:
    def __init__(self, inner: File, path: Path, world: World) -> None:
        self._inner = inner
        self._path = path
        self._world = world
        self._size = path.stat().st_size

    async def write(self, at: int, parts: Sequence[bytes], *, sync: bool) -> None:
        end = at + sum(map(len, parts))
        await self._before(grows_to=end)
        if not sync:
            await self._inner.write(at, parts, sync=False)
        else:
            await self._before_sync()
            await self._inner.write(at, parts, sync=not self._world.now.sync_fails)
            self._check_sync()
        self._size = max(self._size, end)

    async def pread(self, at: int, size: int) -> bytes:
        return await self._inner.pread(at, size)

    async def sync(self) -> None:
        await self._before()
        await self._before_sync()
        self._check_sync()
        await self._inner.sync()

    async def truncate(self, size: int) -> None:
        await self._before(grows_to=size)
        await self._inner.truncate(size)
        self._size = size

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _before(self, grows_to: int = 0) -> None:
        with trio.CancelScope(shield=True):  # a disk call that has begun outlives cancellation
            await self._world.until("disk_hangs")
        if self._world.now.disk_full and grows_to > self._size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    async def _before_sync(self) -> None:
        if self._world.now.sync_delay_ms:
            with trio.CancelScope(shield=True):
                await trio.sleep(self._world.now.sync_delay_ms / 1000)

    def _check_sync(self) -> None:
        if self._world.now.sync_fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self._path))


class TroubledFiles:
    """A store's files on a disk in trouble."""

    def __init__(self, inner: FileSystem, root: Path, world: World) -> None:
        self._inner = inner
        self._root = root
        self._world = world

    async def open(self, path: str, *, create: bool = False) -> File:
        full = self._root / path
        if self._world.now.disk_full and create and not full.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(full))
        return _TroubledFile(await self._inner.open(path, create=create), full, self._world)

    async def listdir(self, path: str) -> list[str]:
        return await self._inner.listdir(path)

    async def mkdir(self, path: str) -> None:
        await self._inner.mkdir(path)

    async def rename(self, old: str, new: str) -> None:
        await self._inner.rename(old, new)

    async def unlink(self, path: str) -> None:
        await self._inner.unlink(path)

    async def sync_dir(self, path: str) -> None:
        await self._inner.sync_dir(path)

    async def space(self) -> tuple[int, int]:
        free, total = await self._inner.space()
        return (0 if self._world.now.disk_full else free), total

    async def offload(self, work: Callable[[], T]) -> T:
        return await offload(self._inner, work)


@asynccontextmanager
async def surround(path: Path, env: Env) -> AsyncIterator[Env]:
    """The same environment, in the trouble that the file names."""
    world = World(path)

    @asynccontextmanager
    async def open_fs(root: str) -> AsyncIterator[FileSystem]:
        async with env.open_fs(root) as files:
            yield TroubledFiles(files, Path(root), world)

    async with trio.open_nursery() as nursery:
        await nursery.start(world.watch)
        yield replace(
            env,
            clock=TroubledClock(env.clock, world),
            network=TroubledNetwork(env.network, world),
            open_fs=open_fs,
        )
        nursery.cancel_scope.cancel()


def main() -> None:
    """Entry point of the process."""
    path = Path(sys.argv[1])
    broker_main(sys.argv[2:], surround=partial(surround, path))


if __name__ == "__main__":
    main()
