"""Look-ups by key: in memory, while being sealed, from sealed files, and by time."""

from __future__ import annotations

import random

import pytest

from broker.store.fs_memory import MemoryFileSystem
from broker.store.index_segment import IndexDamaged
from broker.store.key_index import KEY_DIR, KeyIndex

pytestmark = pytest.mark.trio

LINEAGE = 5
END = 10**15


async def test_a_key_is_found_before_while_and_after_it_is_sealed() -> None:
    fs = MemoryFileSystem(random.Random(1))
    keys = KeyIndex(fs)
    await keys.clear()
    for n in range(2000):
        keys.put(1, b"key-%d" % (n % 500), n * 1000, n)
    wanted = [1507, 1007, 507, 7]
    assert await keys.lookup(1, b"key-7", 0, END, 10) == wanted
    sealing = keys.freeze(9)
    assert await keys.lookup(1, b"key-7", 0, END, 10) == wanted
    await keys.seal(sealing, LINEAGE)
    assert await keys.lookup(1, b"key-7", 0, END, 10) == wanted
    assert await keys.lookup(2, b"key-7", 0, END, 10) == []
    assert await keys.lookup(1, b"key-7", 600_000, 1_200_000, 10) == [1007]
    keys.put(1, b"key-7", 3_000_000, 9999)
    assert (await keys.lookup(1, b"key-7", 0, END, 2)) == [9999, 1507]


async def test_a_restart_keeps_sealed_keys_and_drops_those_behind_the_snapshot() -> None:
    fs = MemoryFileSystem(random.Random(1))
    keys = KeyIndex(fs)
    await keys.clear()
    keys.put(1, b"a", 1000, 10)
    await keys.seal(keys.freeze(3), LINEAGE)
    keys.put(1, b"a", 2000, 20)
    await keys.seal(keys.freeze(6), LINEAGE)
    again = KeyIndex(fs)
    await again.restore(3, LINEAGE)
    assert await again.lookup(1, b"a", 0, END, 10) == [10]
    assert len(await fs.listdir(KEY_DIR)) == 1
    await again.forget_below(4)
    assert await fs.listdir(KEY_DIR) == []


async def restart_and_look(fs: MemoryFileSystem) -> list[int]:
    again = KeyIndex(fs)
    await again.restore(3, LINEAGE)
    return await again.lookup(1, b"a", 0, END, 10)


async def test_a_flipped_bit_is_noticed() -> None:
    fs = MemoryFileSystem(random.Random(1))
    keys = KeyIndex(fs)
    await keys.clear()
    keys.put(1, b"a", 1000, 10)
    await keys.seal(keys.freeze(3), LINEAGE)
    file = await fs.open(f"{KEY_DIR}/{1:020d}-{3:020d}")
    data = await file.pread(0, 10_000)
    for at in range(len(data)):
        await file.write(at, [bytes([data[at] ^ 4])], sync=True)
        with pytest.raises(IndexDamaged):
            await restart_and_look(fs)
        await file.write(at, [data[at : at + 1]], sync=True)
