"""Which term an index belongs to, from one short list: (term, first index, first position) for each term in the log.

It answers `term_of(i)` by bisection without I/O, gives the last index of any term (matching and conflict hints of the
append protocol), and doubles as the epoch list of the master-slave strategies. Terms never fall along the log.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["TermStart", "TermTable"]


@dataclass(frozen=True, slots=True)
class TermStart:
    term: int
    first_index: int
    first_position: int


class TermTable:
    """Terms of the entries in `(base index, last]`, and of the base entry itself."""

    def __init__(self, base_index: int = 0, base_term: int = 0) -> None:
        self._base_index = base_index
        self._base_term = base_term
        self._terms: list[int] = []
        self._firsts: list[int] = []
        self._positions: list[int] = []

    def note(self, index: int, term: int, position: int) -> None:
        """An entry was appended. Terms must not fall."""
        last = self._terms[-1] if self._terms else -1
        if term != last:
            assert term > max(last, self._base_term - 1), (term, last, self._base_term)
            self._terms.append(term)
            self._firsts.append(index)
            self._positions.append(position)

    def term_of(self, index: int) -> int:
        """Term of an entry at or above the base; an index beyond the last has the last term (the caller checks)."""
        at = bisect_right(self._firsts, index) - 1
        if at >= 0:
            return self._terms[at]
        if index == self._base_index:
            return self._base_term
        raise LookupError(f"index {index} is before the log's base {self._base_index}")

    def last_index_of_term(self, term: int, last_index: int) -> int:
        """Largest index whose term is at most `term`; the base index when all entries are newer."""
        at = bisect_right(self._terms, term)
        return last_index if at == len(self._terms) else max(self._firsts[at] - 1, self._base_index)

    def truncate_after(self, index: int) -> None:
        at = bisect_right(self._firsts, index)
        del self._terms[at:], self._firsts[at:], self._positions[at:]

    def drop_to(self, base_index: int) -> None:
        """The entries up to and including `base_index` are gone; it becomes the base."""
        self._base_term = self.term_of(base_index)
        self._base_index = base_index
        at = bisect_left(self._firsts, base_index + 1)
        if at == len(self._firsts) or self._firsts[at] > base_index + 1:
            at -= 1  # the term at hand began earlier: it stays
        at = max(at, 0)
        del self._terms[:at], self._firsts[:at], self._positions[:at]

    def starts(self) -> Sequence[TermStart]:
        """All terms, oldest first."""
        return [TermStart(*row) for row in zip(self._terms, self._firsts, self._positions, strict=True)]
