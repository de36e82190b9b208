"""Held pulls: a table of who waits for which queue.

A pull that finds nothing is an entry here until its queue is touched, its deadline passes or its connection ends; when
the table is full it is answered at once, and the client asks again (`holding`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from broker.replication.base import ReplyTo
from broker.service.holding import Held, Holding

__all__ = ["HeldPull", "HoldTable"]

PER_LINK_MAX = 8_192
"""Held pulls of one connection: more queues than one consumer can sensibly own."""


@dataclass(slots=True, eq=False, kw_only=True)
class HeldPull(Held):
    """One pull. Its deadline is 0 when the client did not allow holding."""

    key: int
    """tid << 16 | queue."""
    offset: int
    """Where the client asked to begin."""
    scanned: int = field(init=False)
    """Everything from `offset` up to here was looked at and did not match the filter."""
    max_count: int
    max_bytes: int

    def __post_init__(self) -> None:
        self.scanned = self.offset


class HoldTable:
    """All held pulls of one replica."""

    def __init__(self, *, total_max: int, per_link_max: int = PER_LINK_MAX) -> None:
        self._held: Holding[HeldPull] = Holding(total_max=total_max, per_link_max=per_link_max)
        self._by_key: dict[int, dict[HeldPull, None]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: object) -> bool:
        """Does anybody wait for this queue?"""
        return key in self._by_key

    def waiting(self, key: int) -> int:
        return len(self._by_key.get(key, ()))

    def add(self, pull: HeldPull) -> bool:
        """Hold `pull` until its deadline. False when a limit is reached: answer it now."""
        if not self._held.add(pull):
            return False
        self._by_key.setdefault(pull.key, {})[pull] = None
        return True

    def take(self, keys: Iterable[int]) -> list[HeldPull]:
        """Release every pull that waits for one of these queues, oldest first per queue."""
        found: list[HeldPull] = []
        for key in keys:
            pulls = self._by_key.pop(key, None)
            if pulls is not None:
                found.extend(pulls)
        for pull in found:
            self._held.remove(pull)
        return found

    def take_all(self) -> list[HeldPull]:
        """Release everything: the role changed."""
        return self.take(list(self._by_key))

    def due(self, now: float) -> list[HeldPull]:
        """Release what has waited long enough, in order of deadline slots."""
        found = self._held.take_due(now)
        for pull in found:
            self._unlist(pull)
        return found

    def closed(self, link: ReplyTo) -> None:
        """Forget the pulls of a connection that ended."""
        for pull in self._held.of(link):
            self._held.remove(pull)
            self._unlist(pull)

    def _unlist(self, pull: HeldPull) -> None:
        waiting = self._by_key[pull.key]
        del waiting[pull]
        if not waiting:
            del self._by_key[pull.key]
