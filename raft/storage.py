"""What the driver asks of the log: the core's synchronous view, and the disk work behind it.

The log is the host's own (the CommitLog); this package only says what it needs. One writer task per group calls the
writing methods, never two at once; reads run beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from raft.core.types import EntryId, EntryLike, EntryMaker, LogView, Membership, Recovered
from raft.hard_state import StoredState

__all__ = ["DamagedRange", "LogStorage", "StorageDamaged"]


class StorageDamaged(Exception):
    """Bytes of the log are not what was written; they start in the entry with this index (0: not known)."""

    def __init__(self, detail: str, index: int = 0) -> None:
        super().__init__(detail)
        self.index = index


class DamagedRange(Protocol):
    """A hole in the log that peers can fill: the bytes [position, end)."""

    @property
    def position(self) -> int: ...

    @property
    def end(self) -> int: ...


class LogStorage(LogView, Protocol):
    """A group's log, open and recovered."""

    @property
    def maker(self) -> EntryMaker:
        """Makes the entries that the core appends itself."""
        ...

    @property
    def formed(self) -> bool:
        """Does the log belong to a group already (it has a lineage)?"""
        ...

    @property
    def lineage(self) -> int:
        """Tag of the group's lineage, above 0; 0 while unformed."""
        ...

    @property
    def suspect(self) -> bool:
        """The log's own note that a tail may be missing which was acknowledged."""
        ...

    async def clear_suspect(self) -> None:
        """The core trusts the log again, and its hard state says so. Raises OSError."""
        ...

    def recovered(self, state: StoredState) -> Recovered:
        """What recovery found, for the core. Called once, when the core starts."""
        ...

    async def form(self, lineage: int, membership: Membership, first: Sequence[EntryLike] | None) -> None:
        """Make the empty log a group's: write entry 1: `first`, or one made from `lineage` (64 bits) and `membership`.

        Durable when it returns. Raises OSError; a crash in between leaves an unformed or a formed log.
        """
        ...

    def parse(self, body: memoryview) -> Sequence[EntryLike]:
        """Entries as they travel, each checked. Raises `raft.frames.CodecError`."""
        ...

    async def write(self, entries: Sequence[EntryLike]) -> None:
        """Append and sync. Raises OSError: ENOSPC when nothing was written and the log stays usable, else final."""
        ...

    async def truncate(self, to: EntryId) -> None:
        """Cut everything after `to`, durably. Raises OSError."""
        ...

    def cached(self, first: int, last: int) -> Sequence[EntryLike] | None:
        """The entries [first, last] when all of them are in memory."""
        ...

    async def read(self, first: int, last: int) -> Sequence[EntryLike]:
        """The entries [first, last], checked. May end early. Raises OSError, StorageDamaged."""
        ...
