"""What can go wrong in the store, by who must act.

`StoreError`
    ├── `StoreRefused`   the store must not be opened like this (another cluster, a newer format): the operator acts
    ├── `StoreBroken`    a law of ours does not hold (a queue offset used twice): this replica group stops
    ├── `LogMismatch`    the caller's entries do not continue the log: the caller is wrong, nothing was written
    ├── `EntryDamaged`   bytes on the disk are not what was written: the replica is damaged until repaired
    └── `LogUnusable`    the log is impaired, damaged, unformed or closed: reopen, repair or form it first

Disk trouble itself stays what it is, an `OSError`. `NoSpace` is one that leaves the log intact.
"""

from __future__ import annotations

import errno

__all__ = [
    "EntryDamaged",
    "LogMismatch",
    "LogUnusable",
    "NoSpace",
    "StoreBroken",
    "StoreError",
    "StoreRefused",
]


class StoreError(Exception):
    """Base of everything the store raises on its own account."""


class StoreRefused(StoreError):
    """The files under this root belong to something else, or to a newer version. Nothing was touched."""


class StoreBroken(StoreError):
    """An invariant does not hold. Going on could serve wrong data: the replica group stops (fail-stop)."""


class LogMismatch(StoreError):
    """The entries do not chain onto the log's last entry. Nothing was written."""


class EntryDamaged(StoreError):
    """Bytes that should be an entry are not one: wrong length, checksum, position, lineage or chain.

    `position` is where the bad entry starts in the log, `index` its index when the caller knew it (else 0).
    """

    def __init__(self, reason: str, *, position: int, index: int = 0) -> None:
        super().__init__(f"{reason} (position {position}, index {index or 'unknown'})")
        self.reason = reason
        self.position = position
        self.index = index


class LogUnusable(StoreError):
    """The log cannot take this call in its present state; the message says which state and why."""


class NoSpace(OSError):
    """The disk is full. Nothing of the refused call was written; the log takes appends again once space is back."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.ENOSPC, f"no space left for {what}")
