"""A mapping over a mapping: the leader's changes on top of the applied state.

The leader decides with what *will be* applied: applied state plus the entries in (dispatched, last] and in its open
batch. Every table works on a `MutableMapping`, so the same code serves the applied state (a plain dict) and the
leader's view (this). What is written here is stamped with the index of the entry that carries it and forgotten as soon
as that entry is applied: from then on the base says the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Final, Generic, TypeVar, cast

__all__ = ["OverlayDict", "Stamp"]

K = TypeVar("K")
V = TypeVar("V")


class Stamp:
    """The index of the entry whose changes are being made; shared by all overlays of one view."""

    __slots__ = ("index",)

    def __init__(self) -> None:
        self.index = 0


_GONE: Final = object()


class OverlayDict(MutableMapping[K, V], Generic[K, V]):
    """`base` as it will be. `forget(applied)` drops changes that the base has by now."""

    __slots__ = ("_base", "_log", "_own", "_stamp")

    def __init__(self, base: Mapping[K, V], stamp: Stamp) -> None:
        self._base = base
        self._stamp = stamp
        self._own: dict[K, tuple[object, int]] = {}
        self._log: deque[tuple[int, K]] = deque()

    def __getitem__(self, key: K) -> V:
        own = self._own.get(key)
        if own is None:
            return self._base[key]
        if own[0] is _GONE:
            raise KeyError(key)
        return cast(V, own[0])

    def find(self, key: K) -> V | None:
        """Like `get`, without the price of an exception for a missing key."""
        own = self._own.get(key)
        if own is None:
            return self._base.get(key)
        return None if own[0] is _GONE else cast(V, own[0])

    def __setitem__(self, key: K, value: V) -> None:
        self._own[key] = (value, self._stamp.index)
        self._log.append((self._stamp.index, key))

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        self._own[key] = (_GONE, self._stamp.index)
        self._log.append((self._stamp.index, key))

    def __contains__(self, key: object) -> bool:
        own = self._own.get(cast(K, key))  # any object may be asked for
        return key in self._base if own is None else own[0] is not _GONE

    def __iter__(self) -> Iterator[K]:
        for key in self._base:
            if key not in self._own:
                yield key
        for key, (value, _) in self._own.items():
            if value is not _GONE:
                yield key

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def own_count(self) -> int:
        """How many keys differ from the base, or may."""
        return len(self._own)

    def forget(self, applied: int) -> None:
        """Entries up to `applied` are in the base now."""
        log = self._log
        while log and log[0][0] <= applied:
            key = log.popleft()[1]
            own = self._own.get(key)
            if own is not None and own[1] <= applied:
                del self._own[key]
