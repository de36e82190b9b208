"""The hard state survives every crash point, single rotten copies, and says so when it cannot."""

from __future__ import annotations

import errno
import random
from dataclasses import replace

import pytest

from broker.store.fs_memory import MemoryFileSystem
from raft.hard_state import BLOCK_BYTES, HardStateDamaged, HardStateFile, HardStateTooNew, StateVerdict, StoredState

PATH = "hard-state"
pytestmark = pytest.mark.trio


def memory(seed: int = 0) -> MemoryFileSystem:
    return MemoryFileSystem(random.Random(seed))


async def opened(fs: MemoryFileSystem, *, store_empty: bool = False) -> HardStateFile:
    return await HardStateFile.open(fs, PATH, store_empty=store_empty)


async def saved(fs: MemoryFileSystem, *states: StoredState) -> None:
    file = await opened(fs, store_empty=True)
    for state in states:
        await file.save(state)
    await file.aclose()


VOTED = StoredState(term=5, vote="n1", starts=2, store_uuid="u", cluster="c", group="g")


async def test_an_empty_store_begins_fresh_and_keeps_what_is_saved() -> None:
    fs = memory()
    file = await opened(fs, store_empty=True)
    assert file.verdict is StateVerdict.FRESH
    await file.save(VOTED)
    await file.aclose()
    again = await opened(fs)
    assert (again.verdict, again.state) == (StateVerdict.FOUND, VOTED)


async def test_each_save_survives_a_crash_right_after_it() -> None:
    fs = memory()
    state = VOTED
    await saved(fs, state)
    for term in range(6, 12):
        file = await opened(fs)
        assert file.state == state
        state = replace(state, term=term, vote="")
        await file.save(state)
        fs.crash(keep=0.0)
    assert (await opened(fs)).state == state


@pytest.mark.parametrize("seed", range(40))
async def test_a_crash_during_a_save_leaves_the_old_or_the_new_state(seed: int) -> None:
    fs = memory(seed)
    newer = replace(VOTED, term=6, vote="n2")
    await saved(fs, VOTED)
    file = await opened(fs)
    # The write reaches the cache, its sync never ends: what of it survives is chance.
    fs.lying = True
    await file.save(newer)
    fs.lying = False
    fs.crash()
    again = await opened(fs)
    assert again.verdict is StateVerdict.FOUND
    assert again.state in (VOTED, newer)


@pytest.mark.parametrize("copy", range(2))
async def test_one_rotten_copy_of_the_newest_record_loses_no_vote_and_is_mended(copy: int) -> None:
    fs = memory()
    await saved(fs, StoredState(term=4), VOTED)
    newest = 0  # sequence 2 lives in slot 0
    fs.flip(PATH, (2 * newest + copy) * BLOCK_BYTES + 30)
    file = await opened(fs)
    assert file.state == VOTED
    await file.aclose()
    # Mended: now the other copy of that slot may rot as well.
    fs.flip(PATH, (2 * newest + 1 - copy) * BLOCK_BYTES + 30)
    assert (await opened(fs)).state == VOTED


async def test_no_valid_record_beside_a_log_is_damage_and_not_a_beginning() -> None:
    fs = memory()
    await saved(fs, VOTED)
    fs.replace(PATH, b"\xff" * 4 * BLOCK_BYTES)
    assert (await opened(fs)).verdict is StateVerdict.DAMAGED
    fs.remove(PATH)
    assert (await opened(fs)).verdict is StateVerdict.DAMAGED


async def test_a_failed_save_is_final() -> None:
    fs = memory()
    await saved(fs, VOTED)
    file = await opened(fs)
    fs.fail("write", PATH, error=errno.EIO)
    with pytest.raises(OSError):
        await file.save(replace(VOTED, term=6))
    fs.heal()
    with pytest.raises(HardStateDamaged):
        await file.save(replace(VOTED, term=6))


async def test_the_term_never_falls_and_a_vote_never_changes() -> None:
    fs = memory()
    await saved(fs, VOTED)
    file = await opened(fs)
    with pytest.raises(AssertionError, match="never falls"):
        await file.save(replace(VOTED, term=4))
    with pytest.raises(AssertionError, match="never changed"):
        await file.save(replace(VOTED, vote="n2"))


async def test_a_newer_format_is_refused_by_name() -> None:
    import struct
    import zlib

    fs = memory()
    await saved(fs, VOTED)
    body = struct.pack(">IIQI", 0x74514853, 9, 77, 1) + b"\xa0"
    block = (body + struct.pack(">I", zlib.crc32(body))).ljust(BLOCK_BYTES, b"\0")
    fs.replace(PATH, block * 4)
    with pytest.raises(HardStateTooNew, match="version 9"):
        await opened(fs)


async def test_a_save_needs_no_free_space() -> None:
    fs = memory()
    await saved(fs, StoredState(term=1))
    file = await opened(fs)
    fs.fail("write", "other", error=errno.ENOSPC)
    size = len(fs.content(PATH))
    for term in range(2, 9):
        await file.save(StoredState(term=term))
    assert len(fs.content(PATH)) == size
