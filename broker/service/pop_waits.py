"""Pops that found nothing: a table of who waits for which topic.

A pop waits for any queue of its topic and of the topic's retry topic, so it is found by the pair (consumer group,
topic), and a queue leads to the pairs that are interested in it. Whoever came first is served first. How many are held,
and how long, is `holding`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from broker.replication.base import ReplyTo
from broker.service.holding import Held, Holding

__all__ = ["Pair", "PopWait", "PopWaits"]

PER_LINK_MAX = 4_096

Pair = tuple[str, str]
"""Consumer group, topic."""


@dataclass(slots=True, eq=False, kw_only=True)
class PopWait(Held):
    """One pop, or a question whether there is something to pop."""

    queue: int
    """-1: any."""
    count: int
    invisible_ms: int
    ordered: bool
    attempt: str
    init: int
    asks_only: bool = False

    @property
    def pair(self) -> Pair:
        return self.group, self.topic

    @property
    def alike(self) -> object:
        """When a wait found nothing, another one that is equal in this will not find anything either."""
        return self.queue, self.ordered, self.attempt, self.filter.expression, self.asks_only


class PopWaits:
    """All held pops of one replica."""

    def __init__(self, *, total_max: int, per_link_max: int = PER_LINK_MAX) -> None:
        self._held: Holding[PopWait] = Holding(total_max=total_max, per_link_max=per_link_max)
        self._by_pair: dict[Pair, dict[PopWait, None]] = {}
        self._by_key: dict[int, dict[Pair, None]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, pair: object) -> bool:
        return pair in self._by_pair

    def pairs(self) -> list[Pair]:
        return list(self._by_pair)

    def waiting(self, pair: Pair) -> list[PopWait]:
        """Who waits for a pair, oldest first."""
        return list(self._by_pair.get(pair, ()))

    def interested(self, keys: Iterable[int]) -> list[Pair]:
        """The pairs that wait for one of these queues."""
        return [pair for key in keys for pair in self._by_key.get(key, ())]

    def watch(self, pair: Pair, keys: Collection[int]) -> None:
        """These are the queues of a pair (again, when its topics changed)."""
        for key in keys:
            self._by_key.setdefault(key, {})[pair] = None

    def add(self, wait: PopWait) -> bool:
        """Hold it until its deadline. False when a limit is reached."""
        if not self._held.add(wait):
            return False
        self._by_pair.setdefault(wait.pair, {})[wait] = None
        return True

    def release(self, wait: PopWait) -> None:
        """It has its answer."""
        if wait.active:
            self._held.remove(wait)
            self._unlist(wait)

    def due(self, now: float) -> list[PopWait]:
        """Release what has waited long enough."""
        found = self._held.take_due(now)
        for wait in found:
            self._unlist(wait)
        return found

    def take_all(self) -> list[PopWait]:
        """Release everything: this replica leads no more."""
        found = [wait for waiting in self._by_pair.values() for wait in waiting]
        for wait in found:
            self.release(wait)
        return found

    def closed(self, link: ReplyTo) -> None:
        """Forget the waits of a connection that ended."""
        for wait in self._held.of(link):
            self.release(wait)

    def _unlist(self, wait: PopWait) -> None:
        waiting = self._by_pair[wait.pair]
        del waiting[wait]
        if not waiting:
            del self._by_pair[wait.pair]
            for key in [key for key, pairs in self._by_key.items() if wait.pair in pairs]:
                del self._by_key[key][wait.pair]
                if not self._by_key[key]:
                    del self._by_key[key]
