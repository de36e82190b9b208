"""The slot of the timing wheel that is being delivered: its messages in the order in which they are due.

What waits in a slot is known from index units alone: due time and offset, packed into one integer each, so a million
messages that are due within the same five minutes take eight megabytes and no record is read before its time. Those
that were there when the slot was opened are one sorted array; the few that arrive while it is current are a heap.

Pure: units in, (due, offset) out.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from typing import Final

from broker.metadata.timers import QueueDone
from broker.service.wheel import SLOT_MS, slot_of

__all__ = ["OpenSlot"]

_OFFSET_BITS: Final = 40
_OFFSET_MASK: Final = (1 << _OFFSET_BITS) - 1
UNIT_WORDS: Final = 3


class OpenSlot:
    """One slot in one queue of the timer topic, from its first message that is not done."""

    __slots__ = ("_at", "_base_ms", "_done", "_late", "_sorted", "first", "full", "number", "seen")

    def __init__(self, number: int, first: int, done: QueueDone) -> None:
        self.number = number
        """Slot number: due time divided by the length of a slot."""
        self.first = first
        """Offset at which it begins."""
        self.seen = first
        """Units before this offset are known."""
        self.full = False
        """A message of a later turn of the wheel was seen behind it: nothing more can come."""
        self._done = done
        self._base_ms = number * SLOT_MS
        self._sorted: array[int] = array("q")
        self._at = 0
        self._late: list[int] = []

    @property
    def end_ms(self) -> int:
        return self._base_ms + SLOT_MS

    def __len__(self) -> int:
        return len(self._sorted) - self._at + len(self._late)

    def add(self, words: Sequence[int]) -> None:
        """Index units of the queue from offset `seen` on: position, size, due time each."""
        found: list[int] = []
        done = (self._done.due_ms, self._done.offset)
        for at in range(2, len(words), UNIT_WORDS):
            due = words[at]
            if slot_of(due) != self.number:
                self.full = True
                break
            if (due, self.seen) > done:
                found.append((due - self._base_ms) << _OFFSET_BITS | (self.seen - self.first))
            self.seen += 1
        if not len(self) or len(found) > len(self) // 4:
            rest = [*self._sorted[self._at :], *self._late, *found]
            rest.sort()
            self._sorted, self._at, self._late = array("q", rest), 0, []
        else:
            for each in found:
                heapq.heappush(self._late, each)

    def next_due(self) -> int | None:
        """Due time of the first one."""
        head = self._head()
        return None if head is None else self._base_ms + (head >> _OFFSET_BITS)

    def take(self, until_ms: int, count: int) -> list[tuple[int, int]]:
        """The first ones that are due at or before `until_ms`, as (due time, offset). They are out of the slot."""
        taken: list[tuple[int, int]] = []
        while len(taken) < count:
            head = self._head()
            if head is None:
                break
            due = self._base_ms + (head >> _OFFSET_BITS)
            if due > until_ms:
                break
            if self._late and self._late[0] == head:
                heapq.heappop(self._late)
            else:
                self._at += 1
            taken.append((due, self.first + (head & _OFFSET_MASK)))
        return taken

    def put_back(self, places: Sequence[tuple[int, int]]) -> None:
        """They could not be delivered now."""
        for due, offset in places:
            heapq.heappush(self._late, (due - self._base_ms) << _OFFSET_BITS | (offset - self.first))

    def _head(self) -> int | None:
        known = self._sorted[self._at] if self._at < len(self._sorted) else None
        if self._late and (known is None or self._late[0] < known):
            return self._late[0]
        return known
