"""What is known of the log without a disk: its segments, the place and header CRC of each entry, its terms."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from .entry import START, EntryId
from .segment import Segment
from .term_table import TermTable

__all__ = ["LogIndex", "SegmentInfo"]


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """A sealed segment, for retention and export."""

    base_index: int
    last_index: int
    base_position: int
    end_position: int


class LogIndex:
    """Eight bytes per entry and a short list of terms; every answer is a bisection."""

    def __init__(self) -> None:
        self.lineage = 0
        """32-bit tag; 0 while unformed."""
        self.segment_bytes = 0
        self.terms = TermTable()
        self.last: EntryId = START
        """Newest entry that is written; on the disk, unless it was appended with `sync=False`."""
        self.durable: EntryId = START
        """Newest entry that is surely on the disk, with everything before it."""
        self.generation = 0
        """Rises with every truncation and repair."""
        self._segments: list[Segment] = []
        self._bases: list[int] = []
        self._base_positions: list[int] = []

    @property
    def formed(self) -> bool:
        """Whether this log belongs to a lineage. An unformed replica neither votes nor counts."""
        return bool(self._segments)

    @property
    def first_index(self) -> int:
        """Oldest entry that is stored; `last.index + 1` when there is none."""
        return self._bases[0] if self._bases else 1

    @property
    def first_position(self) -> int:
        return self._base_positions[0] if self._base_positions else 0

    @property
    def base(self) -> EntryId:
        """The entry before the first."""
        return self._segments[0].header.prev if self._segments else START

    def entry_id(self, index: int) -> EntryId | None:
        """Identity of a stored entry or of the one before the first; None outside `[first - 1, last]`."""
        last = self.last
        if index == last.index:
            return last
        if index > last.index or index < self.first_index - 1:
            return None
        if index == self.first_index - 1:
            return self.base
        segment = self._segment_of(index)
        return EntryId(
            index, self.terms.term_of(index), segment.crc_of(index), segment.base_position + segment.end_of(index)
        )

    def term_of(self, index: int) -> int | None:
        """Term of a stored entry or of the one before the first; None outside `[first - 1, last]`."""
        if not self.first_index - 1 <= index <= self.last.index:
            return None
        return self.terms.term_of(index)

    def last_index_of_term(self, term: int) -> int:
        """Largest stored index whose term is at most `term`, `first - 1` when there is none."""
        return self.terms.last_index_of_term(term, self.last.index)

    def position_of(self, index: int) -> int:
        """Start of a stored entry. Raises `LookupError`."""
        if not self.first_index <= index <= self.last.index:
            raise LookupError(f"entry {index} is not in the log [{self.first_index}, {self.last.index}]")
        segment = self._segment_of(index)
        return segment.base_position + segment.start_of(index)

    def index_at(self, position: int) -> int:
        """Index of the entry that contains a position. Raises `LookupError` outside the log."""
        if not self.first_position <= position < self.last.end:
            raise LookupError(f"position {position} is not in the log [{self.first_position}, {self.last.end})")
        return self._segments[bisect_right(self._base_positions, position) - 1].index_at(position)

    def sealed_segments(self) -> list[SegmentInfo]:
        """All segments but the newest, oldest first."""
        return [SegmentInfo(s.base_index, s.last_index, s.base_position, s.end_position) for s in self._segments[:-1]]

    def _segment_of(self, index: int) -> Segment:
        newest = self._segments[-1]
        if index >= newest.header.base_index:
            return newest
        return self._segments[bisect_right(self._bases, index) - 1]

    def _note_segments(self) -> None:
        self._bases[:] = [s.base_index for s in self._segments]
        self._base_positions[:] = [s.base_position for s in self._segments]
