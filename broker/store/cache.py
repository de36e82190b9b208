"""Recent entries in memory, bounded in bytes and in number.

Hot reads (dispatch, followers that keep up, consumers at the tail) are answered from here without a disk. Catch-up
reads go past it, so one late consumer cannot push the tail out: entries read back from the disk have a small
least-recently-used cache of their own.
"""

from __future__ import annotations

from typing import Final

from .entry import Entry

__all__ = ["ColdCache", "RecentEntries"]

RECENT_MAX_COUNT: Final = 16_384
"""Objects, not bytes, are what the garbage collector walks."""


class RecentEntries:
    """A contiguous run of the newest entries."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: dict[int, Entry] = {}
        self._first = 1
        self._bytes = 0

    def add(self, entry: Entry) -> None:
        entries = self._entries
        if entries and entry.index != self._first + len(entries):
            self.clear()
        if not entries:
            self._first = entry.index
        entries[entry.index] = entry
        self._bytes += len(entry.data)
        while (self._bytes > self._max_bytes or len(entries) > RECENT_MAX_COUNT) and len(entries) > 1:
            self._bytes -= len(entries.pop(self._first).data)
            self._first += 1

    def get(self, index: int) -> Entry | None:
        return self._entries.get(index)

    def run(self, index: int, max_bytes: int) -> list[Entry] | None:
        """Entries from `index` on, at least one and at most `max_bytes`; None when the first is not here."""
        entry = self._entries.get(index)
        if entry is None:
            return None
        found = [entry]
        left = max_bytes - len(entry.data)
        get = self._entries.get
        while left > 0:
            index += 1
            entry = get(index)
            if entry is None:
                break
            left -= len(entry.data)
            if left < 0:
                break
            found.append(entry)
        return found

    def cut(self, last_index: int) -> None:
        """Forget the entries above `last_index`."""
        for index in range(max(last_index + 1, self._first), self._first + len(self._entries)):
            self._bytes -= len(self._entries.pop(index).data)

    def clear(self) -> None:
        self._entries.clear()
        self._bytes = 0


class ColdCache:
    """Entries read back from the disk, checked; the least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: dict[int, Entry] = {}
        self._bytes = 0

    def add(self, entry: Entry) -> None:
        if entry.index in self._entries:
            return
        self._entries[entry.index] = entry
        self._bytes += len(entry.data)
        while self._bytes > self._max_bytes and len(self._entries) > 1:
            self._bytes -= len(self._entries.pop(next(iter(self._entries))).data)

    def get(self, index: int) -> Entry | None:
        entry = self._entries.pop(index, None)
        if entry is not None:
            self._entries[index] = entry
        return entry

    def cut(self, last_index: int) -> None:
        for index in [i for i in self._entries if i > last_index]:
            self._bytes -= len(self._entries.pop(index).data)

    def clear(self) -> None:
        self._entries.clear()
        self._bytes = 0
