"""A log that no entry can mend is replaced by a peer's, whole or not at all, wherever the power goes."""

from __future__ import annotations

import random
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.store.commit_log import CommitLog, open_commit_log
from broker.store.entry import Entry
from broker.store.errors import LogUnusable, StoreError
from broker.store.fs import FileSystem
from broker.store.fs_memory import MemoryFileSystem
from broker.store.install import Export, ExportFile, Staging, finish_install, open_export
from broker.store.recovery import Verdict
from broker.store.snapshot import META_DIR, Snapshot, read_snapshot, write_snapshot
from tests.store.support import chain, data, fill, memory, whole


class Source:
    """A log and a snapshot at its last entry but ten."""

    def __init__(self, fs: FileSystem, log: CommitLog) -> None:
        self.fs, self.log, self.pins = fs, log, list[int]()

    async def snapshot(self) -> None:
        at = self.log.entry_id(max(self.log.last.index - 10, self.log.first_index - 1))
        assert at is not None
        await self.fs.mkdir(META_DIR)
        await write_snapshot(self.fs, Snapshot(self.log.lineage, at, b"tables", array("Q"), array("Q"), array("Q")))


@asynccontextmanager
async def source(count: int = 400, *, drop: int = 1, fs: MemoryFileSystem | None = None) -> AsyncIterator[Source]:
    fs = fs or memory(9)
    async with open_commit_log(fs, clean_on_exit=False) as log:
        await fill(log, count, step=20)
        await log.drop_first_segments(drop)
        yield Source(fs, log)


async def ship(export: Export, staging: Staging, *, step: int = 10_000, stop_after: int = 1 << 60) -> bool:
    """Copy as the driver does. False when it stopped before the end."""
    have = await staging.begin(export.files, export.lineage, export.last)
    chunks = 0
    for file in export.files:
        at = have[file.name]
        while at < file.size:
            if chunks == stop_after:
                return False
            part = await export.read(file.name, at, step)
            await staging.write(file.name, at, part)
            at += len(part)
            chunks += 1
    return True


async def check(fs: FileSystem, entries: list[Entry], first: int) -> None:
    async with open_commit_log(fs, clean_on_exit=False) as log:
        assert log.fault is None, log.fault
        assert log.verdict is Verdict.CRASH
        assert log.first_index == first
        assert data(await whole(log)) == data(entries)
        await log.append(chain(log.last, 200, term=3))
    found = await read_snapshot(fs, log.marks.values.dispatched)
    assert found is not None
    assert found.machine == b"tables"


@pytest.mark.trio
async def test_a_log_is_replaced_by_the_peers_and_goes_on() -> None:
    target = memory(2)
    async with open_commit_log(target) as old:
        await fill(old, 250)
    async with source() as peer:
        expected = await whole(peer.log)
        async with open_export(peer) as export:
            assert peer.pins == [peer.log.first_index]
            staging = Staging(target)
            assert await ship(export, staging)
            await staging.finish()
        assert peer.pins == []
        # The switch has not happened: the old log is still what is open.
        async with open_commit_log(target) as old:
            assert old.first_index == 1
        assert await finish_install(target)
        assert not await finish_install(target)
        await check(target, expected, peer.log.first_index)
    assert not [path for path in target.paths() if path.startswith("install/")]


@pytest.mark.trio
async def test_an_interrupted_transfer_goes_on_where_it_was() -> None:
    target = memory(2)
    async with source() as peer:
        expected = await whole(peer.log)
        async with open_export(peer) as export:
            staging = Staging(target)
            assert not await ship(export, staging, stop_after=7)
            await staging.aclose()
            again = Staging(target)
            have = await again.begin(export.files, export.lineage, export.last)
            assert sum(have.values()) > 60_000
            assert await ship(export, again)
            await again.finish()
        assert await finish_install(target)
        await check(target, expected, peer.log.first_index)


@pytest.mark.trio
async def test_another_export_starts_over() -> None:
    target = memory(2)
    async with source() as peer:
        async with open_export(peer) as export:
            staging = Staging(target)
            await ship(export, staging, stop_after=5)
        await fill(peer.log, 5)
        async with open_export(peer) as export:
            have = await staging.begin(export.files, export.lineage, export.last)
            assert set(have.values()) == {0}
            await staging.abandon()
    assert not [path for path in target.paths() if path.startswith("install/")]


@pytest.mark.trio
async def test_nothing_that_does_not_verify_is_installed() -> None:
    async with source() as peer, open_export(peer) as export:
        for number, file in enumerate(export.files):
            for at in (20, file.size // 2, file.size - 1):
                target = memory(2)
                staging = Staging(target)
                await ship(export, staging)
                staged = "install/" + file.name.replace("/", "@")
                target.flip(staged, at)
                if at == 20 and number:  # one bad copy of a header is no harm, see below
                    target.flip(staged, 2048 + 20)
                harmless = number > 0 and not any(target.content(staged)[at + 1 :]) and at > 4096
                try:
                    await staging.finish()
                except StoreError:
                    assert not await finish_install(target)
                    assert not [path for path in target.paths() if path.startswith("install/")]
                else:
                    assert harmless, (file, at)  # in a filler's gap, which nobody reads
        target = memory(2)
        staging = Staging(target)
        await ship(export, staging, stop_after=9)
        with pytest.raises(StoreError, match="not complete"):
            await staging.finish()


@pytest.mark.trio
async def test_only_what_was_announced_comes_in_and_in_order() -> None:
    async with source() as peer, open_export(peer) as export:
        staging = Staging(memory(2))
        await staging.begin(export.files, export.lineage, export.last)
        name = export.files[1].name
        for call in ((name, 5, b"x"), ("commitlog/00000000000000000009", 0, b"x"), (name, 0, bytes(1 << 20))):
            with pytest.raises(StoreError, match="not what comes next"):
                await staging.write(*call)
        for bad in ("../marks", "marks", "commitlog/1", "meta/../../x"):
            with pytest.raises(StoreError, match="cannot bring"):
                await staging.begin([ExportFile(bad, 1)], export.lineage, export.last)
        assert await export.read(name, 1 << 30, 10) == b""


@pytest.mark.trio
async def test_a_sick_log_is_no_source() -> None:
    fs = memory()
    async with open_commit_log(fs) as log:
        with pytest.raises(LogUnusable, match="no source"):
            async with open_export(Source(fs, log)):
                pass
        await fill(log, 3)
        log.declare_lost("test")
        assert log.fault is not None
        with pytest.raises(LogUnusable, match="no source"):
            async with open_export(Source(fs, log)):
                pass


@pytest.mark.trio
@pytest.mark.slow
@pytest.mark.computes
async def test_the_power_goes_at_every_step() -> None:
    """Whatever is found afterwards is the old log or the new one, never a mixture, and trying again ends in the new."""
    async with source(150) as peer, open_export(peer) as export:
        new = await whole(peer.log)
        at, done = 1, False
        while not done:
            for keep in (0.0, 1.0, None):
                target = MemoryFileSystem(random.Random(f"{at}/{keep}"))
                async with open_commit_log(target) as old_log:
                    old = await fill(old_log, 130)
                target.power_cut_at = target.durable_calls + at
                try:
                    staging = Staging(target)
                    await ship(export, staging)
                    await staging.finish()
                    await finish_install(target)
                    done = True
                except OSError:
                    done = False
                target.crash(keep=keep)
                target.power_cut_at = target.durable_calls + 1 + at % 9
                try:
                    await finish_install(target)
                except OSError:
                    target.crash(keep=keep)
                target.power_cut_at = 0
                await finish_install(target)
                async with open_commit_log(target, clean_on_exit=False) as log:
                    assert log.fault is None
                    found = data(await whole(log))
                    assert found in (data(old), data(new)), (at, keep)
                    if found == data(new):
                        assert log.first_index == peer.log.first_index
                if found == data(old):
                    again = Staging(target)
                    try:
                        await ship(export, again)
                        await again.finish()
                    except StoreError:  # the cut left holes in what was staged: from the start
                        await ship(export, again)
                        await again.finish()
                    assert await finish_install(target)
                await check(target, new, peer.log.first_index)
            at += 1
        assert at > 30
