"""One suite over every file system: what the store relies on holds for the fake as for the real thing."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import pytest
import trio

from broker.store.fs import (
    File,
    FileSystem,
    PromptFile,
    RealFileSystem,
    check_path,
    file_size,
    open_file_system,
    read_whole,
    write_whole,
)
from broker.store.fs_memory import MemoryFileSystem


@pytest.fixture(params=["real", "memory"])
def fs(request: pytest.FixtureRequest, tmp_path: Path) -> FileSystem:
    if request.param == "real":
        return RealFileSystem(tmp_path)
    return MemoryFileSystem(random.Random(1))


@pytest.mark.trio
async def test_written_parts_lie_back_to_back(fs: FileSystem) -> None:
    file = await fs.open("a", create=True)
    await file.write(3, [b"one", b"", b"two"], sync=True)
    await file.write(0, [b"xyz"], sync=False)
    assert await file.pread(0, 100) == b"xyzonetwo"
    assert await file.pread(3, 3) == b"one"
    assert await file.pread(9, 5) == b""
    await file.sync()
    await file.aclose()
    await file.aclose()


@pytest.mark.trio
async def test_more_parts_than_one_system_call_takes(fs: FileSystem) -> None:
    parts = [bytes([i % 251]) * (i % 7) for i in range(3000)]
    file = await fs.open("a", create=True)
    await file.write(0, parts, sync=True)
    assert await file.pread(0, 1 << 20) == b"".join(parts)
    await file.aclose()


@pytest.mark.trio
async def test_open_needs_the_file_or_create_and_never_cuts(fs: FileSystem) -> None:
    with pytest.raises(FileNotFoundError):
        await fs.open("a")
    file = await fs.open("a", create=True)
    await file.write(0, [b"abc"], sync=True)
    await file.aclose()
    again = await fs.open("a", create=True)
    assert await again.pread(0, 10) == b"abc"
    await again.aclose()
    with pytest.raises(FileNotFoundError):
        await fs.open("no/such/dir", create=True)


@pytest.mark.trio
async def test_two_handles_see_one_file(fs: FileSystem) -> None:
    one = await fs.open("a", create=True)
    two = await fs.open("a")
    await one.write(0, [b"abc"], sync=True)
    await two.write(3, [b"def"], sync=False)
    assert await one.pread(0, 10) == b"abcdef"
    await one.aclose()
    await two.aclose()


@pytest.mark.trio
async def test_truncate_cuts_and_extends_with_zeros(fs: FileSystem) -> None:
    file = await fs.open("a", create=True)
    await file.write(0, [b"abcdef"], sync=True)
    await file.truncate(2)
    await file.truncate(4)
    assert await file.pread(0, 10) == b"ab\0\0"
    assert await file_size(file) == 4
    await file.truncate(0)
    assert await file_size(file) == 0
    await file.truncate(70_001)
    assert await file_size(file) == 70_001
    await file.aclose()


@pytest.mark.trio
async def test_names(fs: FileSystem) -> None:
    await fs.mkdir("d")
    await fs.mkdir("d")
    for name in ("d/b", "d/a", "c"):
        await (await fs.open(name, create=True)).aclose()
    assert await fs.listdir("d") == ["a", "b"]
    assert await fs.listdir("") == ["c", "d"]
    await fs.rename("d/a", "d/b")
    await fs.rename("c", "d/c")
    assert await fs.listdir("d") == ["b", "c"]
    await fs.unlink("d/b")
    await fs.sync_dir("d")
    await fs.sync_dir("")
    with pytest.raises(FileNotFoundError):
        await fs.unlink("d/b")
    with pytest.raises(FileNotFoundError):
        await fs.rename("d/b", "d/x")
    with pytest.raises(FileNotFoundError):
        await fs.listdir("nowhere")
    with pytest.raises(FileNotFoundError):
        await fs.mkdir("nowhere/below")
    free, total = await fs.space()
    assert 0 < free <= total


@pytest.mark.trio
async def test_a_removed_file_stays_readable_while_open(fs: FileSystem) -> None:
    file = await fs.open("a", create=True)
    await file.write(0, [b"abc"], sync=True)
    await fs.unlink("a")
    assert await file.pread(0, 3) == b"abc"
    await file.aclose()


@pytest.mark.trio
async def test_a_closed_file_refuses(fs: FileSystem) -> None:
    file = await fs.open("a", create=True)
    await file.aclose()
    with pytest.raises(OSError, match="closed"):
        await file.write(0, [b"x"], sync=True)
    with pytest.raises(OSError, match="closed"):
        await file.pread(0, 1)


@pytest.mark.trio
async def test_writes_of_many_tasks_all_arrive(fs: FileSystem) -> None:
    file = await fs.open("a", create=True)

    async def write(i: int) -> None:
        await file.write(i * 10, [b"%010d" % i], sync=i % 2 == 0)

    async with trio.open_nursery() as nursery:
        for i in range(40):
            nursery.start_soon(write, i)
    assert await file.pread(0, 400) == b"".join(b"%010d" % i for i in range(40))
    await file.aclose()


@pytest.mark.trio
async def test_a_write_that_has_begun_outlives_cancellation(fs: FileSystem) -> None:
    file = await fs.open("a", create=True)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: file.write(0, [b"x" * 100_000], sync=True))
            await trio.lowlevel.checkpoint()
            scope.cancel()
    assert len(await file.pread(0, 200_000)) in (0, 100_000)
    await file.aclose()


@pytest.mark.trio
async def test_whole_files(fs: FileSystem) -> None:
    await fs.mkdir("d")
    await write_whole(fs, "d/a", [b"x" * 3_000_000, b"end"])
    await write_whole(fs, "d/a", [b"short"])
    assert await read_whole(fs, "d/a") == b"short"
    assert await fs.listdir("d") == ["a"]
    with pytest.raises(OSError, match="longer"):
        await read_whole(fs, "d/a", limit=3)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "a//b", "a/", "."])
def test_paths_stay_inside_the_root(path: str) -> None:
    with pytest.raises(ValueError, match="inside the store"):
        check_path(path)


@pytest.mark.trio
async def test_a_store_is_opened_once(tmp_path: Path) -> None:
    async with open_file_system(tmp_path / "new" / "root") as fs:
        assert await fs.listdir("") == ["lock"]
        with pytest.raises(BlockingIOError, match="in use"):
            async with open_file_system(tmp_path / "new" / "root"):
                pass
    async with open_file_system(tmp_path / "new" / "root"):
        pass


class _BothFile(File, PromptFile, Protocol):
    """A file that takes writes either way."""


@asynccontextmanager
async def _prompt_file(kind: str, root: Path) -> AsyncIterator[tuple[_BothFile, MemoryFileSystem]]:
    """An open file, and the disk in memory that it is on if it is on one."""
    async with trio.open_nursery() as hands:
        memory = MemoryFileSystem(random.Random(1))
        memory.hands = hands
        fs: FileSystem = memory if kind == "memory" else RealFileSystem(root)
        file = await fs.open("a", create=True)
        assert isinstance(file, PromptFile)
        yield cast("_BothFile", file), memory
        await file.aclose()


@pytest.mark.trio
@pytest.mark.parametrize("kind", ["real", "memory"])
async def test_writes_that_are_only_begun_end_on_the_disk_and_in_a_later_pass(kind: str, tmp_path: Path) -> None:
    async with _prompt_file(kind, tmp_path) as (file, memory):
        ended: list[tuple[int, OSError | None]] = []
        all_ended = trio.Event()

        def note(number: int, error: OSError | None) -> None:
            ended.append((number, error))
            if len(ended) == 3:
                all_ended.set()

        for number in range(3):
            file.begin_write(number * 4, [b"%d" % number, b"abc"], partial(note, number))
        assert ended == []
        with trio.fail_after(10):
            await all_ended.wait()
        assert sorted(ended) == [(0, None), (1, None), (2, None)]
        assert await file.pread(0, 100) == b"0abc1abc2abc"
        if kind == "memory":
            assert not memory.unsynced("a")


@pytest.mark.trio
@pytest.mark.parametrize("kind", ["real", "memory"])
async def test_a_begun_write_that_fails_is_final_for_the_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _prompt_file(kind, tmp_path) as (file, memory):
        if kind == "memory":
            memory.fail("sync", "a", times=1)
        else:
            monkeypatch.setattr(os, "fdatasync", _broken)
        ended: list[OSError | None] = []
        told = trio.Event()

        def note(error: OSError | None) -> None:
            ended.append(error)
            told.set()

        file.begin_write(0, [b"abc"], note)
        with trio.fail_after(10):
            await told.wait()
        monkeypatch.undo()
        assert [error.errno for error in ended if error is not None] == [errno.EIO]
        with pytest.raises(OSError, match="final"):
            await file.write(0, [b"abc"], sync=True)
        with pytest.raises(OSError, match="final"):
            file.begin_write(0, [b"abc"], note)
        assert len(ended) == 1


def _broken(_fd: int) -> None:
    raise OSError(errno.EIO, "broken")
