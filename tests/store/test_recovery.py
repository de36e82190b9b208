"""Each row of the recovery table, made by hand and then judged by opening the log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.store.commit_log import CommitLog, open_commit_log
from broker.store.entry import ENTRY_MAX_BYTES, START, Entry, EntryHeader, EntryId, parse_header
from broker.store.errors import EntryDamaged, LogMismatch, LogUnusable
from broker.store.fs_memory import SECTOR_BYTES, MemoryFileSystem
from broker.store.marks import MarkValues
from broker.store.recovery import Verdict, classify
from broker.store.scan import Beyond
from broker.store.segment import HEADER_BLOCK_BYTES, segment_path
from tests.store.support import LINEAGE, SEGMENT, chain, data, fill, memory, whole


async def made(
    count: int = 60, *, clean: bool = False, size: int = 700, seed: int = 1
) -> tuple[MemoryFileSystem, list[Entry]]:
    fs = memory(seed)
    async with open_commit_log(fs, clean_on_exit=clean) as log:
        entries = await fill(log, count, size=size, step=10)
        await log.quiet()
    return fs, entries


def place(entry: Entry) -> tuple[str, int]:
    """File and offset at which an entry begins."""
    base = entry.position - entry.position % SEGMENT
    return segment_path(base), HEADER_BLOCK_BYTES + entry.position - base


def rot(fs: MemoryFileSystem, entry: Entry, at: int) -> None:
    path, offset = place(entry)
    fs.flip(path, offset + at, 0x10)


def wipe(fs: MemoryFileSystem, path: str, start: int, end: int) -> None:
    content = bytearray(fs.content(path))
    end = min(end, len(content))
    content[start:end] = bytes(end - start)
    fs.replace(path, bytes(content))


def wipe_from(fs: MemoryFileSystem, entry: Entry, sectors: bool = False) -> None:
    """Zero everything from an entry on (from its first whole sector when `sectors`)."""
    path, offset = place(entry)
    start = -(-offset // SECTOR_BYTES) * SECTOR_BYTES if sectors else offset
    wipe(fs, path, start, 1 << 40)


@pytest.mark.trio
async def test_normal_is_the_end_that_the_clean_mark_names() -> None:
    fs, entries = await made(clean=True)
    async with open_commit_log(fs, clean_on_exit=False) as log:
        assert log.verdict is Verdict.NORMAL
        await log.append(chain(log.last, 1))  # withdraws the mark before it writes
    assert log.marks.values.clean is None
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.CRASH
        assert log.last.index == entries[-1].index + 1


@pytest.mark.trio
async def test_a_lost_tail_without_a_mark_is_a_crash() -> None:
    fs, entries = await made()
    wipe_from(fs, entries[50])
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.CRASH
        assert log.last == entries[49].id


@pytest.mark.trio
async def test_a_lost_tail_below_a_mark_is_damage() -> None:
    for clean in (True, False):
        fs, entries = await made(clean=clean)
        if not clean:
            async with open_commit_log(fs, clean_on_exit=False) as log:
                await log.marks.put(floor=entries[54].id)
        wipe_from(fs, entries[50])
        async with open_commit_log(fs) as log:
            assert log.verdict is Verdict.DAMAGED
            assert log.fault is not None
            assert log.fault.damage is not None
            assert (log.fault.damage.first_index, log.fault.damage.next_index) == (51, 0)
            with pytest.raises(LogUnusable, match="damaged"):
                await log.append(chain(log.last, 1))
            assert data(await whole(log)) == data(entries[:50])
            await log.repair(entries[50:55])
            assert (log.fault is not None) is clean
            if clean:
                await log.repair(entries[55:])
            assert log.fault is None
            assert log.last.index == (60 if clean else 55)


@pytest.mark.trio
@pytest.mark.parametrize("cut", range(0, 768, 100))
async def test_a_torn_last_write_is_cut(cut: int) -> None:
    fs, entries = await made()
    last = entries[-1]
    path, offset = place(last)
    start = -(-(offset + cut) // SECTOR_BYTES) * SECTOR_BYTES
    wipe(fs, path, start, 1 << 40)
    async with open_commit_log(fs) as log:
        lost = start < offset + last.size
        assert log.verdict is (Verdict.TORN if lost and start > offset else Verdict.CRASH)
        assert log.last == (entries[-2].id if lost else last.id)
        again = chain(log.last, 3, term=2)
        await log.append(again)
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.NORMAL
        assert log.last == again[-1].id


@pytest.mark.trio
async def test_a_hole_in_an_unsynced_group_is_torn_and_everything_behind_it_goes() -> None:
    fs, entries = await made(size=1500, count=30)
    path, offset = place(entries[20])
    start = -(-offset // SECTOR_BYTES) * SECTOR_BYTES
    fs_hints = entries[-1].commit_hint
    assert fs_hints >= 21  # the helper's hints would prove it: make entries without hints instead
    fs = memory()
    async with open_commit_log(fs, clean_on_exit=False) as log:
        await log.form(LINEAGE, SEGMENT)
        entries = chain(START, 30, size=1500, hint=0)
        await log.append(entries)
        await log.quiet()
    path, offset = place(entries[20])
    start = -(-offset // SECTOR_BYTES) * SECTOR_BYTES
    wipe(fs, path, start, start + 2 * SECTOR_BYTES)
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.TORN
        assert log.last == entries[19].id
        assert not any(fs.content(path)[offset:])


@pytest.mark.trio
async def test_rot_in_the_last_entry_is_suspect_and_stays_so_until_cleared() -> None:
    fs, entries = await made()
    rot(fs, entries[-1], 200)
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.SUSPECT
        assert log.suspect
        assert log.last == entries[-2].id
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.SUSPECT
        await log.append(chain(log.last, 1))
        await log.clear_suspect()
        assert not log.suspect
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.NORMAL


@pytest.mark.trio
@pytest.mark.parametrize("at", [0, 5, 20, 45, 62, 64, 300])
async def test_rot_below_a_commit_hint_is_damage_and_is_repaired_from_a_peer(at: int) -> None:
    fs, entries = await made()
    before = {path: fs.content(path) for path in fs.paths() if path.startswith("commitlog")}
    rot(fs, entries[40], at)
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.DAMAGED
        assert log.fault is not None
        damage = log.fault.damage
        assert damage is not None
        assert (damage.first_index, damage.next_index) == (41, 42)
        assert log.last == entries[39].id
        for wrong in ([], entries[39:41], entries[40:42], chain(entries[39].id, 1, term=3), entries[41:42]):
            with pytest.raises(LogMismatch):
                await log.repair(wrong)
        await log.repair(entries[40:41])
        assert log.fault is None
        assert log.last == entries[-1].id
        assert data(await whole(log)) == data(entries)
        with pytest.raises(LogUnusable, match="no damage"):
            await log.repair(entries[40:41])
        await log.quiet()
    assert {path: fs.content(path) for path in before} == before


@pytest.mark.trio
async def test_two_damaged_places_are_repaired_one_after_the_other() -> None:
    fs, entries = await made(200)
    rot(fs, entries[20], 100)
    rot(fs, entries[30], 3)
    async with open_commit_log(fs) as log:
        found = []
        while log.fault is not None:
            damage = log.fault.damage
            assert damage is not None
            found.append(damage.first_index)
            await log.repair(entries[damage.first_index - 1 : damage.next_index - 1])
        assert found == [21, 31]
        assert data(await whole(log)) == data(entries)


@pytest.mark.trio
async def test_rot_in_a_sealed_segment_is_found_by_the_reader_and_repaired() -> None:
    fs, entries = await made(300, clean=True)
    async with open_commit_log(fs, clean_on_exit=False) as log:
        await log.marks.put(floor=log.last)
    rot(fs, entries[10], 400)
    async with open_commit_log(fs) as log:
        assert log.fault is None  # bodies of old segments are not read at start
        with pytest.raises(EntryDamaged, match="body checksum"):
            await log.read(11, 1)
        assert log.fault is not None
        assert log.fault.damage is not None
        assert log.fault.damage.first_index == 11
        assert data(await log.read(1, 1_000_000)) == data(entries[:10])
        with pytest.raises(EntryDamaged):
            await log.read_record(entries[10].position + 64)
        await log.repair(entries[10:11])
        assert log.fault is None
        assert data(await whole(log)) == data(entries)


@pytest.mark.trio
async def test_a_repair_that_the_disk_does_not_keep_is_not_believed() -> None:
    fs, entries = await made(300, clean=True)
    async with open_commit_log(fs, clean_on_exit=False) as log:
        await log.marks.put(floor=log.last)
    rot(fs, entries[10], 400)
    async with open_commit_log(fs) as log:
        with pytest.raises(EntryDamaged):
            await log.read(11, 1)
        fs.fail("sync", "commitlog/*")
        with pytest.raises(OSError, match="injected"):
            await log.repair(entries[10:11])
        assert log.fault is not None
        assert log.fault.kind == "impaired"


@pytest.mark.trio
async def test_a_missing_segment_needs_an_install() -> None:
    fs, entries = await made(400, clean=True)
    fs.remove(segment_path(SEGMENT))
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.DAMAGED
        assert log.fault is not None
        assert log.fault.damage is not None
        assert log.fault.damage.needs_install
        with pytest.raises(LogUnusable, match="install"):
            await log.repair(entries[:1])
    fs, _ = await made(10, clean=True)
    for path in [path for path in fs.paths() if path.startswith("commitlog")]:
        fs.remove(path)
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.DAMAGED
        with pytest.raises(LogUnusable):
            await log.form(LINEAGE, SEGMENT)


@pytest.mark.trio
async def test_the_last_segment_missing_is_refetched() -> None:
    fs, entries = await made(150, clean=True)
    fs.remove(segment_path(SEGMENT))
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.DAMAGED
        assert log.last.end == SEGMENT
        await log.repair(entries[log.last.index :])
        assert log.fault is None
        assert data(await whole(log)) == data(entries)


@pytest.mark.trio
async def test_swapped_and_stale_files_are_damage() -> None:
    fs, _ = await made(400, clean=True)
    one, two = fs.content(segment_path(0)), fs.content(segment_path(SEGMENT))
    fs.replace(segment_path(0), two)
    fs.replace(segment_path(SEGMENT), one)
    for name in [path for path in fs.paths() if path.startswith("side/")]:
        fs.remove(name)
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.DAMAGED
    # An older copy of the newest segment: shorter than the marks say.
    fs, _ = await made(30, clean=True)
    stale = fs.content(segment_path(0))
    async with open_commit_log(fs) as log:
        await log.append(chain(log.last, 10))
    fs.replace(segment_path(0), stale)
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.DAMAGED


@pytest.mark.trio
async def test_bad_header_blocks_are_mended() -> None:
    for flips in ([10], [10, 2060]):
        fs, entries = await made(300, clean=True)
        path = segment_path(SEGMENT)
        good = fs.content(path)
        for at in flips:
            fs.flip(path, at)
        async with open_commit_log(fs) as log:
            assert log.verdict is Verdict.NORMAL
            assert data(await whole(log)) == data(entries)
        assert fs.content(path)[:4096] == good[:4096]
    fs, entries = await made(300, clean=True)
    for at in (10, 2060):
        fs.flip(segment_path(0), at)
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.NORMAL  # position 0: everything about it is known
        assert data(await whole(log)) == data(entries)


@pytest.mark.trio
async def test_unreadable_or_missing_marks_make_a_log_suspect() -> None:
    fs, entries = await made(30, clean=True)
    for at in (30, 64 * 1024 + 30):
        fs.flip("marks", at)
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.SUSPECT
        assert log.last == entries[-1].id
    fs, entries = await made(30, clean=True)
    fs.remove("marks")
    async with open_commit_log(fs) as log:
        assert log.verdict is Verdict.SUSPECT


@pytest.mark.trio
async def test_garbage_behind_the_end_is_cut_or_suspected_never_served() -> None:
    for garbage in (b"\xff" * 100, chain(EntryId(5, 1, 5, 5), 1)[0].data):
        fs, entries = await made(30)
        path, offset = place(entries[-1])
        content = bytearray(fs.content(path))
        end = offset + entries[-1].size
        content[end : end + len(garbage)] = garbage
        fs.replace(path, bytes(content))
        async with open_commit_log(fs) as log:
            assert log.verdict in (Verdict.SUSPECT, Verdict.TORN)
            assert log.last == entries[-1].id


async def judge(fs: MemoryFileSystem, entries: list[Entry]) -> str:
    """Open a log that was touched: what it serves must be a prefix of what was written, byte for byte."""
    async with open_commit_log(fs, clean_on_exit=False) as log:
        assert isinstance(log, CommitLog)
        served = []
        try:
            served = await whole(log)
        except EntryDamaged:
            assert log.fault is not None
        assert data(served) == data(entries[log.first_index - 1 :][: len(served)])
        if log.verdict in (Verdict.NORMAL, Verdict.CRASH) and log.fault is None:
            assert log.last == entries[-1].id
        return log.verdict.value


@pytest.mark.trio
@pytest.mark.slow
@pytest.mark.computes
async def test_every_byte_of_a_small_log_rotten_is_noticed_or_without_effect() -> None:
    fs, entries = await made(6, clean=True, size=150)
    path = segment_path(0)
    base = fs.content(path)
    end = HEADER_BLOCK_BYTES + entries[-1].end
    seen: dict[str, int] = {}
    others = {name: fs.content(name) for name in fs.paths()}
    for at in [*range(64), *range(2040, 2120), *range(HEADER_BLOCK_BYTES, end + 600)]:
        for name, content in others.items():
            fs.replace(name, content)
        rotten = bytearray(base)
        rotten[at] ^= 0x01
        fs.replace(path, bytes(rotten))
        verdict = await judge(fs, entries)
        seen[verdict] = seen.get(verdict, 0) + 1
        if HEADER_BLOCK_BYTES <= at < end:
            assert verdict == "damaged", at
    assert seen["normal"] == 64 + 80
    assert seen.get("suspect", 0) + seen.get("torn", 0) == 600


@pytest.mark.trio
@pytest.mark.slow
@pytest.mark.computes
async def test_every_length_of_a_small_log_is_noticed() -> None:
    fs, entries = await made(6, clean=True, size=150)
    others = {name: fs.content(name) for name in fs.paths()}
    path = segment_path(0)
    end = HEADER_BLOCK_BYTES + entries[-1].end
    for size in range(0, end, 7):
        for name, content in others.items():
            fs.replace(name, content)
        fs.replace(path, others[path][:size])
        assert await judge(fs, entries) == "damaged"


def header(position: int, hint: int) -> EntryHeader:
    entry = chain(EntryId(9, 1, 1, position), 1, hint=hint, segment_bytes=1 << 30)[0]
    return parse_header(entry.data)


def test_the_table() -> None:
    last = EntryId(10, 1, 7, 5000)
    zeros = Beyond(True, 1 << 20, None, None, 0)

    def verdict(beyond: Beyond, partial: bool = True, marks: MarkValues | None = None, later: bool = False) -> Verdict:
        return classify(last=last, beyond=beyond, partial=partial, marks=marks or MarkValues(), later_segment=later)[0]

    def with_record(position: int, hint: int = 0) -> Beyond:
        h = header(position, hint)
        return Beyond(False, 1 << 20, h, h, hint)

    bare = Beyond(False, 1 << 20, None, None, 0)
    assert verdict(zeros) is Verdict.CRASH
    assert verdict(zeros, marks=MarkValues(clean=last)) is Verdict.NORMAL
    assert verdict(zeros, marks=MarkValues(floor=last)) is Verdict.CRASH
    assert verdict(zeros, marks=MarkValues(floor=EntryId(11, 1, 1, 5001))) is Verdict.DAMAGED
    assert verdict(zeros, marks=MarkValues(clean=EntryId(11, 1, 1, 5001))) is Verdict.DAMAGED
    assert verdict(zeros, later=True) is Verdict.DAMAGED
    assert verdict(bare) is Verdict.TORN
    assert verdict(bare, partial=False) is Verdict.SUSPECT
    assert verdict(bare, marks=MarkValues(clean=EntryId(11, 1, 1, 9000))) is Verdict.DAMAGED
    assert verdict(with_record(6000)) is Verdict.TORN
    assert verdict(with_record(6000, hint=10)) is Verdict.TORN
    assert verdict(with_record(6000, hint=11)) is Verdict.DAMAGED
    assert verdict(with_record(5000 + ENTRY_MAX_BYTES)) is Verdict.TORN
    assert verdict(with_record(5000 + ENTRY_MAX_BYTES + 1)) is Verdict.DAMAGED


@given(st.binary(max_size=2000), st.integers(0, 3000))
def test_any_bytes_over_the_tail_never_change_what_is_served(garbage: bytes, back: int) -> None:
    import trio

    async def run() -> None:
        fs, entries = await made(8)
        path, offset = place(entries[-1])
        content = bytearray(fs.content(path))
        at = max(HEADER_BLOCK_BYTES, offset + entries[-1].size - back)
        content[at : at + len(garbage)] = garbage
        fs.replace(path, bytes(content))
        async with open_commit_log(fs, clean_on_exit=False) as log:
            served = await whole(log)
            assert data(served) == data(entries[: len(served)])

    trio.run(run)
