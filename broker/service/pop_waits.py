"""Pops that found nothing: a table of who waits for which topic. No task, timer or event per request.

A pop waits for any queue of its topic and of the topic's retry topic, so it is found by the pair (consumer group,
topic), and a queue leads to the pairs that are interested in it. Whoever came first is served first. Deadlines stand in
a wheel of 100 ms slots. Pure: `now` is passed in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from broker.filter.selection import Selection
from broker.replication.base import ReplyTo

__all__ = ["SLOT_S", "Pair", "PopWait", "PopWaits"]

SLOT_S = 0.1
PER_LINK_MAX = 4_096

Pair = tuple[str, str]
"""Consumer group, topic."""


class PopWait:
    """One pop (or a question whether there is something to pop), as much of it as an answer needs."""

    __slots__ = (
        "active",
        "asks_only",
        "attempt",
        "count",
        "deadline",
        "filter",
        "group",
        "init",
        "invisible_ms",
        "opaque",
        "ordered",
        "queue",
        "reply",
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
        queue: int,
        count: int,
        invisible_ms: int,
        ordered: bool,
        attempt: str,
        filter: Selection,
        init: int,
        deadline: float,
        asks_only: bool = False,
    ) -> None:
        self.reply = reply
        self.opaque = opaque
        self.serialize = serialize
        self.group = group
        self.topic = topic
        self.queue = queue
        """-1: any."""
        self.count = count
        self.invisible_ms = invisible_ms
        self.ordered = ordered
        self.attempt = attempt
        self.filter = filter
        self.init = init
        self.deadline = deadline
        """Monotonic seconds."""
        self.asks_only = asks_only
        self.active = False
        self.slot = 0

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
        self._total_max = total_max
        self._per_link_max = per_link_max
        self._by_pair: dict[Pair, dict[PopWait, None]] = {}
        self._by_link: dict[ReplyTo, dict[PopWait, None]] = {}
        self._by_key: dict[int, dict[Pair, None]] = {}
        self._wheel: dict[int, dict[PopWait, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

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
        own = self._by_link.get(wait.reply)
        if self._count >= self._total_max or (own is not None and len(own) >= self._per_link_max):
            return False
        wait.active = True
        self._by_pair.setdefault(wait.pair, {})[wait] = None
        self._by_link.setdefault(wait.reply, {})[wait] = None
        wait.slot = int(wait.deadline / SLOT_S) + 1
        self._wheel.setdefault(wait.slot, {})[wait] = None
        self._count += 1
        return True

    def release(self, wait: PopWait) -> None:
        """It has its answer."""
        if not wait.active:
            return
        wait.active = False
        self._count -= 1
        own = self._by_link[wait.reply]
        del own[wait]
        if not own:
            del self._by_link[wait.reply]
        slot = self._wheel[wait.slot]
        del slot[wait]
        if not slot:
            del self._wheel[wait.slot]
        waiting = self._by_pair[wait.pair]
        del waiting[wait]
        if not waiting:
            del self._by_pair[wait.pair]
            for key in [key for key, pairs in self._by_key.items() if wait.pair in pairs]:
                del self._by_key[key][wait.pair]
                if not self._by_key[key]:
                    del self._by_key[key]

    def due(self, now: float) -> list[PopWait]:
        """Release what has waited long enough."""
        last = int(now / SLOT_S)
        found = [wait for slot in sorted(slot for slot in self._wheel if slot <= last) for wait in self._wheel[slot]]
        for wait in found:
            self.release(wait)
        return found

    def take_all(self) -> list[PopWait]:
        """Release everything: this replica leads no more."""
        found = [wait for waiting in self._by_pair.values() for wait in waiting]
        for wait in found:
            self.release(wait)
        return found

    def closed(self, link: ReplyTo) -> None:
        """Forget the waits of a connection that ended."""
        for wait in list(self._by_link.get(link, ())):
            self.release(wait)
