"""What the driver asks of the log: the core's synchronous view, and the disk work behind it.

The log is the host's own (the CommitLog); this package only says what it needs. One writer task per group calls the
writing methods, never two at once; reads run beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from raft.core.types import EntryId, EntryLike, EntryMaker, LogView, Membership, Recovered
from raft.hard_state import StoredState

__all__ = ["DamagedRange", "LogStorage", "StorageDamaged"]


class StorageDamaged(Exception):
    """Bytes of the log are not what was written; they start in the entry with this index (0: not known)."""

    def __init__(self, detail: str, index: int = 0) -> None:
        super().__init__(detail)
        self.index = index


@dataclass(frozen=True, slots=True)
class DamagedRange:
    """A hole in the log: the entries from `first_index` on are not what was written."""

    first_index: int
    prev: EntryId
    """The good entry before the hole."""
    next_index: int
    """The first good entry behind it; 0 when none is known: then nobody can tell how much is missing."""
    needs_install: bool
    """More is gone than entries can mend."""
    detail: str


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

    async def note_suspect(self) -> None:
        """Remember durably that acknowledged entries may be missing, until `clear_suspect`. Raises OSError."""
        ...

    @property
    def tail_cut(self) -> bool:
        """When the log was read last (at its opening, or after a mending), bytes at its end were cut off."""
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

    @property
    def damage(self) -> DamagedRange | None:
        """What has to be mended before the log can be counted on."""
        ...

    async def mend(self, entries: Sequence[EntryLike]) -> None:
        """Put verified entries in the place of damage; `damage` then says what is still missing.

        Raises `raft.frames.CodecError` when they do not fit the hole, OSError.
        """
        ...

    def parse(self, body: memoryview) -> Sequence[EntryLike]:
        """Entries as they travel, each checked. Raises `raft.frames.CodecError`."""
        ...

    def pack_membership(self, membership: Membership) -> bytes:
        """A membership as members tell it each other: the payload of its entry."""
        ...

    def unpack_membership(self, payload: bytes) -> Membership:
        """Raises `raft.frames.CodecError`."""
        ...

    async def write(self, entries: Sequence[EntryLike]) -> None:
        """Append and sync. Raises OSError: ENOSPC when nothing was written and the log stays usable, else final.

        StorageDamaged: the log turned out to be damaged; nothing more can be written until it is mended.
        """
        ...

    def begin_write(self, entries: Sequence[EntryLike], done: Callable[[OSError | None], None]) -> bool:
        """Begin to append and sync, if nothing has to be waited for before that; else False, and `write` does it.

        `done` is called once, in a later pass and in no task of the caller's: with an error it is final, and how much
        was written is not known. Nothing else may be written before.
        """
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
