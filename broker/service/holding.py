"""Held requests: what they all have, and who of them belongs to which connection and is due when.

A request that finds nothing is an entry in a table until there is news for it, its deadline passes or its connection
ends: no task, timer or event per request. The tables (`hold` for pulls, `pop_waits` for pops) know what news is for
whom; here they are bounded, in all and per connection, and their deadlines stand in a wheel of 100 ms slots, so that a
sweep costs what is due and not what is held. Pure: `now` is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from broker.filter.selection import Selection
from broker.replication.base import ReplyTo

__all__ = ["SLOT_S", "Held", "Holding"]

SLOT_S = 0.1
"""Seconds: how late a deadline may be noticed."""


@dataclass(slots=True, eq=False, kw_only=True)
class Held:
    """A request that may be held, as much of it as an answer needs. Compared by identity."""

    reply: ReplyTo
    opaque: int
    serialize: int
    group: str
    topic: str
    filter: Selection
    deadline: float
    """Monotonic seconds."""
    active: bool = field(default=False, init=False)
    """It is held now."""
    slot: int = field(default=0, init=False)
    """Of the wheel, while it is held."""


H = TypeVar("H", bound=Held)


class Holding(Generic[H]):
    """All held requests of one kind in one replica."""

    def __init__(self, *, total_max: int, per_link_max: int) -> None:
        self._total_max = total_max
        self._per_link_max = per_link_max
        self._by_link: dict[ReplyTo, dict[H, None]] = {}
        self._wheel: dict[int, dict[H, None]] = {}
        self._next_slot: int | None = None
        """None of the wheel's slots comes before this one; None: the wheel is empty."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, link: ReplyTo) -> list[H]:
        """The requests of a connection, oldest first."""
        return list(self._by_link.get(link, ()))

    def add(self, held: H) -> bool:
        """Hold it until its deadline. False when a limit is reached: answer it now."""
        own = self._by_link.get(held.reply)
        if self._count >= self._total_max or (own is not None and len(own) >= self._per_link_max):
            return False
        held.active = True
        if own is None:
            own = self._by_link[held.reply] = {}
        own[held] = None
        held.slot = int(held.deadline / SLOT_S) + 1
        self._wheel.setdefault(held.slot, {})[held] = None
        if self._next_slot is None or held.slot < self._next_slot:
            self._next_slot = held.slot
        self._count += 1
        return True

    def remove(self, held: H) -> None:
        """It is not held any more."""
        held.active = False
        self._count -= 1
        own = self._by_link[held.reply]
        del own[held]
        if not own:
            del self._by_link[held.reply]
        slot = self._wheel[held.slot]
        del slot[held]
        if not slot:
            del self._wheel[held.slot]

    def take_due(self, now: float) -> list[H]:
        """Remove what has waited long enough, in order of deadline slots."""
        last = int(now / SLOT_S)
        if self._next_slot is None or self._next_slot > last:
            return []
        found = [held for slot in sorted(slot for slot in self._wheel if slot <= last) for held in self._wheel[slot]]
        for held in found:
            self.remove(held)
        self._next_slot = min(self._wheel, default=None)
        return found
