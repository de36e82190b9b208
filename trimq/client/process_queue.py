"""What one queue has in hand: offsets that were handed out and are not finished yet.

Messages of a queue are finished in any order (handlers run side by side), but only one number is committed per queue,
and everything below it counts as consumed. So the commit offset is the *smallest unfinished* offset; nothing that is
still in a handler can be skipped by a crash. This is Java's ProcessQueue without its clock and locks: a plain object
that decides, owned by one event loop.

Amortised cost is a few dictionary operations per message, whatever the order of finishing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

__all__ = ["ProcessQueue"]


class ProcessQueue:
    """The unfinished offsets of one queue, and how much memory they hold."""

    __slots__ = ("_done", "_end", "_order", "bytes_held", "dropped")

    def __init__(self, next_offset: int) -> None:
        self._order: deque[int] = deque()
        self._done: set[int] = set()
        self._end = next_offset
        self.bytes_held = 0
        """Bytes of the bodies that are handed out."""
        self.dropped = False
        """True once the queue went to someone else: nothing of it may be committed any more."""

    def __len__(self) -> int:
        """Messages handed out and not finished."""
        return len(self._order) - len(self._done)

    @property
    def commit_offset(self) -> int:
        """All offsets below this one are finished (or were filtered out)."""
        return self._order[0] if self._order else self._end

    @property
    def next_offset(self) -> int:
        """Where the next read begins."""
        return self._end

    @property
    def span(self) -> int:
        """Offsets from the first to the last message in hand; 0 when there is none or one."""
        return self._order[-1] - self._order[0] if self._order else 0

    def is_finished(self, offset: int) -> bool:
        """Is this message done with?"""
        order = self._order
        return not order or offset < order[0] or offset in self._done

    def add(self, offsets: Iterable[int], next_offset: int, size: int) -> None:
        """Take in messages that were read, ascending, and the offset to read from next.

        `next_offset` may lie beyond the last message: what the filter dropped needs no acknowledgement.
        """
        self._order.extend(offsets)
        assert next_offset >= self._end, "a queue is read forwards"
        self._end = next_offset
        self.bytes_held += size

    def finish(self, offset: int, size: int) -> bool:
        """This message is done with. Returns whether the commit offset moved.

        Finishing twice changes nothing. (A seek makes a new ProcessQueue, so a late finish of the old one is harmless.)
        """
        order, done = self._order, self._done
        if not order or offset < order[0] or offset in done:
            return False
        self.bytes_held -= size
        if offset != order[0]:
            done.add(offset)
            return False
        order.popleft()
        while order and order[0] in done:
            done.remove(order.popleft())
        return True
