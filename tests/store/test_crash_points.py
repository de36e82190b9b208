"""The power goes in the middle of every call that changes the disk, once for each, during a short workload.

After it: the log opens without damage, holds everything that was reported done, and serves a prefix of what was
written. Then the power goes again, during that recovery.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from broker.store.commit_log import CommitLog, open_commit_log
from broker.store.entry import Entry
from broker.store.fs_memory import MemoryFileSystem
from broker.store.recovery import Verdict
from tests.store.support import LINEAGE, SEGMENT, chain, data, whole


@dataclass
class Story:
    """What the workload did, as somebody outside saw it."""

    stored: list[Entry] = field(default_factory=list)
    """Reported durable and not reported truncated since."""
    tried: list[list[Entry]] = field(default_factory=list)
    """Every log content that may legitimately be found."""
    formed: bool = False


async def workload(log: CommitLog, story: Story) -> None:
    """Form, append small and large, roll over, truncate within and over segments, drop the oldest segment."""

    async def append(count: int, *, term: int, size: int, step: int) -> None:
        entries = chain(log.last, count, term=term, size=size, hint=0)
        for at in range(0, len(entries), step):
            part = entries[at : at + step]
            story.tried.append([*story.stored, *part])
            await log.append(part)
            story.stored.extend(part)

    async def truncate(keep: int) -> None:
        before = list(story.stored)
        story.stored = story.stored[:keep]
        story.tried.append(before)
        await log.truncate_after(keep)

    await log.form(LINEAGE, SEGMENT)
    await append(6, term=1, size=900, step=2)
    await append(4, term=1, size=20_000, step=3)  # into the second segment
    await log.quiet()
    await truncate(8)
    await append(3, term=2, size=3_000, step=3)
    await truncate(3)  # back into the first segment
    await append(8, term=3, size=20_000, step=4)
    await log.quiet()
    await log.marks.put(floor=log.last)
    await log.drop_first_segments(1)
    await append(2, term=3, size=5_000, step=1)


async def run(fs: MemoryFileSystem, story: Story) -> None:
    try:
        async with open_commit_log(fs) as log:
            await workload(log, story)
    except* OSError:
        pass


async def check(fs: MemoryFileSystem, story: Story) -> None:
    async with open_commit_log(fs, clean_on_exit=False) as log:
        assert log.verdict is not Verdict.DAMAGED, log.detail
        assert log.fault is None
        found = data(await whole(log))
        skip = log.first_index - 1
        assert len(found) + skip >= len(story.stored)
        assert found[: len(story.stored) - skip] == data(story.stored[skip:])
        assert not found or any(found == data(content[skip : skip + len(found)]) for content in story.tried)
        if log.formed:
            again = chain(log.last, 2, term=9, size=500)
            await log.append(again)
            assert data(await whole(log)) == [*found, *data(again)]
            story.stored = [*_parsed(log, story), *again]
            story.tried = [story.stored]


def _parsed(log: CommitLog, story: Story) -> list[Entry]:
    """The content that was found, from what was tried."""
    last = log.last.index - 2
    for content in [story.stored, *story.tried]:
        if len(content) >= last and (last == 0 or log.entry_id(last) == content[last - 1].id):
            return content[:last]
    raise AssertionError("unknown content")


async def count_calls() -> int:
    fs = MemoryFileSystem(random.Random(0))
    await run(fs, Story())
    return fs.durable_calls


@pytest.mark.trio
@pytest.mark.slow
@pytest.mark.computes
async def test_every_crash_point() -> None:
    calls = await count_calls()
    assert calls > 80
    verdicts: set[Verdict] = set()
    for at in range(1, calls + 1):
        for seed, keep in enumerate((0.0, 1.0, None, None)):
            fs = MemoryFileSystem(random.Random(f"{at}/{seed}"))
            fs.power_cut_at = at
            story = Story()
            await run(fs, story)
            fs.crash(keep=keep)
            # A second cut, somewhere in the recovery and what follows.
            fs.power_cut_at = fs.durable_calls + 1 + (at * 7 + seed) % 12
            try:
                await check(fs, story)
            except* OSError:
                fs.crash(keep=keep)
            fs.power_cut_at = 0
            story.tried.append(story.stored)
            async with open_commit_log(fs, clean_on_exit=False) as log:
                verdicts.add(log.verdict)
                assert log.verdict is not Verdict.DAMAGED, (at, seed, log.detail)
                found = data(await whole(log))
                skip = log.first_index - 1
                assert found[: len(story.stored) - skip] == data(story.stored[skip:]), (at, seed)
    assert Verdict.CRASH in verdicts
