"""Helpers for the store's tests: entries by the handful, a log opened on a disk in memory."""

from __future__ import annotations

import random
from collections.abc import Sequence

from broker.store.commit_log import CommitLog
from broker.store.entry import START, Entry, EntryId, EntryKind, fits, seal_entry, seal_filler
from broker.store.fs_memory import MemoryFileSystem

LINEAGE = 0x1234ABCD
SEGMENT = 64 * 1024


def memory(seed: int = 1) -> MemoryFileSystem:
    return MemoryFileSystem(random.Random(seed))


def blob(size: int, seed: int) -> bytes:
    """A fake record: its size first (as in a real one), then bytes that are never a whole sector of zeros."""
    assert size >= 4
    return size.to_bytes(4, "big") + random.Random(seed).randbytes(size - 4)


def chain(
    prev: EntryId = START,
    count: int = 1,
    *,
    term: int = 1,
    size: int = 500,
    segment_bytes: int = SEGMENT,
    hint: int | None = None,
    lineage: int = LINEAGE,
) -> list[Entry]:
    """`count` message entries of about `size` bytes behind `prev`, with fillers where a segment ends."""
    entries: list[Entry] = []
    made = 0
    while made < count:
        commit = max(prev.index - 1, 0) if hint is None else hint
        record = blob(size, prev.index + 1 + 1000 * term)
        if not fits(prev.end, 64 + len(record), segment_bytes):
            entry = seal_filler(prev=prev, term=term, lineage=lineage, commit_hint=commit, segment_bytes=segment_bytes)
        else:
            entry = seal_entry(
                kind=EntryKind.MESSAGES, prev=prev, term=term, lineage=lineage, commit_hint=commit,
                records=[record], record_count=1,
            )  # fmt: skip
            made += 1
        entries.append(entry)
        prev = entry.id
    return entries


async def fill(log: CommitLog, count: int, *, term: int = 1, size: int = 500, step: int = 1) -> list[Entry]:
    """Append entries, `step` to a write."""
    if not log.formed:
        await log.form(LINEAGE, SEGMENT)
    entries = chain(log.last, count, term=term, size=size, segment_bytes=log.segment_bytes)
    for at in range(0, len(entries), step):
        await log.append(entries[at : at + step])
    return entries


async def whole(log: CommitLog) -> list[Entry]:
    """Every entry of the log, read from wherever it is."""
    entries: list[Entry] = []
    index = log.first_index
    while index <= log.last.index:
        entries.extend(await log.read(index, 100_000))
        index = entries[-1].index + 1
    return entries


def data(entries: Sequence[Entry]) -> list[bytes]:
    return [entry.data for entry in entries]
