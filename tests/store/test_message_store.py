"""The store as the broker sees it: what was sent is found by offset, time and key, whatever happened in between."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio

from broker.store.errors import StoreBroken, StoreError, StoreRefused
from broker.store.fs_memory import MemoryFileSystem
from broker.store.install import Staging, open_export
from broker.store.message_store import Found, NeedDisk
from broker.store.recovery import Verdict
from broker.store.retention import RetentionConfig
from broker.store.segment import HEADER_BLOCK_BYTES
from tests.store.support import FixedClock, Writer, memory, open_store
from trimq.message.tags import tags_code


def bodies(count: int, size: int = 100) -> Sequence[bytes]:
    return [b"%0*d" % (size, i) for i in range(count)]


async def some(writer: Writer, rounds: int = 6, *, size: int = 300) -> None:
    """Two topics, three queues, in turn."""
    for i in range(rounds):
        await writer.send(b"A", i % 3, bodies(5, size), tag=b"t%d" % (i % 2), control=b"+A" if i == 0 else b"")
        await writer.send(b"B", 0, bodies(2, size), keys=b"k%d all" % i, control=b"+B" if i == 0 else b"")


@pytest.mark.trio
async def test_messages_are_found_hot_and_after_a_restart() -> None:
    fs = memory()
    async with open_store(fs) as writer:
        await some(writer)
        await writer.check()
        found = writer.store.get(writer.key(b"A", 0), 0, 32, 1 << 20, None)
        assert isinstance(found, Found)
        assert (found.count, found.next_offset) == (10, 10)
        assert len(found.parts) == 2  # five records lie side by side in each entry
    async with open_store(fs, writer=writer) as writer:
        assert writer.store.log.verdict is Verdict.NORMAL
        assert writer.store.snapshots == [writer.store.log.last.index]
        assert isinstance(writer.store.get(writer.key(b"A", 0), 0, 32, 1 << 20, None), NeedDisk)
        await writer.check()
        await some_more(writer)
        await writer.check()
    async with open_store(fs, writer=writer) as writer:
        await writer.check()


async def some_more(writer: Writer, rounds: int = 4) -> None:
    for i in range(rounds):
        await writer.send(b"A", i % 3, bodies(3), tag=b"t9")
        await writer.send(b"B", 0, bodies(1))


@pytest.mark.trio
async def test_limits_and_tags_of_a_read() -> None:
    async with open_store(memory()) as writer:
        await writer.send(b"A", 0, bodies(3), tag=b"red", control=b"+A")
        await writer.send(b"A", 0, bodies(4), tag=b"blue")
        await writer.send(b"A", 0, bodies(3), tag=b"red")
        store, key = writer.store, writer.key(b"A", 0)
        red = frozenset({tags_code("red")})

        def get(offset: int, count: int, size: int, wanted: frozenset[int] | None) -> tuple[int, int]:
            found = store.get(key, offset, count, size, wanted)
            assert isinstance(found, Found)
            return found.count, found.next_offset

        assert get(0, 2, 1 << 20, None) == (2, 2)
        assert get(0, 32, 1, None) == (1, 1)  # at least one, however large
        size = len(writer.sent[b"A", 0][0])
        assert get(0, 32, 3 * size, None) == (3, 3)
        assert get(0, 4, 1 << 20, red) == (4, 8)
        assert get(3, 32, 1 << 20, red) == (3, 10)
        assert get(3, 32, 1 << 20, frozenset({1})) == (0, 10)
        assert get(10, 32, 1 << 20, None) == (0, 10)
        assert get(0, 32, 1 << 20, None)[0] == 10


@pytest.mark.trio
async def test_an_unknown_queue_is_empty() -> None:
    async with open_store(memory()) as writer:
        await writer.send(b"A", 0, bodies(1), control=b"+A")
        queues = writer.store.queues
        assert (queues.first_offset(77), queues.next_offset(77)) == (0, 0)
        found = writer.store.get(77, 0, 10, 1000, None)
        assert isinstance(found, Found)
        assert (found.count, found.next_offset) == (0, 0)
        assert await writer.store.earliest_store_time(77) == -1


@pytest.mark.trio
async def test_offsets_by_time() -> None:
    fs, clock = memory(), FixedClock(1_000_000)
    async with open_store(fs, clock=clock) as writer:
        await writer.send(b"A", 0, bodies(1), control=b"+A")
        for _ in range(9):
            clock.now_ms += 1000
            await writer.send(b"A", 0, bodies(2))
        store, key = writer.store, writer.key(b"A", 0)
        for snapshot in (False, True):
            if snapshot:
                await store.snapshot()
            assert await store.offset_by_time(key, 0) == 0
            assert await store.offset_by_time(key, 1_000_000) == 0
            assert await store.offset_by_time(key, 1_000_001) == 1
            assert await store.offset_by_time(key, 1_003_000) == 5
            assert await store.offset_by_time(key, 1_003_000, upper=True) == 6
            assert await store.offset_by_time(key, 1_003_500, upper=True) == 6
            assert await store.offset_by_time(key, 9_000_000) == 19
            assert await store.offset_by_time(key, 9_000_000, upper=True) == 18
            assert await store.earliest_store_time(key) == await store.earliest_time() == 1_000_000
            assert await store.store_time(key, 18) == 1_009_000


@pytest.mark.trio
async def test_messages_by_key() -> None:
    fs, clock = memory(), FixedClock(1_000_000)
    async with open_store(fs, clock=clock) as writer:
        for i in range(6):
            clock.now_ms += 10_000
            await writer.send(b"A", 0, bodies(3), keys=b"k%d all" % i, control=b"+A,+B" if i == 0 else b"")
            await writer.send(b"B", 0, bodies(1), keys=b"all")
            if i in (1, 3):
                await writer.store.snapshot()
        for restarted in (False, True):
            if restarted:
                break
        await check_keys(writer)
    async with open_store(fs, writer=writer, clock=clock) as writer:
        await check_keys(writer)


async def check_keys(writer: Writer) -> None:
    store, tid = writer.store, writer.tables.topics[b"A"]

    async def offsets(key: bytes, begin: int = 0, end: int = 1 << 50, limit: int = 64) -> list[int]:
        found = []
        for position in await store.query_key(tid, key, begin, end, limit):
            raw = await store.read_record(position)
            found.append(int.from_bytes(raw[20:28], "big"))
        return found

    assert await offsets(b"k3") == [11, 10, 9]
    assert await offsets(b"A-0-7") == [7]
    assert await offsets(b"all") == list(range(17, -1, -1))
    assert await offsets(b"all", limit=4) == [17, 16, 15, 14]
    assert await offsets(b"all", 1_025_000, 1_045_000) == [11, 10, 9, 8, 7, 6]
    assert await offsets(b"nothing") == []


@pytest.mark.trio
async def test_dispatch_goes_as_far_as_it_is_allowed_and_wakes_those_who_wait() -> None:
    async with open_store(memory()) as writer:
        first = await writer.send(b"A", 0, bodies(1), control=b"+A")
        second = await writer.send(b"A", 0, bodies(1), dispatch=False)
        third = await writer.send(b"A", 0, bodies(1), dispatch=False)
        store = writer.store
        await trio.testing.wait_all_tasks_blocked()
        assert (store.dispatched, store.dispatched_end) == (first.index, first.end)
        store.allow(second.index)
        await store.wait_dispatched(second.index)
        await trio.testing.wait_all_tasks_blocked()
        assert store.dispatched == second.index
        store.allow(99)
        await store.wait_dispatched(third.index)
        assert writer.tables.touched[-1] == {writer.key(b"A", 0): 3}
        assert writer.tables.records == 3


@pytest.mark.trio
async def test_a_record_of_a_topic_that_nobody_made_stops_dispatch() -> None:
    failures: list[Exception] = []
    async with open_store(memory()) as writer:
        writer.store.on_failure = failures.append
        with pytest.raises(StoreBroken, match="stopped"):
            await writer.send(b"A", 0, bodies(1))
        assert writer.store.failure is failures[0]
        assert isinstance(failures[0], StoreBroken)


@pytest.mark.trio
async def test_an_offset_used_twice_stops_dispatch() -> None:
    async with open_store(memory()) as writer:
        await writer.send(b"A", 0, bodies(2), control=b"+A")
        writer.next[b"A", 0] = 1
        with pytest.raises(StoreBroken, match="taken"):
            await writer.send(b"A", 0, bodies(1))
    async with open_store(memory()) as writer:
        await writer.send(b"A", 0, bodies(2), control=b"+A")
        writer.next[b"A", 0] = 3
        with pytest.raises(StoreBroken, match="gap"):
            await writer.send(b"A", 0, bodies(1))


@pytest.mark.trio
async def test_a_deleted_topic_takes_its_queues_along() -> None:
    fs = memory()
    async with open_store(fs) as writer:
        await some(writer)
        await writer.send(b"A", 0, [], control=b"-A")
        old = writer.tables.made
        for queue in range(3):
            writer.next.pop((b"A", queue))
            writer.sent.pop((b"A", queue))
        await writer.send(b"A", 1, bodies(2), control=b"+A")
        assert writer.tables.topics[b"A"] == old + 1
        await writer.check()
    async with open_store(fs, writer=writer) as writer:
        await writer.check()
        assert len(writer.store.queues) == 2


@pytest.mark.trio
async def test_power_cuts_lose_nothing_that_was_synced(autojump_clock: trio.testing.MockClock) -> None:
    for seed in range(12):
        rng = random.Random(seed)
        fs = MemoryFileSystem(rng)
        writer: Writer | None = None
        for _ in range(4):
            try:
                async with open_store(fs, writer=writer, snapshot_every_s=3.0) as writer:
                    await writer.check()
                    for _ in range(rng.randrange(1, 12)):
                        new = b"+A,+B" if not writer.tables.made else b""
                        await writer.send(
                            rng.choice((b"A", b"B")), rng.randrange(3), bodies(rng.randrange(1, 9)), control=new
                        )
                        if rng.random() < 0.4:
                            await trio.sleep(2.0)
                        if rng.random() < 0.3:
                            await writer.store.snapshot()
                    await writer.check()
                    fs.off = True
            except* OSError:
                pass
            fs.crash()
        async with open_store(fs, writer=writer) as writer:
            await writer.check()


def tight(**changes: float) -> RetentionConfig:
    return RetentionConfig(reserved_ms=60_000, delete_hours=frozenset(range(24)))


@pytest.mark.trio
async def test_retention_moves_the_first_offsets(autojump_clock: trio.testing.MockClock) -> None:
    fs, clock = memory(), FixedClock()
    async with open_store(fs, clock=clock, retention=tight()) as writer:
        for i in range(60):
            await writer.send(b"A", i % 2, bodies(10, 500), control=b"+A" if i == 0 else b"")
            clock.now_ms += 5000
            if i % 20 == 5:
                await writer.store.snapshot()
        assert writer.store.log.first_index == 1
        await trio.sleep(30)
        store = writer.store
        assert store.log.first_index > 1
        assert len(store.log.sealed_segments()) >= 1
        assert store.queues.first_offset(writer.key(b"A", 0)) > 0
        await writer.check()
        position = store.log.first_position
    async with open_store(fs, clock=clock, writer=writer) as writer:
        assert writer.store.log.first_position == position
        await writer.check()
        assert await writer.store.earliest_time() > 1_700_000_000_000


@pytest.mark.trio
async def test_a_read_error_during_retention_costs_one_look_and_no_reader_its_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Found by the simulation (seed 1008): the log began later, the queues did not follow, and never tried again."""
    fs, clock = memory(), FixedClock()
    async with open_store(fs, clock=clock, retention=tight()) as writer:
        for i in range(60):
            await writer.send(b"A", i % 2, bodies(10, 500), control=b"+A" if i == 0 else b"")
            clock.now_ms += 5000
            if i % 20 == 5:
                await writer.store.snapshot()
        store = writer.store
        fs.fail("pread", "queues/*", times=1)
        with pytest.raises(OSError, match="injected"):
            await store.retain()
        assert store.log.first_index > 1
        behind = 0
        for key in (writer.key(b"A", 0), writer.key(b"A", 1)):
            stale = store.queues.first_offset(key)
            (position, *_) = await store.queues.units(key, stale, 1)
            if position < store.log.first_position:  # the error came before the bounds had followed
                behind += 1
                assert isinstance(store.get(key, stale, 10, 10_000, None), NeedDisk)
                found = await store.get_from_disk(key, stale, 10, 10_000, None)
                assert found.next_offset > stale
                assert store.queues.first_offset(key) > stale
        assert behind
        await writer.check()


@pytest.mark.trio
async def test_a_pinned_segment_is_spared(autojump_clock: trio.testing.MockClock) -> None:
    fs, clock = memory(), FixedClock()
    async with open_store(fs, clock=clock, retention=tight()) as writer:
        for i in range(40):
            await writer.send(b"A", 0, bodies(10, 500), control=b"+A" if i == 0 else b"")
            if i in (30, 35):
                await writer.store.snapshot()
        clock.now_ms += 3_600_000
        async with open_export(writer.store):
            await trio.sleep(30)
            assert writer.store.log.first_index == 1
        await trio.sleep(30)
        assert writer.store.log.first_index > 1


@pytest.mark.trio
async def test_a_store_is_installed_from_a_peer_and_serves_what_the_peer_served() -> None:
    source_fs, target_fs, clock = memory(1), memory(2), FixedClock()
    async with open_store(target_fs) as old:
        await some(old, 3)
    async with open_store(source_fs, clock=clock) as writer:
        for i in range(40):
            await writer.send(b"A", i % 2, bodies(10, 500), keys=b"k%d" % i, control=b"+A,+B" if i == 0 else b"")
            if i in (20, 30):
                await writer.store.snapshot()
        await writer.store.log.drop_first_segments(1)
        await writer.store.forget_removed()
        await writer.send(b"A", 5, bodies(1))
        staging = Staging(target_fs)
        async with open_export(writer.store) as export:
            await staging.begin(export.files, export.lineage, export.last)
            for file in export.files:
                for at in range(0, file.size, 50_000):
                    await staging.write(file.name, at, await export.read(file.name, at, 50_000))
            await staging.finish()
        lows = [writer.store.queues.first_offset(key) for key in sorted(writer.store.queues.keys())]
        async with open_store(target_fs, writer=writer) as copy:
            assert copy.store.log.last == writer.store.log.last
            assert [copy.store.queues.first_offset(key) for key in sorted(copy.store.queues.keys())] == lows
            await copy.check()
            assert await copy.store.query_key(copy.tables.topics[b"A"], b"k39", 0, 1 << 50, 50)
            await copy.send(b"A", 0, bodies(3))
            await copy.check()


@pytest.mark.trio
@pytest.mark.parametrize("what", ["queues/", "keys/", "meta/"])
@pytest.mark.parametrize("how", ["flip head", "flip middle", "remove", "cut"])
async def test_damage_to_what_can_be_made_again_is_made_good(what: str, how: str) -> None:
    fs = memory()
    async with open_store(fs) as writer:
        for _ in range(3):
            await some(writer, 3) if not writer.sent else await some_more(writer)
            await writer.store.snapshot()
    paths = [path for path in fs.paths() if path.startswith(what)]
    victim = paths[-1] if what == "meta/" else paths[0]
    content = fs.content(victim)
    match how:
        case "flip head":
            fs.flip(victim, 20)
        case "flip middle":
            fs.flip(victim, len(content) // 2)
        case "remove":
            fs.remove(victim)
        case "cut":
            fs.replace(victim, content[: len(content) // 2])
    async with open_store(fs, writer=writer) as writer:
        await writer.check()
        await some_more(writer)
        await writer.check()
        if how != "remove" or what == "queues/":
            position = (await writer.store.query_key(writer.tables.topics[b"A"], b"A-0-0", 0, 1 << 50, 5))[0]
            assert await writer.store.read_record(position) == writer.sent[b"A", 0][0]
    async with open_store(fs, writer=writer) as writer:
        await writer.check()


@pytest.mark.trio
async def test_index_rot_at_run_time_is_mended_under_the_reader() -> None:
    fs = memory()
    async with open_store(fs) as writer:
        await some(writer)
    async with open_store(fs, writer=writer) as writer:
        for path in [path for path in fs.paths() if path.startswith(("queues/", "keys/"))]:
            fs.flip(path, len(fs.content(path)) - 30)
        await writer.check()
        tid = writer.tables.topics[b"B"]
        assert len(await writer.store.query_key(tid, b"all", 0, 1 << 50, 50)) == 12


@pytest.mark.trio
async def test_without_a_snapshot_a_shortened_log_is_lost_and_says_so() -> None:
    fs = memory()
    async with open_store(fs) as writer:
        for i in range(40):
            await writer.send(b"A", 0, bodies(10, 500), control=b"+A" if i == 0 else b"")
        await writer.store.snapshot()
        await writer.store.log.drop_first_segments(1)
    for path in [path for path in fs.paths() if path.startswith("meta/")]:
        fs.remove(path)
    async with open_store(fs) as writer:
        fault = writer.store.log.fault
        assert fault is not None
        assert fault.damage is not None
        assert fault.damage.needs_install
        writer.store.allow(writer.store.log.last.index)
        await trio.testing.wait_all_tasks_blocked()
        assert writer.store.dispatched == 0


@pytest.mark.trio
async def test_dispatch_waits_for_a_repair_and_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    fs = memory()
    async with open_store(fs) as writer:
        await some(writer)
        good = [await writer.store.log.load(i) for i in range(1, 13)]
        await writer.store.snapshot()
        await some_more(writer)
        fs.off = True
        with pytest.raises(OSError, match="power"):
            await fs.listdir("")
    fs.crash(keep=1.0)
    fs.flip("commitlog/00000000000000000000", HEADER_BLOCK_BYTES + good[2].position + 100)
    for path in [path for path in fs.paths() if path.startswith("meta/")]:
        fs.remove(path)
    async with open_store(fs, writer=writer) as writer:
        store = writer.store
        if store.log.fault is None:
            store.allow(store.log.last.index)
        await trio.sleep(1)
        assert store.dispatched <= 2
        assert store.log.fault is not None
        await store.log.repair(good[2:3])
        store.allow(store.log.last.index)
        await store.wait_dispatched(store.log.last.index)
        await writer.check()


@pytest.mark.trio
async def test_another_groups_folder_is_refused() -> None:
    fs = memory()
    async with open_store(fs, cluster="c", group="a") as writer:
        await some(writer, 1)
    with pytest.raises(StoreRefused, match="group 'a'"):
        async with open_store(fs, cluster="c", group="b"):
            pass


@pytest.mark.trio
async def test_marks_follow_and_never_run_ahead_of_the_disk(autojump_clock: trio.testing.MockClock) -> None:
    async with open_store(memory()) as writer:
        await some(writer, 2)
        await trio.sleep(1.5)
        marks = writer.store.log.marks
        assert marks.values.dispatched == writer.store.dispatched
        assert marks.values.floor == writer.store.log.last
        writer.store.pending = lambda: b"offsets"
        await trio.sleep(1.5)
        assert marks.values.pending == b"offsets"


@pytest.mark.trio
@pytest.mark.slow
@pytest.mark.computes
async def test_the_power_goes_at_every_step_of_sealing_and_snapshots() -> None:
    async def story(fs: MemoryFileSystem, told: list[Writer]) -> None:
        async with open_store(fs) as writer:
            told.append(writer)
            await writer.send(b"A", 0, bodies(4), keys=b"k", control=b"+A")
            for i in range(3):
                await writer.send(b"A", i % 2, bodies(3), keys=b"k")
                await writer.store.snapshot()

    fs = memory()
    await story(fs, [])
    calls = fs.durable_calls
    for at in range(10, calls + 1):
        for keep in (0.0, 1.0, None):
            fs = MemoryFileSystem(random.Random(f"{at}/{keep}"))
            fs.power_cut_at = at
            told: list[Writer] = []
            try:
                await story(fs, told)
            except* (OSError, StoreError):
                pass
            fs.crash(keep=keep)
            if not told:
                continue
            async with open_store(fs, writer=told[0]) as writer:
                assert writer.store.log.fault is None
                assert writer.store.failure is None
                for place, records in writer.sent.items():
                    if place[0] in writer.tables.topics:
                        stored = writer.store.queues.next_offset(writer.key(*place))
                        assert stored >= len(records)  # `sent` holds what was reported done
                        writer.next[place] = stored
                if not writer.store.log.formed or not writer.tables.topics:
                    assert not any(writer.sent.values())
                    continue
                before = {place: list(records) for place, records in writer.sent.items()}
                for place, records in before.items():
                    found = await writer.store.get_from_disk(writer.key(*place), 0, 100, 1 << 20, None)
                    assert b"".join(found.parts).startswith(b"".join(records))
                hits = await writer.store.query_key(writer.tables.topics[b"A"], b"k", 0, 1 << 50, 100)
                ends = map(writer.store.queues.next_offset, list(writer.store.queues.keys()))
                assert len(hits) == sum(ends)


@pytest.mark.trio
async def test_a_process_that_dies_again_and_again_does_not_have_ever_more_to_replay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A minute never passes in one life; what was replayed counts for the next snapshot."""
    fs = memory()
    earlier: Writer | None = None
    for _ in range(3):
        async with open_store(fs, writer=earlier, snapshot_every_entries=20) as writer:
            await (some(writer, 12) if earlier is None else some_more(writer, 12))
            await trio.sleep(2)
            assert writer.store.dispatched - writer.store.snapshots[0] < 20
            fs.off = True
            with pytest.raises(OSError, match="power"):
                await fs.listdir("")
        fs.crash(keep=1.0)
        earlier = writer
