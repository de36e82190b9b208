"""The in-memory disk loses, tears, fails and lies exactly when told, and repeatably."""

from __future__ import annotations

import errno
import random

import pytest
import trio

from broker.store.fs_memory import SECTOR_BYTES, MemoryFileSystem, PowerLost


@pytest.mark.trio
async def test_a_crash_keeps_synced_bytes_and_may_lose_the_rest() -> None:
    fs = MemoryFileSystem(random.Random(1))
    file = await fs.open("a", create=True)
    await fs.sync_dir("")
    await file.write(0, [b"kept"], sync=True)
    await file.write(4, [b"lost"], sync=False)
    assert fs.unsynced("a")
    fs.crash(keep=0.0)
    assert fs.content("a") == b"kept"
    with pytest.raises(OSError, match="closed"):
        await file.write(0, [b"dead"], sync=False)


@pytest.mark.trio
async def test_a_torn_write_keeps_whole_sectors() -> None:
    seen = set()
    for seed in range(30):
        fs = MemoryFileSystem(random.Random(seed))
        file = await fs.open("a", create=True)
        await file.write(0, [bytes(4 * SECTOR_BYTES)], sync=True)
        await fs.sync_dir("")
        await file.write(100, [b"x" * (3 * SECTOR_BYTES)], sync=False)
        fs.crash(keep=0.5)
        content = fs.content("a")
        pieces = [content[100:512], content[512:1024], content[1024:1536], content[1536:1636]]
        assert all(set(piece) in ({0}, {ord("x")}) for piece in pieces)
        seen.add(tuple(piece[0] for piece in pieces))
    assert len(seen) > 5


@pytest.mark.trio
async def test_names_need_a_directory_sync() -> None:
    fs = MemoryFileSystem(random.Random(1))
    await fs.mkdir("d")
    await fs.sync_dir("")
    one = await fs.open("d/one", create=True)
    await one.write(0, [b"1"], sync=True)
    await fs.sync_dir("d")
    await fs.open("d/two", create=True)
    await fs.rename("d/one", "d/three")
    fs.crash(keep=0.0)
    assert fs.paths() == ["d/one"]
    assert fs.content("d/one") == b"1"


@pytest.mark.trio
async def test_a_rename_between_directories_is_atomic() -> None:
    outcomes = set()
    for seed in range(40):
        fs = MemoryFileSystem(random.Random(seed))
        await fs.mkdir("from")
        await fs.mkdir("to")
        await fs.open("from/a", create=True)
        await fs.open("to/b", create=True)
        for directory in ("", "from", "to"):
            await fs.sync_dir(directory)
        await fs.unlink("to/b")
        await fs.rename("from/a", "to/a")
        await fs.open("from/c", create=True)
        fs.crash()
        outcomes.add(tuple(fs.paths()))
    assert outcomes <= {("from/a", "to/b"), ("from/a",), ("to/a",), ("from/c", "to/a")}
    assert len(outcomes) > 2


@pytest.mark.trio
async def test_the_power_goes_in_the_middle_of_the_nth_call() -> None:
    fs = MemoryFileSystem(random.Random(1))
    fs.power_cut_at = 3
    file = await fs.open("a", create=True)
    await fs.sync_dir("")
    with pytest.raises(PowerLost):
        await file.write(0, [b"abc"], sync=True)
    with pytest.raises(PowerLost):
        await fs.listdir("")
    fs.crash(keep=1.0)
    assert fs.content("a") == b"abc"
    assert await fs.listdir("") == ["a"]


@pytest.mark.trio
async def test_a_failed_sync_is_final() -> None:
    fs = MemoryFileSystem(random.Random(1))
    file = await fs.open("a", create=True)
    fs.fail("sync", "a", after=1, times=1)
    await file.write(0, [b"a"], sync=True)
    with pytest.raises(OSError, match="injected"):
        await file.write(1, [b"b"], sync=True)
    with pytest.raises(OSError, match="final"):
        await file.sync()
    with pytest.raises(OSError, match="final"):
        await file.write(1, [b"b"], sync=False)


@pytest.mark.trio
async def test_a_full_disk_takes_a_part_first() -> None:
    fs = MemoryFileSystem(random.Random(1), capacity=10)
    file = await fs.open("a", create=True)
    with pytest.raises(OSError, match="no space") as caught:
        await file.write(0, [b"0123456789abc"], sync=False)
    assert caught.value.errno == errno.ENOSPC
    assert fs.content("a") == b"0123456789"
    await file.write(2, [b"xy"], sync=True)
    assert await fs.space() == (0, 10)


@pytest.mark.trio
async def test_a_lying_disk_loses_what_it_called_synced() -> None:
    fs = MemoryFileSystem(random.Random(1))
    file = await fs.open("a", create=True)
    await fs.sync_dir("")
    fs.lying = True
    await file.write(0, [b"gone"], sync=True)
    fs.crash(keep=0.0)
    assert fs.content("a") == b""


@pytest.mark.trio
async def test_rot_and_stalls(autojump_clock: trio.testing.MockClock) -> None:
    fs = MemoryFileSystem(random.Random(1))
    file = await fs.open("a", create=True)
    await file.write(0, [b"abc"], sync=True)
    fs.flip("a", 1, 0x01)
    assert await file.pread(0, 3) == b"acc"
    fs.stall("pread", 7.0)
    before = trio.current_time()
    await file.pread(0, 1)
    assert trio.current_time() - before == pytest.approx(7.0)
    fs.heal()
    fs.crash()
    assert fs.paths() in (["a"], [])


@pytest.mark.trio
async def test_equal_seeds_lose_equal_bytes() -> None:
    async def run(seed: int) -> bytes:
        fs = MemoryFileSystem(random.Random(seed))
        file = await fs.open("a", create=True)
        await fs.sync_dir("")
        for i in range(20):
            await file.write(i * 700, [bytes([i + 1]) * 700], sync=False)
        fs.crash(keep=0.5)
        return fs.content("a")

    assert await run(5) == await run(5)
    assert await run(5) != await run(6)
