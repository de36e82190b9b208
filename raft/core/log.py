"""The log in memory: what is on disk (the `LogView`) and behind it the entries whose write has not finished.

`durable` divides the two. Up to it the view answers, above it the list of pending entries does, and the view is not
even looked at: it may still show a tail that a queued truncation removes, or one that a later batch will bring back.
The three movements:

- `append` adds to the end and checks the chain: index, header CRC of the entry before, byte position, terms that never
  fall (S15: a position is a function of the log's prefix);
- `truncate_after` lowers `durable` at once, long before the disk follows;
- `written` raises it, to what the write queue says (see `writes.py` for the ABA race this avoids).

Every id is computed from the log as it is now, so no cached term of a durable index can outlive a truncation.
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.errors import InvariantBroken
from raft.core.types import ZERO, EntryId, EntryIdLike, EntryLike, LogView

__all__ = ["RaftLog", "check_chain"]


def check_chain(prev: EntryIdLike, entries: Sequence[EntryLike]) -> None:
    """Raise InvariantBroken (S15) unless the entries follow `prev` and each other exactly."""
    for entry in entries:
        if entry.index != prev.index + 1 or entry.prev_crc != prev.crc or entry.position != prev.end:
            raise InvariantBroken(
                "S15",
                f"entry {entry.index} at position {entry.position} (previous CRC {entry.prev_crc:08x}) does not follow "
                f"entry {prev.index} that ends at {prev.end} (CRC {prev.crc:08x})",
            )
        if entry.term < prev.term:
            raise InvariantBroken("S15", f"entry {entry.index} has term {entry.term} after term {prev.term}")
        prev = entry


class RaftLog:
    """The log as this replica sees it. `last` is its end, durable or not."""

    __slots__ = ("_pending", "durable", "last", "view")

    def __init__(self, view: LogView) -> None:
        self.view = view
        self.last: EntryId = EntryId.of(view.last)
        self.durable: int = self.last.index
        """The newest index that is known to be on stable storage together with all before it."""
        self._pending: list[EntryLike] = []

    @property
    def first_index(self) -> int:
        return self.view.first_index

    def entry_id(self, index: int) -> EntryId | None:
        """Id of an entry; None outside [first_index - 1, last.index]."""
        if index > self.durable:
            if index > self.last.index:
                return None
            if index == self.last.index:
                return self.last
            return EntryId.of(self._pending[index - self.durable - 1])
        if index == 0 and self.view.first_index == 1:
            return ZERO
        found = self.view.entry_id(index)
        return None if found is None else EntryId.of(found)

    def term_at(self, index: int) -> int | None:
        """Term of an entry; None where `entry_id` is None."""
        if index > self.durable:
            return self._pending[index - self.durable - 1].term if index <= self.last.index else None
        found = self.entry_id(index)
        return None if found is None else found.term

    def last_index_at_most(self, index: int, term: int) -> int:
        """The largest own index <= `index` whose term is <= `term`: where two logs can still agree, without I/O."""
        index = min(index, self.last.index)
        pending = self._pending
        low, high = 0, max(0, index - self.durable)
        while low < high:  # how many of the pending ones have a term that is small enough
            middle = (low + high) // 2
            if pending[middle].term <= term:
                low = middle + 1
            else:
                high = middle
        if low:
            return self.durable + low
        return min(index, self.durable, self.view.last_index_at_most(term))

    def pending(self, first: int, last: int) -> list[EntryLike]:
        """The entries of [first, last] whose write has not finished: a suffix of the range."""
        start = max(first, self.durable + 1)
        return self._pending[start - self.durable - 1 : max(0, last - self.durable)]

    def append(self, entries: Sequence[EntryLike]) -> None:
        check_chain(self.last, entries)
        self._pending.extend(entries)
        self.last = EntryId.of(entries[-1])

    def truncate_after(self, index: int) -> EntryId:
        """Forget everything after `index`; returns its id, onto which the disk has to be cut."""
        kept = self.entry_id(index)
        if kept is None:
            raise InvariantBroken(
                "S10", f"cannot cut after {index}: the log holds {self.first_index}..{self.last.index}"
            )
        if index < self.durable:
            self.durable = index
            self._pending.clear()
        else:
            del self._pending[index - self.durable :]
        self.last = kept
        return kept

    def written(self, index: int) -> None:
        """Everything up to `index` is on disk, and no queued batch will change it."""
        if index <= self.durable:
            return
        entry = self.entry_id(index)
        shown = self.view.entry_id(index)
        if entry is None or shown is None or shown.crc != entry.crc or shown.term != entry.term:
            raise InvariantBroken("S11", f"entry {index} was reported written, but the log on disk does not show it")
        del self._pending[: index - self.durable]
        self.durable = index

    def fit(self, first: int, max_bytes: int) -> EntryId:
        """Id of the last entry of a run that starts at `first` and takes at most `max_bytes`, or of `first` alone."""
        before = self.entry_id(first - 1)
        assert before is not None, "the caller has looked at first - 1"
        limit = before.end + max_bytes
        if self.last.end <= limit:
            return self.last
        low, high = first, self.last.index  # the answer lies in [low, high)
        while high - low > 1:
            middle = (low + high) // 2
            found = self.entry_id(middle)
            if found is not None and found.end <= limit:
                low = middle
            else:
                high = middle
        end = self.entry_id(low)
        assert end is not None, "between first and last"
        return end
