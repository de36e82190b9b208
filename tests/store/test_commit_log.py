"""The log appends, reads, rolls over, truncates and forgets, and finds itself again after a stop."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from broker.store.commit_log import CommitLog, LogFault, open_commit_log
from broker.store.entry import START, Entry, EntryKind, seal_entry
from broker.store.errors import LogMismatch, LogUnusable, NoSpace, StoreRefused
from broker.store.fs import FileSystem, RealFileSystem
from broker.store.fs_memory import MemoryFileSystem
from broker.store.recovery import Verdict
from tests.store.support import LINEAGE, SEGMENT, chain, data, fill, memory, whole


@pytest.fixture(params=["real", "memory"])
def fs(request: pytest.FixtureRequest, tmp_path: Path) -> FileSystem:
    return RealFileSystem(tmp_path) if request.param == "real" else memory()


@pytest.mark.trio
async def test_what_was_appended_is_read_back_also_after_a_restart(fs: FileSystem) -> None:
    async with open_commit_log(fs, recent_bytes=5_000, cold_bytes=3_000) as log:
        assert (log.verdict, log.formed, log.last, log.first_index) == (Verdict.UNFORMED, False, START, 1)
        entries = await fill(log, 400, step=7)
        assert log.last == log.durable == entries[-1].id
        assert data(await whole(log)) == data(entries)
        assert len(log.sealed_segments()) == 3
    for _ in range(2):
        async with open_commit_log(fs) as log:
            assert log.verdict is Verdict.NORMAL
            assert log.last == entries[-1].id
            assert data(await whole(log)) == data(entries)
            assert [log.entry_id(e.index) for e in entries] == [e.id for e in entries]


@pytest.mark.trio
async def test_ids_positions_and_terms_by_index() -> None:
    async with open_commit_log(memory()) as log:
        first = await fill(log, 150, term=2)
        second = await fill(log, 150, term=7)
        assert log.entry_id(0) == START
        assert log.entry_id(len(first) + len(second) + 1) is None
        for entry in first + second:
            assert log.entry_id(entry.index) == entry.id
            assert log.term_of(entry.index) == entry.term
            assert log.position_of(entry.index) == entry.position
            assert log.index_at(entry.position) == log.index_at(entry.end - 1) == entry.index
        assert log.last_index_of_term(6) == len(first)
        assert log.last_index_of_term(1) == 0
        with pytest.raises(LookupError):
            log.index_at(log.last.end)
        with pytest.raises(LookupError):
            log.position_of(0)


@pytest.mark.trio
async def test_reads_by_position() -> None:
    async with open_commit_log(memory(), recent_bytes=4_000) as log:
        entries = await fill(log, 30)
        assert log.cached_bytes(entries[15].position + 64, 10) is None
        for entry in (entries[0], entries[-1]):
            at = entry.position + 64
            record = bytes(entry.records)
            assert await log.read_bytes(at + 5, 20) == record[5:25]
            assert await log.read_record(at) == record
            view = log.cached_bytes(at, 10)
            assert view is not None
            assert bytes(view) == record[:10]
            with pytest.raises(LookupError):
                await log.read_record(at + 1)
            with pytest.raises(LookupError):
                await log.read_bytes(at, 10_000)
        assert log.cached(1, 1000) is None
        assert log.cached(entries[-1].index, 1) == entries[-1:]


@pytest.mark.trio
async def test_reads_keep_the_byte_limit_but_give_at_least_one() -> None:
    async with open_commit_log(memory(), recent_bytes=1_000) as log:
        entries = await fill(log, 20)
        assert data(await log.read(1, 1)) == data(entries[:1])
        size = entries[0].size
        assert data(await log.read(1, 3 * size)) == data(entries[:3])
        assert data(await log.read(1, 3 * size - 1)) == data(entries[:2])
        for index in (0, len(entries) + 1):
            with pytest.raises(LookupError):
                await log.read(index, 1)


@pytest.mark.trio
async def test_entries_that_do_not_chain_are_refused_and_nothing_is_written() -> None:
    async with open_commit_log(memory()) as log:
        await fill(log, 3, term=2)
        last = log.last
        good = chain(last, 2, term=2)
        foreign = chain(last, 1, term=2, lineage=99)
        older = chain(last, 1, term=1)
        for wrong in ([good[1]], [good[0], good[0]], foreign, older, chain(START, 1)):
            with pytest.raises(LogMismatch):
                await log.append(wrong)
        too_long = seal_entry(
            kind=EntryKind.NOOP, prev=last, term=2, lineage=LINEAGE, commit_hint=0,
            control=bytes(SEGMENT - last.end - 64 - 10),
        )  # fmt: skip
        with pytest.raises(LogMismatch, match="fit"):
            await log.append([too_long])
        assert log.last == last
        await log.append(good)


@pytest.mark.trio
async def test_an_unformed_log_takes_nothing_and_is_formed_once() -> None:
    fs = memory()
    async with open_commit_log(fs) as log:
        with pytest.raises(LogUnusable, match="unformed"):
            await log.append(chain())
        await log.form(7, SEGMENT)
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.UNFORMED  # entry 1 never came
        await fill(log, 1)
        with pytest.raises(LogUnusable, match="formed already"):
            await log.form(8, SEGMENT)
        for lineage, size in ((0, SEGMENT), (1 << 32, SEGMENT), (5, 100), (5, 1 << 40)):
            with pytest.raises(ValueError, match="is not"):
                await log.form(lineage, size)


@pytest.mark.trio
@pytest.mark.parametrize("keep", [0, 1, 5, 117, 118, 119, 120, 250, 399])
async def test_truncation_is_forgotten_nowhere(fs: FileSystem, keep: int) -> None:
    async with open_commit_log(fs) as log:
        entries = await fill(log, 400, step=50)
        await log.quiet()
        await log.truncate_after(keep)
        assert log.last.index == keep
        assert data(await whole(log)) == data(entries[:keep])
        again = chain(log.last, 200, term=2)
        await log.append(again)
        expected = entries[:keep] + again
        assert data(await whole(log)) == data(expected)
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.NORMAL
        assert data(await whole(log)) == data(expected)
        assert log.term_of(keep + 1) == 2


@pytest.mark.trio
async def test_nothing_committed_is_truncated() -> None:
    async with open_commit_log(memory()) as log:
        entries = await fill(log, 10)
        await log.marks.put(floor=entries[5].id)
        with pytest.raises(LogUnusable, match="committed"):
            await log.truncate_after(5)
        await log.truncate_after(6)
        await log.truncate_after(9)
        assert log.last == entries[5].id


@pytest.mark.trio
async def test_old_segments_are_dropped_from_the_front(fs: FileSystem) -> None:
    async with open_commit_log(fs, recent_bytes=1000) as log:
        entries = await fill(log, 500, step=20)
        segments = log.sealed_segments()
        await log.drop_first_segments(2)
        first = segments[2].base_index
        assert log.first_index == first
        assert log.first_position == segments[2].base_position
        assert log.entry_id(first - 1) == entries[first - 2].id == log.base
        assert log.entry_id(first - 2) is None
        with pytest.raises(LookupError):
            await log.read(first - 1, 1)
        with pytest.raises(ValueError, match="cannot drop"):
            await log.drop_first_segments(5)
    async with open_commit_log(fs) as log:
        assert log.first_index == first
        assert data(await whole(log)) == data(entries[first - 1 :])


@pytest.mark.trio
async def test_side_files_spare_the_reading_of_sealed_segments() -> None:
    fs = memory()
    async with open_commit_log(fs) as log:
        entries = await fill(log, 600, step=20)
        await log.quiet()
        await log.marks.put(floor=log.last)
    reads = fs.fail("pread", "commitlog/*", after=1 << 40)
    async with open_commit_log(fs) as log:
        assert [log.entry_id(e.index) for e in entries] == [e.id for e in entries]
        assert reads.seen <= len(log.sealed_segments()) + 6  # header blocks, and the newest segment
    # A bad or foreign side file is not believed.
    path = "side/00000000000000000000"
    for wrong in (b"", fs.content(path)[:-1], fs.content("side/00000000000000065536")):
        fs.heal()
        fs.replace(path, wrong)
        async with open_commit_log(fs) as log:
            assert [log.entry_id(e.index) for e in entries] == [e.id for e in entries]
    fs.flip(path, 100)
    async with open_commit_log(fs) as log:
        assert [log.entry_id(e.index) for e in entries] == [e.id for e in entries]


@pytest.mark.trio
async def test_a_failed_sync_is_the_end_of_the_open_log() -> None:
    fs = memory()
    async with open_commit_log(fs) as log:
        entries = await fill(log, 5)
        faults: list[LogFault] = []
        log.on_fault = faults.append
        fs.fail("sync", "commitlog/*", times=1)
        with pytest.raises(OSError, match="injected"):
            await log.append(chain(log.last, 3))
        assert log.last == log.durable == entries[-1].id
        assert [fault.kind for fault in faults] == ["impaired"]
        with pytest.raises(LogUnusable, match="impaired"):
            await log.append(chain(log.last, 1))
        with pytest.raises(LogUnusable, match="impaired"):
            await log.truncate_after(1)
        assert data(await whole(log)) == data(entries)  # it goes on answering
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.CRASH
        assert log.last.index == 8  # the bytes are there, and now they are on the disk
        fs.crash(keep=0.0)
    async with open_commit_log(fs) as log:
        assert log.last.index == 8


@pytest.mark.trio
async def test_a_full_disk_refuses_and_recovers(autojump_clock: trio.testing.MockClock) -> None:
    fs = memory()
    async with open_commit_log(fs) as log:
        await fill(log, 100)
        fs.capacity = fs._used() + 1000
        entries = chain(log.last, 300)
        with pytest.raises(NoSpace):
            await log.append(entries)
        assert log.fault is None
        stored = log.last.index
        assert stored < 400
        with pytest.raises(NoSpace):
            await log.append(entries[stored - 100 :])
        fs.capacity = 1 << 40
        await trio.sleep(3)
        await log.append(entries[stored - 100 :])
        assert log.last == entries[-1].id
        assert len(await whole(log)) == log.last.index


@pytest.mark.trio
async def test_appends_without_sync_are_durable_when_synced() -> None:
    fs = memory()
    async with open_commit_log(fs, clean_on_exit=False) as log:
        entries = await fill(log, 3)
        more = chain(log.last, 300)
        await log.append(more, sync=False)
        assert log.last == more[-1].id
        sealed = log.sealed_segments()[-1].last_index
        assert log.durable.index == sealed  # what lies in sealed segments is synced
        await log.sync()
        assert log.durable == log.last
        fs.crash(keep=0.0)
    async with open_commit_log(fs) as log:
        assert log.last == more[-1].id
        assert data(await whole(log)) == data(entries + more)


@pytest.mark.trio
async def test_files_of_another_lineage_or_a_newer_format_are_refused() -> None:
    one, two = memory(), memory()
    async with open_commit_log(one) as log:
        await fill(log, 3)
    async with open_commit_log(two) as log:
        await log.form(77, SEGMENT)
        await log.append(chain(lineage=77))
    one.replace("commitlog/00000000000000000000", two.content("commitlog/00000000000000000000"))
    with pytest.raises(StoreRefused, match="another replica group"):
        async with open_commit_log(one):
            pass


@pytest.mark.trio
async def test_two_writers_at_once_are_a_mistake() -> None:
    fs = memory()
    async with open_commit_log(fs) as log:
        await fill(log, 1)
        entries = chain(log.last, 2)
        refused = []

        async def append() -> None:
            try:
                await log.append(entries[:1])
            except LogUnusable as error:
                refused.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append)
            nursery.start_soon(append)
        assert refused == ["two tasks write to the log at once"]
        assert log.last == entries[0].id


@pytest.mark.trio
async def test_random_walk_against_a_list() -> None:
    """Append, truncate, drop, restart, crash with everything synced: the log stays equal to a plain list."""
    for seed in range(12):
        rng = random.Random(seed)
        fs = memory(seed)
        model: list[bytes] = []
        dropped = 0
        term = 1
        for _ in range(4):
            async with open_commit_log(fs, recent_bytes=rng.choice((1000, 100_000)), clean_on_exit=False) as log:
                assert data(await whole(log)) == model[dropped:]
                for _ in range(12):
                    match rng.randrange(4):
                        case 0 | 1:
                            entries = await fill(
                                log,
                                rng.randrange(1, 60),
                                term=term,
                                size=rng.randrange(10, 4000),
                                step=rng.randrange(1, 9),
                            )
                            model.extend(data(entries))
                        case 2 if len(model) > dropped:
                            keep = rng.randrange(max(log.first_index - 1, 1), len(model) + 1)
                            await log.truncate_after(keep)
                            del model[keep:]
                            term += 1
                        case 3 if len(log.sealed_segments()) > 1:
                            await log.drop_first_segments(1)
                            dropped = log.first_index - 1
                assert data(await whole(log)) == model[dropped:]
                if rng.random() < 0.5:
                    fs.crash(keep=rng.choice((0.0, None)))


@pytest.mark.trio
async def test_what_many_want_is_read_from_the_disk_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers of many queues catch up side by side. Who began to read may give up: then another one does."""
    async with open_commit_log(memory(), recent_bytes=1_000) as log:
        entries = await fill(log, 100)
        read_disk, begun, go_on = log._read_disk, 0, trio.Event()

        async def counted(index: int, max_bytes: int) -> list[Entry]:
            nonlocal begun
            begun += 1
            await go_on.wait()
            return await read_disk(index, max_bytes)

        monkeypatch.setattr(log, "_read_disk", counted)
        found: list[Entry] = []

        async def load() -> None:
            found.append(await log.load(10))

        async with trio.open_nursery() as nursery:
            scope: trio.CancelScope = await nursery.start(_in_scope, load)
            for _ in range(20):
                nursery.start_soon(load)
            await trio.testing.wait_all_tasks_blocked()
            assert begun == 1
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert begun == 2
            go_on.set()
        assert begun == 2
        assert found == [entries[9]] * 20


async def _in_scope(call: Callable[[], Awaitable[None]], *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await call()


@asynccontextmanager
async def _prompt_log(kind: str, root: Path) -> AsyncIterator[tuple[CommitLog, MemoryFileSystem]]:
    """A log whose writes can be begun, and its disk where that is one in memory."""
    async with trio.open_nursery() as hands:
        disk = memory()
        disk.hands = hands
        async with open_commit_log(disk if kind == "memory" else RealFileSystem(root)) as log:
            yield log, disk


async def _begin(log: CommitLog, entries: Sequence[Entry]) -> OSError | None:
    """Returns how it ended. Raises AssertionError when it is not begun at all."""
    ended = trio.Event()
    how: list[OSError | None] = []

    def done(error: OSError | None) -> None:
        how.append(error)
        ended.set()

    assert log.begin_append(entries, done)
    assert not how
    with trio.fail_after(10):
        await ended.wait()
    return how[0]


@pytest.mark.trio
@pytest.mark.parametrize("kind", ["real", "memory"])
async def test_a_begun_append_gives_the_same_log(kind: str, tmp_path: Path) -> None:
    async with _prompt_log(kind, tmp_path) as (log, disk):
        entries = await fill(log, 5)
        more = chain(log.last, 60, segment_bytes=log.segment_bytes)
        at = 0
        for step in (1, 9, 50):
            assert await _begin(log, more[at : at + step]) is None
            at += step
            assert log.last == log.durable == more[at - 1].id
            assert log.sync_started_at is None
        assert [log.entry_id(e.index) for e in more] == [e.id for e in more]
        assert data(await whole(log)) == data([*entries, *more])
        disk.hands = None
    async with open_commit_log(disk if kind == "memory" else RealFileSystem(tmp_path)) as log:
        assert log.verdict is Verdict.NORMAL
        assert data(await whole(log)) == data([*entries, *more])


@pytest.mark.trio
async def test_what_has_to_wait_for_something_is_not_begun(tmp_path: Path) -> None:
    def never(error: OSError | None) -> None:
        raise AssertionError("nothing was begun")

    async with _prompt_log("memory", tmp_path) as (log, _disk):
        await log.form(LINEAGE, SEGMENT)
        first = chain(log.last, 1, segment_bytes=log.segment_bytes)
        assert not log.begin_append(first, never)  # the clean mark stands, no file is open
        await log.append(first)
        assert not log.begin_append(chain(START, 1), never)  # does not chain
        rest = chain(log.last, 130, segment_bytes=log.segment_bytes)
        crossing = next(at for at, e in enumerate(rest) if e.position // SEGMENT != rest[0].position // SEGMENT)
        assert not log.begin_append(rest[: crossing + 1], never)  # spans two segments
        assert await _begin(log, rest[:crossing]) is None
        assert not log.begin_append(rest[crossing : crossing + 1], never)  # the next file is not open yet
        await log.append(rest[crossing:])
        await log.mark_clean()
        assert not log.begin_append(chain(log.last, 1, segment_bytes=log.segment_bytes), never)
        await log.append(chain(log.last, 1, segment_bytes=log.segment_bytes))
        ended = trio.Event()
        assert log.begin_append(chain(log.last, 1, segment_bytes=log.segment_bytes), lambda _error: ended.set())
        assert not log.begin_append(chain(log.last, 1, segment_bytes=log.segment_bytes), never)  # one at a time
        with pytest.raises(LogUnusable, match="two tasks"):
            await log.append(chain(log.last, 1, segment_bytes=log.segment_bytes))
        with trio.fail_after(10):
            await ended.wait()


@pytest.mark.trio
async def test_a_begun_append_that_fails_leaves_the_log_impaired(tmp_path: Path) -> None:
    async with _prompt_log("memory", tmp_path) as (log, disk):
        await fill(log, 3)
        before = log.last
        disk.fail("sync", "commitlog/*", times=1)
        error = await _begin(log, chain(log.last, 1, segment_bytes=log.segment_bytes))
        assert error is not None
        assert (log.last, log.durable, log.fault is not None) == (before, before, True)
        with pytest.raises(LogUnusable):
            await log.append(chain(log.last, 1, segment_bytes=log.segment_bytes))
