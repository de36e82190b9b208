"""A disk, entries and an entry maker in memory, with which the pure core runs in tests.

Entries carry a real header chain (CRC over index, term, position, payload and the CRC before), so equal CRC means equal
prefix, as on the real disk. The disk applies the steps of a batch one by one (hard state, cut, entry, entry ...) and
can be stopped between any two of them, which is what a crash does.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from raft.core import (
    KIND_MEMBERSHIP,
    KIND_NOOP,
    ZERO,
    AppendBatch,
    EntryId,
    EntryIdLike,
    EntryLike,
    HardState,
    Member,
    Membership,
)

__all__ = ["Disk", "Entry", "Maker", "members", "seal", "seal_terms"]

KIND_MESSAGES = 1
KIND_FILLER = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """What `EntryLike` asks for, and a payload that tests can read."""

    index: int
    term: int
    kind: int
    prev_crc: int
    position: int
    size: int
    crc: int
    payload: object

    @property
    def end(self) -> int:
        return self.position + self.size

    @property
    def data(self) -> bytes:
        return b""


def seal(prev: EntryIdLike, term: int, payload: object = "", *, kind: int = KIND_MESSAGES, size: int = 100) -> Entry:
    """The entry after `prev`."""
    index, position = prev.index + 1, prev.end
    header = f"{index} {term} {kind} {prev.crc} {position} {size} {payload!r}"
    return Entry(index, term, kind, prev.crc, position, size, zlib.crc32(header.encode()), payload)


def seal_terms(terms: Sequence[int], prev: EntryIdLike = ZERO) -> list[Entry]:
    """A run of entries with these terms. The same terms give the same entries."""
    entries: list[Entry] = []
    for term in terms:
        entries.append(seal(prev, term, f"t{term}"))
        prev = entries[-1]
    return entries


def members(
    voters: str | Sequence[str], learners: str | Sequence[str] = (), ranks: dict[str, int] | None = None
) -> Membership:
    """A membership of these ids, every rank 0 unless given."""
    ranks = ranks or {}
    return Membership(
        tuple(Member(v, ranks.get(v, 0)) for v in sorted(voters)), tuple(Member(x) for x in sorted(learners))
    )


class Maker:
    """Entries of the core's own."""

    def __init__(self, filler_every: int = 0) -> None:
        self.filler_every = filler_every

    def noop(self, prev: EntryId, term: int, commit: int) -> Sequence[EntryLike]:
        return self._behind_filler(prev, term, KIND_NOOP, "noop")

    def membership(self, prev: EntryId, term: int, commit: int, membership: Membership) -> Sequence[EntryLike]:
        return self._behind_filler(prev, term, KIND_MEMBERSHIP, membership)

    def read_membership(self, entry: EntryLike) -> Membership:
        assert isinstance(entry, Entry)
        assert isinstance(entry.payload, Membership)
        return entry.payload

    def _behind_filler(self, prev: EntryId, term: int, kind: int, payload: object) -> Sequence[EntryLike]:
        made: list[Entry] = []
        if self.filler_every and (prev.index + 1) % self.filler_every == 0:
            made.append(seal(prev, term, "filler", kind=KIND_FILLER, size=64))
        made.append(seal(made[-1] if made else prev, term, payload, kind=kind))
        return made


class Disk:
    """Stable storage of one replica: a `LogView`, the hard state, and the batches whose write has not finished."""

    def __init__(self, entries: Sequence[EntryLike] = (), hard: HardState | None = None) -> None:
        self.entries: list[EntryLike] = list(entries)
        self.hard = hard or HardState()
        self.dropped = 0
        """How many of the first entries retention has deleted."""
        self.rotted: set[int] = set()
        """CRCs of entries that were durable and that damage took away again."""
        self.queue: deque[AppendBatch] = deque()
        self.steps_done = 0
        """Steps of the oldest batch that have reached the disk."""

    # -- LogView ----------------------------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        return self.dropped + 1

    @property
    def last(self) -> EntryId:
        return EntryId.of(self.entries[-1]) if self.entries else ZERO

    def entry_id(self, index: int) -> EntryIdLike | None:
        if index < self.dropped or index > len(self.entries):
            return None
        return self.entries[index - 1] if index else ZERO

    def last_index_at_most(self, term: int) -> int:
        low, high = 0, len(self.entries)
        while low < high:
            middle = (low + high) // 2
            if self.entries[middle].term <= term:
                low = middle + 1
            else:
                high = middle
        return low

    # -- what the writer does ---------------------------------------------------------------------------------------

    def read(self, first: int, last: int) -> list[EntryLike]:
        assert first > self.dropped
        return self.entries[first - 1 : last]

    def holds(self, index: int, crc: int) -> bool:
        return index <= len(self.entries) and (index == 0 or self.entries[index - 1].crc == crc)

    def rot(self, count: int) -> None:
        """Lose the last `count` entries although they had been synced."""
        self.rotted.update(entry.crc for entry in self.entries[-count:])
        del self.entries[-count:]

    def install(self, source: Disk, end: int) -> None:
        """Take over another replica's log up to `end`."""
        self.entries = source.entries[:end]
        self.dropped = source.dropped

    def finish(self) -> int:
        """The oldest batch reaches the disk; returns its number."""
        batch = self.queue.popleft()
        for step in self._steps(batch)[self.steps_done :]:
            self._apply(step)
        self.steps_done = 0
        return batch.seq

    def crash(self, steps: int) -> None:
        """Up to `steps` more steps reach the disk, everything behind them is lost."""
        for batch in self.queue:
            for step in self._steps(batch):
                if steps <= 0:
                    break
                self._apply(step)
                steps -= 1
        self.queue.clear()

    def pending_steps(self) -> int:
        return sum(len(self._steps(batch)) for batch in self.queue)

    @staticmethod
    def _steps(batch: AppendBatch) -> list[HardState | EntryId | EntryLike]:
        steps: list[HardState | EntryId | EntryLike] = []
        if batch.hard_state is not None:
            steps.append(batch.hard_state)
        if batch.truncate_to is not None:
            steps.append(batch.truncate_to)
        steps.extend(batch.entries)
        return steps

    def _apply(self, step: HardState | EntryId | EntryLike) -> None:
        if isinstance(step, HardState):
            assert step.term >= self.hard.term, "the term on disk goes back"
            self.hard = step
        elif isinstance(step, EntryId):
            assert self.dropped <= step.index <= len(self.entries)
            del self.entries[step.index :]
            assert self.last == step
        else:
            assert step.index == len(self.entries) + 1
            assert step.prev_crc == self.last.crc
            self.entries.append(step)
