"""Queue locks of ordered consumers.

Two parts. `Locks` is who owns a queue, a function of op 10: every replica has it. `LockLeases` is until when, kept by
the leader alone: renewals stay out of the log, and a new leader gives every owner that it finds a full lease, so a
failover never hands a queue to a second consumer while the first still trusts its lock.

Facts (remoting protocol, codes 41 and 42): key = consumer group + queue, owner = client id, a lock ends 60 s after the
last lock call, clients renew every 20 s and trust their own lock for 30 s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, NamedTuple

from broker.metadata.ops import tid_of

__all__ = ["GONE_S", "LEASE_S", "LockLeases", "LockVerdict", "Locks"]

LEASE_S = 60.0
GONE_S = 35.0
"""An owner that left its consumer group, or died, keeps its lock for so long after its last lock call: it may be alive
and cut off, and then it trusts the lock for 30 s. Consumers that crash hold up their successors less that way; the
native C++ client 2.1.0.3 always does, in its own shutdown."""


class Locks:
    """(consumer group id, queue key) → client id of the owner."""

    __slots__ = ("owners",)

    def __init__(self, owners: MutableMapping[tuple[int, int], str] | None = None) -> None:
        self.owners: MutableMapping[tuple[int, int], str] = {} if owners is None else owners

    def owner(self, gid: int, key: int) -> str | None:
        return self.owners.get((gid, key))

    def all(self) -> Iterable[tuple[tuple[int, int], str]]:
        return self.owners.items()

    def put(self, gid: int, client: str, keys: Iterable[int]) -> None:
        """`client` owns the queues now; "" frees them."""
        for key in keys:
            if client:
                self.owners[gid, key] = client
            else:
                self.owners.pop((gid, key), None)

    def drop_topic(self, tid: int) -> None:
        for lock in [each for each in self.owners if tid_of(each[1]) == tid]:
            del self.owners[lock]

    def drop_group(self, gid: int) -> None:
        for lock in [each for each in self.owners if each[0] == gid]:
            del self.owners[lock]

    def flat(self) -> dict[str, Any]:
        return {"owners": dict(self.owners)}

    @staticmethod
    def encode(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {"owners": [[gid, key, client] for (gid, key), client in flat["owners"].items()]}

    def restore(self, data: Mapping[str, Any]) -> None:
        self.owners.clear()
        for gid, key, client in data["owners"]:
            self.owners[gid, key] = client


class LockVerdict(NamedTuple):
    """What a lock call gets: `granted` counts once `changed` (a part of it) is applied from the log."""

    granted: list[int]
    changed: list[int]
    """Queues whose owner changes: to be written as op 10 before the answer goes out."""


class LockLeases:
    """The leader's deadlines over an owner table. `now` is monotonic seconds."""

    def __init__(self, locks: Locks, now: float) -> None:
        self._locks = locks
        """The leader's view, so that a grant on its way counts."""
        self._deadlines: dict[tuple[int, int], float] = {}
        self._began = now

    def lock(
        self, gid: int, client: str, keys: Iterable[int], now: float, *, gone: Callable[[str], bool] = lambda _: False
    ) -> LockVerdict:
        """Give `client` what is free, expired or its own already; renew that.

        `gone` says that an owner is no member of the consumer group any more: its lock ends when it can no longer
        believe in it itself, half a minute before the lease does.
        """
        granted, changed = [], []
        for key in keys:
            owner = self._locks.owner(gid, key)
            if owner is not None and owner != client:
                deadline = self.deadline(gid, key)
                if now < deadline and not (now >= deadline - LEASE_S + GONE_S and gone(owner)):
                    continue
            granted.append(key)
            if owner != client:
                changed.append(key)
            self._deadlines[gid, key] = now + LEASE_S
        return LockVerdict(granted, changed)

    def unlock(self, gid: int, client: str, keys: Iterable[int]) -> list[int]:
        """The queues that `client` really owns and gives up: to be written as op 10 with an empty owner."""
        freed = [key for key in keys if self._locks.owner(gid, key) == client]
        for key in freed:
            self._deadlines.pop((gid, key), None)
        return freed

    def deadline(self, gid: int, key: int) -> float:
        """When the lock ends; an owner found in the log has a full lease from the beginning of this leadership."""
        return self._deadlines.get((gid, key), self._began + LEASE_S)

    def expired(self, now: float) -> dict[int, list[int]]:
        """Locks that ended: consumer group id → queue keys, to be freed by op 10."""
        over: dict[int, list[int]] = {}
        for (gid, key), _ in self._locks.all():
            if now >= self.deadline(gid, key):
                over.setdefault(gid, []).append(key)
                self._deadlines.pop((gid, key), None)
        return over
