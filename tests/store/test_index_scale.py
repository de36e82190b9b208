"""Many queues are cheap, many snapshots leave few files, and no merge loses a unit or a key."""

from __future__ import annotations

import tracemalloc

import pytest

from broker.store.index_segment import INDEX_DIR, IndexDamaged
from broker.store.key_index import KEY_DIR, KeyIndex
from broker.store.queue_index import QueueIndex
from tests.store.support import LINEAGE, memory, open_store
from tests.store.test_message_store import bodies


@pytest.mark.trio
async def test_many_snapshots_leave_few_files() -> None:
    fs = memory()
    async with open_store(fs) as writer:
        for i in range(150):
            await writer.send(b"A", i % 7, bodies(2, 10), keys=b"k%d" % i, control=b"+A" if i == 0 else b"")
            await writer.store.snapshot()
        assert len(await fs.listdir(INDEX_DIR)) < 30
        assert len(await fs.listdir(KEY_DIR)) < 30
        assert len(await fs.listdir("meta")) == 2
        await writer.check()
    async with open_store(fs, writer=writer) as writer:
        await writer.check()
        tid = writer.tables.topics[b"A"]
        for i in range(0, 150, 11):
            found = await writer.store.query_key(tid, b"k%d" % i, 0, 1 << 50, 10)
            assert len(found) == 2


@pytest.mark.trio
async def test_a_snapshot_older_than_a_merge_is_good_enough() -> None:
    fs = memory()
    async with open_store(fs) as writer:
        for i in range(40):
            await writer.send(b"A", i % 3, bodies(2, 10), control=b"+A" if i == 0 else b"")
            await writer.store.snapshot()
    newest = max(await fs.listdir("meta"))
    fs.flip(f"meta/{newest}", 50)
    async with open_store(fs, writer=writer) as writer:
        await writer.check()


@pytest.mark.trio
async def test_a_run_longer_than_a_row_is_read_across_rows() -> None:
    fs = memory()
    queues = QueueIndex(fs)
    await queues.clear()
    for offset in range(10_000):
        queues.append(7, offset, offset * 100, 100, offset % 5)
    await queues.seal(queues.freeze(1), LINEAGE)
    again = QueueIndex(fs)
    frozen = queues.freeze(1)
    await again.restore(frozen.keys, frozen.lows, frozen.ends, 1, LINEAGE)
    for offset in (0, 4095, 4096, 9_000, 9_999):
        words = await again.units(7, offset, 200)
        assert list(words[::3]) == [at * 100 for at in range(offset, min(offset + 200, 10_000))]


@pytest.mark.trio
@pytest.mark.slow
async def test_fifty_thousand_queues_are_cheap() -> None:
    fs = memory()
    tracemalloc.start()
    queues = QueueIndex(fs)
    await queues.clear()
    for offset in range(3):
        for key in range(50_000):
            queues.append(key, offset, key * 300 + offset, 100, 0)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 64 * 1024 * 1024
    sealing = queues.freeze(9)
    await queues.seal(sealing, LINEAGE)
    assert len(await fs.listdir(INDEX_DIR)) == 1
    again = QueueIndex(fs)
    await again.restore(sealing.keys, sealing.lows, sealing.ends, 9, LINEAGE)
    assert list(await again.units(49_999, 1, 5)) == [49_999 * 300 + 1, 100, 0, 49_999 * 300 + 2, 100, 0]


@pytest.mark.trio
async def test_keys_of_a_range_that_is_missing_are_noticed() -> None:
    fs = memory()
    keys = KeyIndex(fs)
    await keys.clear()
    for last in (3, 6, 9):
        keys.put(1, b"k%d" % last, 1000, last * 100)
        await keys.seal(keys.freeze(last), LINEAGE)
    names = await fs.listdir(KEY_DIR)
    assert len(names) == 3
    await KeyIndex(fs).restore(9, LINEAGE)
    await KeyIndex(fs).restore(9, LINEAGE, first_index=2)
    fs.remove(f"{KEY_DIR}/{names[1]}")
    with pytest.raises(IndexDamaged, match="missing"):
        await KeyIndex(fs).restore(9, LINEAGE)
