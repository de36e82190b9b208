"""Compiled filters by their words.

Clients repeat their subscription in every pull, so its filter is compiled once and kept. What is kept is bounded by the
length of all expressions together (compiled, one takes some twenty times its text), refusals are kept as well, and the
least recently used goes first. Tag expressions are cheap and compiled on the spot; a SQL92 condition that is not known
yet is worth a turn of its own (`known` says so by None), since a long one takes milliseconds.
"""

from __future__ import annotations

from typing import Final

from broker.filter.selection import FilterError, Selection, parse_filter

__all__ = ["FilterCache"]

CHARS_MAX: Final = 1 << 20
COUNT_MAX: Final = 4096


class FilterCache:
    """The filters of one replica."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Selection | FilterError] = {}
        self._chars = 0

    def known(self, expression: str, kind: str) -> Selection | None:
        """The filter, or None when compiling it is worth a turn of its own. Raises `FilterError`."""
        key = expression, kind
        found = self._found.pop(key, None)
        if found is None:
            return None if kind == "SQL92" else self.compile(expression, kind)
        self._found[key] = found
        if isinstance(found, FilterError):
            raise found
        return found

    def compile(self, expression: str, kind: str) -> Selection:
        """Compile and keep. Raises `FilterError`."""
        try:
            found: Selection | FilterError = parse_filter(expression, kind)
        except FilterError as error:
            found = error.with_traceback(None)
        key = expression, kind
        if key not in self._found:
            self._chars += len(expression)
        self._found[key] = found
        while self._chars > CHARS_MAX or len(self._found) > COUNT_MAX:
            oldest = next(iter(self._found))
            del self._found[oldest]
            self._chars -= len(oldest[0])
        if isinstance(found, FilterError):
            raise found
        return found
