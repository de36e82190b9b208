"""What a new leader shows to its source: every entry above the dispatched index, durable or not, in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

import trio

from broker.replication.store_view import ReplicatedStore
from raft.core.types import EntryLike
from raft.group import RaftGroup

if TYPE_CHECKING:
    from broker.store.entry import Entry

__all__ = ["LogTail"]

SLICE_BYTES = 256 << 10
"""After so much the loop gets its turn."""


class LogTail:
    """Iterates (dispatched, last]; `dispatched` is read when the first entry is asked for.

    Raises StorageDamaged, OSError.
    """

    def __init__(self, group: RaftGroup, store: ReplicatedStore, last: int) -> None:
        self.count = 0
        self._group = group
        self._store = store
        self._last = last
        self._next = 0
        self._ready: list[EntryLike] = []
        self._at = 0
        self._unyielded = 0

    def __aiter__(self) -> AsyncIterator[Entry]:
        return self

    async def __anext__(self) -> Entry:
        if self._next == 0:
            self._next = self._store.dispatched + 1
        if self._at == len(self._ready):
            await self._fill()
        entry = self._ready[self._at]
        self._at += 1
        self.count += 1
        self._unyielded += len(entry.data)
        if self._unyielded > SLICE_BYTES:
            self._unyielded = 0
            await trio.lowlevel.checkpoint()
        return cast("Entry", entry)

    async def _fill(self) -> None:
        if self._next > self._last:
            await trio.lowlevel.checkpoint()
            raise StopAsyncIteration
        group = self._group
        core = group.core
        assert core is not None, "a leader has a core"
        pending = core.pending(self._next, self._last)
        stable_last = pending[0].index - 1 if pending else self._last
        if self._next <= stable_last:
            self._ready = list(
                group.storage.cached(self._next, stable_last) or await group.storage.read(self._next, stable_last)
            )
            if not self._ready:
                raise OSError(f"entry {self._next} cannot be read")
        else:
            self._ready = list(pending)
        self._at = 0
        self._next = self._ready[-1].index + 1
