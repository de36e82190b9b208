"""ConsumeQueues over memory and sealed files: the same answers before and after sealing, merging and a restart."""

from __future__ import annotations

import random
from array import array

import pytest

from broker.store import queue_index
from broker.store.errors import StoreBroken
from broker.store.fs_memory import MemoryFileSystem
from broker.store.index_segment import INDEX_DIR, UNIT_WORDS, IndexDamaged
from broker.store.queue_index import QueueIndex

pytestmark = pytest.mark.trio

LINEAGE = 77


def triples(words: array[int]) -> list[tuple[int, ...]]:
    return [tuple(words[at : at + UNIT_WORDS]) for at in range(0, len(words), UNIT_WORDS)]


async def fresh(fs: MemoryFileSystem) -> QueueIndex:
    index = QueueIndex(fs)
    await index.clear()
    return index


def fill(index: QueueIndex, key: int, count: int, *, start: int = 0, step: int = 100) -> None:
    for offset in range(start, start + count):
        index.append(key, offset, key * 1_000_000 + offset * step, 90 + offset % 7, -offset)


async def test_a_queue_is_dense_and_a_gap_or_another_record_is_broken() -> None:
    index = await fresh(MemoryFileSystem(random.Random(1)))
    fill(index, 5, 3)
    assert (index.first_offset(5), index.next_offset(5), index.next_offset(6)) == (0, 3, 0)
    assert index.append(5, 1, 5_000_100, 91, -1) == 3  # again, equal: skipped
    with pytest.raises(StoreBroken, match="gap"):
        index.append(5, 4, 1, 1, 0)
    with pytest.raises(StoreBroken, match="taken"):
        index.append(5, 1, 5_000_101, 91, -1)
    with pytest.raises(StoreBroken, match="begins at"):
        index.append(9, 2, 1, 1, 0)


async def test_sealed_units_are_read_from_the_file_when_memory_lets_them_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_index, "HOT_UNITS", 0)
    monkeypatch.setattr(queue_index, "HOT_UNITS_MIN", 4)
    fs = MemoryFileSystem(random.Random(1))
    index = await fresh(fs)
    for key in (7, 3):
        fill(index, key, 40)
    before = {key: triples(await index.units(key, 0, 40)) for key in (3, 7)}
    await index.seal(index.freeze(10), LINEAGE)
    assert index.hot(7, 0, 1) is None
    assert len(index.hot(7, 36, 10) or ()) == 4 * UNIT_WORDS
    for key in (3, 7):
        got: list[tuple[int, ...]] = []
        while len(got) < 40:
            got += triples(await index.units(key, len(got), 9))
        assert got == before[key]


async def test_a_restart_gives_the_same_and_forgets_what_the_snapshot_does_not_cover() -> None:
    fs = MemoryFileSystem(random.Random(1))
    index = await fresh(fs)
    fill(index, 1, 10)
    first = index.freeze(5)
    await index.seal(first, LINEAGE)
    fill(index, 1, 10, start=10)
    await index.seal(index.freeze(9), LINEAGE)

    again = QueueIndex(fs)
    await again.restore(first.keys, first.lows, first.ends, 5, LINEAGE)
    assert again.next_offset(1) == 10
    assert len(triples(await again.units(1, 0, 100))) == 10
    assert len(await fs.listdir(INDEX_DIR)) == 1
    fill(again, 1, 10, start=10)
    assert again.next_offset(1) == 20


async def test_neighbours_are_merged_and_a_merge_that_was_cut_off_is_finished_by_the_next_start() -> None:
    fs = MemoryFileSystem(random.Random(1))
    index = await fresh(fs)
    sealing = index.freeze(0)
    for n in range(queue_index.MERGE_FILES):
        fill(index, 1, 3, start=3 * n)
        if n == queue_index.MERGE_FILES - 1:
            fill(index, 2, 1)
        sealing = index.freeze(n + 1)
        await index.seal(sealing, LINEAGE)
    names = await fs.listdir(INDEX_DIR)
    assert names == [f"{1:020d}-{queue_index.MERGE_FILES:020d}"]

    # The crash point after the merged file is there and before the small ones went.
    stale = await fs.open(f"{INDEX_DIR}/{3:020d}-{3:020d}", create=True)
    await stale.write(0, [b"left over"], sync=True)
    again = QueueIndex(fs)
    await again.restore(sealing.keys, sealing.lows, sealing.ends, queue_index.MERGE_FILES, LINEAGE)
    assert await fs.listdir(INDEX_DIR) == names
    assert len(triples(await again.units(1, 0, 100))) == 3 * queue_index.MERGE_FILES


async def test_retention_moves_first_offsets_and_drops_whole_files() -> None:
    fs = MemoryFileSystem(random.Random(1))
    index = await fresh(fs)
    fill(index, 1, 10)  # positions 1_000_000 ...
    await index.seal(index.freeze(10), LINEAGE)
    fill(index, 1, 10, start=10)
    await index.seal(index.freeze(20), LINEAGE)
    await index.forget_below(1_000_000 + 12 * 100, 13)
    assert (index.first_offset(1), index.next_offset(1)) == (12, 20)
    assert len(await fs.listdir(INDEX_DIR)) == 1
    await index.forget_below(1_000_000 + 20 * 100, 21)
    assert (index.first_offset(1), index.next_offset(1)) == (20, 20)
    assert await fs.listdir(INDEX_DIR) == []


async def test_a_flipped_bit_in_a_run_or_a_directory_is_noticed() -> None:
    fs = MemoryFileSystem(random.Random(1))
    index = await fresh(fs)
    fill(index, 1, 10)
    sealing = index.freeze(5)
    await index.seal(sealing, LINEAGE)
    path = f"{INDEX_DIR}/{1:020d}-{5:020d}"
    file = await fs.open(path)
    data = await file.pread(0, 10_000)

    async def flip(at: int) -> None:
        await file.write(at, [bytes([data[at] ^ 1])], sync=True)

    for at in (0, 30, 50, 60):
        await flip(at)
        with pytest.raises(IndexDamaged):
            await QueueIndex(fs).restore(sealing.keys, sealing.lows, sealing.ends, 5, LINEAGE)
        await file.write(at, [data[at : at + 1]], sync=True)
    await flip(len(data) - 3)
    again = QueueIndex(fs)
    await again.restore(sealing.keys, sealing.lows, sealing.ends, 5, LINEAGE)
    with pytest.raises(IndexDamaged):
        await again.units(1, 0, 10)
