"""Held pulls: a table of who waits for which queue. No task, timer or event per request.

A pull that finds nothing is an entry here until its queue is touched, its deadline passes or its connection ends. The
table is bounded in all and per connection; beyond that a pull is answered at once (the client asks again). Deadlines
stand in a wheel of 100 ms slots, so a sweep costs what is due and not what is held. Pure: `now` is passed in.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.filter.selection import Selection
from broker.replication.base import ReplyTo

__all__ = ["SLOT_S", "HeldPull", "HoldTable"]

SLOT_S = 0.1
PER_LINK_MAX = 8_192
"""Held pulls of one connection: more queues than one consumer can sensibly own."""


class HeldPull:
    """One pull, as much of it as an answer needs. Compared by identity."""

    __slots__ = (
        "active",
        "deadline",
        "filter",
        "group",
        "key",
        "max_bytes",
        "max_count",
        "offset",
        "opaque",
        "reply",
        "scanned",
        "serialize",
        "slot",
        "topic",
    )

    def __init__(
        self,
        *,
        reply: ReplyTo,
        opaque: int,
        serialize: int,
        group: str,
        topic: str,
        key: int,
        offset: int,
        filter: Selection,
        max_count: int,
        max_bytes: int,
        deadline: float,
    ) -> None:
        self.reply = reply
        self.opaque = opaque
        self.serialize = serialize
        self.group = group
        self.topic = topic
        self.key = key
        """tid << 16 | queue."""
        self.offset = offset
        """Where the client asked to begin."""
        self.scanned = offset
        """Everything from `offset` up to here was looked at and did not match the filter."""
        self.filter = filter
        self.max_count = max_count
        self.max_bytes = max_bytes
        self.deadline = deadline
        """Monotonic seconds; 0 when the client did not allow holding."""
        self.active = False
        self.slot = 0


class HoldTable:
    """All held pulls of one replica."""

    def __init__(self, *, total_max: int, per_link_max: int = PER_LINK_MAX) -> None:
        self._total_max = total_max
        self._per_link_max = per_link_max
        self._by_key: dict[int, dict[HeldPull, None]] = {}
        self._by_link: dict[ReplyTo, dict[HeldPull, None]] = {}
        self._wheel: dict[int, dict[HeldPull, None]] = {}
        self._next_slot: int | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: object) -> bool:
        """Does anybody wait for this queue?"""
        return key in self._by_key

    def waiting(self, key: int) -> int:
        return len(self._by_key.get(key, ()))

    def add(self, pull: HeldPull) -> bool:
        """Hold `pull` until its deadline. False when a limit is reached: answer it now."""
        own = self._by_link.get(pull.reply)
        if self._count >= self._total_max or (own is not None and len(own) >= self._per_link_max):
            return False
        pull.active = True
        self._by_key.setdefault(pull.key, {})[pull] = None
        if own is None:
            own = self._by_link[pull.reply] = {}
        own[pull] = None
        pull.slot = int(pull.deadline / SLOT_S) + 1
        self._wheel.setdefault(pull.slot, {})[pull] = None
        if self._next_slot is None or pull.slot < self._next_slot:
            self._next_slot = pull.slot
        self._count += 1
        return True

    def take(self, keys: Iterable[int]) -> list[HeldPull]:
        """Release every pull that waits for one of these queues, oldest first per queue."""
        found: list[HeldPull] = []
        for key in keys:
            pulls = self._by_key.pop(key, None)
            if pulls is not None:
                found.extend(pulls)
        for pull in found:
            self._release(pull, keyed=False)
        return found

    def take_all(self) -> list[HeldPull]:
        """Release everything: the role changed."""
        return self.take(list(self._by_key))

    def due(self, now: float) -> list[HeldPull]:
        """Release what has waited long enough, in order of deadline slots."""
        found: list[HeldPull] = []
        last = int(now / SLOT_S)
        if self._next_slot is None or self._next_slot > last:
            return found
        for slot in sorted(slot for slot in self._wheel if slot <= last):
            found.extend(self._wheel[slot])
        for pull in found:
            self._release(pull, keyed=True)
        self._next_slot = min(self._wheel, default=None)
        return found

    def closed(self, link: ReplyTo) -> None:
        """Forget the pulls of a connection that ended."""
        pulls = list(self._by_link.get(link, ()))
        for pull in pulls:
            self._release(pull, keyed=True)

    def _release(self, pull: HeldPull, *, keyed: bool) -> None:
        pull.active = False
        self._count -= 1
        if keyed:
            waiting = self._by_key[pull.key]
            del waiting[pull]
            if not waiting:
                del self._by_key[pull.key]
        own = self._by_link[pull.reply]
        del own[pull]
        if not own:
            del self._by_link[pull.reply]
        slot = self._wheel[pull.slot]
        del slot[pull]
        if not slot:
            del self._wheel[pull.slot]
