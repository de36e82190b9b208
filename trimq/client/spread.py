"""Which queue takes the next message that may go anywhere.

It stays the same until a request for it has gone out. So messages sent one by one go round all queues and replica
groups, and under load whole batches form for one queue at a time instead of single messages for many.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from trimq.client.instance import Instance
from trimq.client.model import Message, Queue
from trimq.client.outgoing import DEFAULT_TOPIC_QUEUES
from trimq.client.route import Route, interleave, pick_by_key
from trimq.client.timing import Backoff
from trimq.errors import BadRequest, NoRoute
from trimq.message.names import check_topic

__all__ = ["Spread", "Spreads"]

ROUTE_PATIENCE_S = 2.0
"""How long a send waits for a route to appear: long enough for brokers that are just registering."""

PROVISIONAL_S = 60.0
"""How long a new topic's first sends may take to reach every group; until then its route may be incomplete."""

KEYED_S = 60.0
"""How long order keys stay where they are when the route changes: longer than a restart takes, and than consumers need
for what a key has sent before. A group that left keeps its keys so long; queues that are new get none before."""


class Spread:
    """The queues of one topic, and which of them takes the next message that may go anywhere."""

    __slots__ = ("current", "index", "keyed", "keyed_until", "provisional_until", "queues", "sorted")

    def __init__(
        self,
        queues: tuple[Queue, ...],
        *,
        start: int,
        provisional_until: float = 0.0,
        keyed: tuple[Queue, ...] = (),
        keyed_until: float = 0.0,
    ) -> None:
        self.sorted = queues
        self.keyed = keyed or queues
        """What order keys are mapped onto: also the queues of groups that are gone from the route for a moment, and not
        yet those that are new. A key that moved while its messages are under way would lose its order."""
        self.keyed_until = keyed_until if self.keyed != queues else 0.0
        """Until then: 0 when that is what the route says."""
        self.queues = interleave(queues)
        self.index = start % len(queues)
        self.current = self.queues[self.index]
        self.provisional_until = provisional_until
        """Of a topic that our sends create: until then a route with fewer groups does not count. Else 0."""

    @property
    def groups(self) -> set[str]:
        return {queue.group for queue in self.sorted}

    def advance(self) -> Queue:
        """Go on to the next queue."""
        self.index = (self.index + 1) % len(self.queues)
        self.current = self.queues[self.index]
        return self.current

    def choose(self, message: Message) -> Queue:
        """The queue of a message that may go anywhere, or where its order key says."""
        return self.current if message.order_key is None else pick_by_key(self._for_keys(), message.order_key)

    def within(self, message: Message, group: str) -> Queue:
        """The message's queue in this replica group."""
        queues = tuple(queue for queue in self._for_keys() if queue.group == group)
        if not queues:
            raise BadRequest(
                f"the topic {message.topic!r} has no queue in the replica group {group}",
                advice="an atomic send needs all its topics in one group",
            )
        return pick_by_key(queues, message.order_key or message.topic)

    def _for_keys(self) -> tuple[Queue, ...]:
        if self.keyed_until and anyio.current_time() >= self.keyed_until:
            self.keyed, self.keyed_until = self.sorted, 0.0
        return self.keyed

    def renewed(self, route: Route) -> Spread:
        """By another route. A group that it lists, but not for writing, is not gone: somebody decided that."""
        there = {group.name for group in route.groups}
        queues = route.write_queues
        keyed = tuple(queue for queue in self._for_keys() if queue in queues or queue.group not in there)
        until = anyio.current_time() + KEYED_S
        if self.keyed_until and set(queues) <= set(self.sorted):
            until = self.keyed_until  # nothing is new: a group that is gone has no more time for that
        return Spread(queues, start=self.index, keyed=keyed, keyed_until=until)


class Spreads:
    """The spreads of one producer, by topic: opened by the first send, renewed with the routes."""

    def __init__(self, instance: Instance, is_healthy: Callable[[str], bool]) -> None:
        self._instance = instance
        self._is_healthy = is_healthy
        """Of a replica group: whether what is sent there goes through, as far as we know."""
        self.known: dict[str, Spread] = {}

    async def find(self, topic: str) -> Spread:
        """The topic's spread, opened by its first send. Waits a little for a route. Raises `NoRoute`, `BadRequest`."""
        spread = self.known.get(topic)
        if spread is not None:
            return spread
        check_topic(topic)
        patience = anyio.current_time() + ROUTE_PATIENCE_S
        backoff = Backoff(self._instance.rng)
        while True:
            try:
                route, exists = await self._instance.routes.publish_route(topic, DEFAULT_TOPIC_QUEUES)
                return self.known.get(topic) or self._open(topic, route, exists=exists)
            except NoRoute:
                if anyio.current_time() >= patience:
                    raise
            await anyio.sleep(backoff.next_s())

    def _open(self, topic: str, route: Route, *, exists: bool) -> Spread:
        queues = route.write_queues
        if not queues:
            raise NoRoute(f"no queue of {topic!r} may be written", advice="check the permission of topic and broker")
        until = 0.0 if exists else anyio.current_time() + PROVISIONAL_S
        start = self._instance.rng.randrange(len(queues))
        spread = self.known[topic] = Spread(queues, start=start, provisional_until=until)
        self._instance.routes.want(topic)
        return spread

    def moved_on(self, queue: Queue) -> None:
        """A request for this queue went out: the next messages that may go anywhere take another one."""
        spread = self.known.get(queue.topic)
        if spread is None:
            return
        if spread.provisional_until:
            self._instance.routes.expect(queue.topic)
        if spread.current == queue:
            self.advance(spread)

    def advance(self, spread: Spread) -> bool:
        """To the next queue whose group is not in trouble; returns whether there is one."""
        return any(self._is_healthy(spread.advance().group) for _ in spread.queues)

    def route_changed(self, topic: str) -> None:
        """The instance learned another route: messages from now on use its queues."""
        spread = self.known.get(topic)
        route = self._instance.routes.known(topic)
        if spread is None or route is None:
            return
        queues = route.write_queues
        if not queues or queues == spread.sorted:
            return
        if anyio.current_time() < spread.provisional_until and not spread.groups <= {queue.group for queue in queues}:
            return  # the topic is still being created, group by group
        self.known[topic] = spread.renewed(route)

    def forget_topics(self) -> None:
        """Undo the wishes for fresh routes; part of closing."""
        for topic in self.known:
            self._instance.routes.unwant(topic)
        self.known.clear()
