"""A disk that fails, fills up, stalls or lies at any one call: nothing that was reported done is lost unnoticed."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from broker.store.commit_log import open_commit_log
from broker.store.errors import NoSpace, StoreError
from broker.store.fs import RealFileSystem
from broker.store.fs_memory import MemoryFileSystem
from broker.store.marks import MarkValues, open_marks
from broker.store.recovery import Verdict
from tests.store.support import SEGMENT, chain, data, fill, memory, whole
from tests.store.test_crash_points import Story, check, count_calls, run, workload


@pytest.mark.trio
@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
async def test_an_error_at_every_call_loses_nothing(error: int, autojump_clock: trio.testing.MockClock) -> None:
    calls = await count_calls()
    for at in range(calls):
        fs = MemoryFileSystem(random.Random(at))
        fault = fs.fail("*", after=at, times=1, error=error)
        story = Story()
        try:
            async with open_commit_log(fs) as log:
                await workload(log, story)
        except* (OSError, StoreError):
            pass
        assert fault.seen >= at
        fs.heal()
        await check(fs, story)


@pytest.mark.trio
async def test_a_lying_disk_is_caught_by_the_power_cut() -> None:
    fs = memory()
    story = Story()
    fs.lying = True
    await run(fs, story)
    fs.lying = False
    fs.crash(keep=0.0)
    with pytest.raises((AssertionError, ExceptionGroup)):
        await check(fs, story)


@pytest.mark.trio
async def test_a_restart_needs_no_space() -> None:
    fs = memory()
    async with open_commit_log(fs, clean_on_exit=False) as log:
        entries = await fill(log, 150)
        await log.quiet()
    path = "commitlog/00000000000000065536"
    torn = bytearray(fs.content(path))
    end = 4096 + entries[-1].end % 65536
    torn[end : end + 50] = b"\x01" * 50  # a tail that has to be cut
    fs.replace(path, bytes(torn))
    fs.capacity = fs._used()
    async with open_commit_log(fs) as log:
        assert log.verdict in (Verdict.TORN, Verdict.SUSPECT)
        assert log.fault is None
        assert data(await whole(log)) == data(entries)


@pytest.mark.trio
async def test_a_stalled_sync_can_be_seen(autojump_clock: trio.testing.MockClock) -> None:
    fs = memory()
    async with open_commit_log(fs) as log:
        await fill(log, 3)
        fs.stall("sync", 5.0, "commitlog/*")
        async with trio.open_nursery() as nursery:
            started = trio.current_time()
            nursery.start_soon(log.append, chain(log.last, 1))
            await trio.sleep(2.0)
            assert log.sync_started_at is not None
            assert trio.current_time() - log.sync_started_at == pytest.approx(2.0)
        assert trio.current_time() - started == pytest.approx(5.0)
        assert log.sync_started_at is None
        assert log.last.index == 4


@pytest.mark.trio
async def test_an_append_cancelled_while_it_waits_for_room_has_written_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    fs = memory()
    async with open_commit_log(fs) as log:
        entries = await fill(log, 116)
        await log.quiet()
        fs.stall("write", 60.0, "commitlog/*.new")
        await log.append(chain(log.last, 100)[:2])  # the filler, and the first of the prepared segment
        await log.append(chain(log.last, 115)[:-1])
        last = log.last
        with trio.move_on_after(1.0) as scope:
            await log.append(chain(last, 2))  # a third segment, which takes a minute to prepare
        assert scope.cancelled_caught
        assert log.last.end == 2 * SEGMENT  # what fits the second segment was written, the rest was not
        assert log.fault is None
        fs.heal()
        await log.append(chain(log.last, 30))
        assert len(await whole(log)) == log.last.index > len(entries)


@pytest.mark.trio
async def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def short(fd: int, parts: Sequence[bytes], at: int) -> int:
        return real(fd, [b"".join(bytes(part) for part in parts)[:7]], at)

    monkeypatch.setattr(os, "pwritev", short)
    fs = RealFileSystem(tmp_path)
    file = await fs.open("a", create=True)
    await file.write(2, [b"0123", b"", b"456789", b"abcdefghij"], sync=True)
    assert await file.pread(0, 100) == b"\0\x000123456789abcdefghij"
    await file.aclose()


@pytest.mark.trio
async def test_a_full_disk_while_the_file_grows_is_told_as_such() -> None:
    fs = memory()
    fs.capacity = 300_000
    async with open_commit_log(fs) as log:
        with pytest.raises(NoSpace, match="no space left"):
            await fill(log, 2000)
        assert log.fault is None
        await log.truncate_after(log.last.index - 5)
        assert data(await whole(log))


@pytest.mark.trio
async def test_marks_survive_one_bad_slot_and_every_torn_write() -> None:
    values = MarkValues(7, 4096, 12, chain()[0].id, chain()[0].id, True, b"pending")
    assert MarkValues.unpack(values.pack()) == values
    for victim in range(2):
        fs = memory(victim)
        marks = await open_marks(fs)
        for dispatched in (1, 2, 3):
            await marks.put(dispatched=dispatched, pending=b"p" * dispatched)
        await marks.aclose()
        good = fs.content("marks")
        for at in range(120):
            rotten = bytearray(good)
            rotten[victim * 65536 + at] ^= 0x40
            fs.replace("marks", bytes(rotten))
            again = await open_marks(fs)
            assert not again.lost
            found = again.values.dispatched
            assert found in (2, 3)
            assert again.values.pending == b"p" * found
            await again.aclose()
    for seed in range(20):
        fs = memory(seed)
        marks = await open_marks(fs)
        await marks.put(dispatched=5, pending=b"x" * 3000)
        fs.power_cut_at = fs.durable_calls + 1 + seed % 2
        with pytest.raises(OSError, match="power"):
            await marks.put(dispatched=6, pending=b"y" * 3000)
        fs.crash()
        again = await open_marks(fs)
        assert again.values.dispatched in (5, 6)
        await again.aclose()
    marks = await open_marks(memory())
    await marks.put(dispatched=9, pending=bytes(1 << 20))
    await marks.aclose()
