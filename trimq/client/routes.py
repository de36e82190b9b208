"""The routes of the topics in use, and through them the replica groups.

Routes are asked for when first needed, again every 30 s, and whenever somebody finds that they may be old.

A wanted topic is asked for more often while it is *young*: not there yet, just heard of, or with other queues than a
moment ago. A topic is created in one replica group after another, so its first route may name only some of them, and
nothing says so. The pauses double, beginning anew with each change: a queue that appears some time after the last
change is known after as much time again, and a topic that stays as it is costs a few questions more than RocketMQ's
one in 30 s.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Set
from dataclasses import dataclass

import anyio

from trimq.client.namesrv import NameServers
from trimq.client.route import DEFAULT_TOPIC, GroupView, Route
from trimq.client.timing import Backoff
from trimq.errors import NoRoute, TrimqError

__all__ = ["Routes"]

log = logging.getLogger(__name__)

ROUTE_REFRESH_S = 30.0
"""RocketMQ's pollNameServerInterval."""

ROUTE_MISSING_S = 1.0
"""A topic that is wanted and not there yet is asked for this often at least."""

ROUTE_HEARD_S = 1.0
"""First pause after a topic was first heard of: most are old."""

ROUTE_EXPECTED_S = 0.05
"""First pause after a topic was created or changed before our eyes: its brokers register within 50 ms."""

ROUTE_COMPLETE_S = 3.0
"""How long replica groups that have just created a topic are waited for in its route."""


@dataclass(slots=True)
class _Young:
    """When a young topic is asked for again."""

    due: float
    pause: float


class Routes:
    """What the name servers said, and a view of every replica group that appeared in it."""

    def __init__(self, namesrv: NameServers, rng: random.Random, new_group: Callable[[], None]) -> None:
        self._namesrv = namesrv
        self._rng = rng
        self._new_group = new_group
        self._routes: dict[str, Route] = {}
        self._asking: dict[str, anyio.Event] = {}
        self._wanted: dict[str, int] = {}
        self._used: set[str] = set()
        """Topics asked for since the last full refresh."""
        self._groups: dict[str, GroupView] = {}
        self._watchers: list[Callable[[str], None]] = []
        self._young: dict[str, _Young] = {}
        """Wanted topics that are asked for more often than the others."""
        self._absent: set[str] = set()
        """Wanted topics that nobody had when we asked last; membership only."""
        self._sooner = anyio.Event()

    @property
    def groups(self) -> tuple[GroupView, ...]:
        """All replica groups heard of."""
        return tuple(self._groups.values())

    def known(self, topic: str) -> Route | None:
        """The route as last heard, without asking."""
        self._used.add(topic)
        return self._routes.get(topic)

    def group(self, name: str) -> GroupView:
        """What is known of a replica group."""
        view = self._groups.get(name)
        if view is None:
            view = self._groups[name] = GroupView(name)
        return view

    async def route(self, topic: str) -> Route:
        """The route of a topic that exists, waiting a moment for one that was just created.

        Raises `NoRoute`, which names the missing link.
        """
        patience = anyio.current_time() + ROUTE_MISSING_S
        backoff = Backoff(self._rng)
        route = self.known(topic) or await self.refresh(topic)
        while route is None and anyio.current_time() < patience:
            await anyio.sleep(backoff.next_s())
            route = await self.refresh(topic)
        if route is None:
            raise NoRoute(
                f"no broker has the topic {topic!r}", advice="create it, or send to it where auto-creation is on"
            )
        return route

    async def publish_route(self, topic: str, queues: int) -> tuple[Route, bool]:
        """The route for sending, and whether the topic exists; if not, the route that auto-creation will make."""
        route = self.known(topic) or await self.refresh(topic)
        if route is not None:
            return route, True
        template = await self.refresh(DEFAULT_TOPIC)
        if template is None:
            raise NoRoute(
                f"no broker has the topic {topic!r}, and none creates topics by itself",
                advice="create the topic, or set autoCreateTopicEnable=true on the brokers",
            )
        return template.provisional(topic, queues), False

    async def refresh(self, topic: str) -> Route | None:
        """Ask the name server for a route now; None when no broker has the topic (an old route is kept and returned).

        Callers that ask for the same topic at the same time share one question. Raises `NoRoute` when nobody answers.
        """
        while (asking := self._asking.get(topic)) is not None:
            await asking.wait()
            if topic in self._routes:
                return self._routes[topic]
        done = self._asking[topic] = anyio.Event()
        try:
            route = await self._namesrv.route(topic)
        finally:
            del self._asking[topic]
            done.set()
        if route is not None:
            self._learn(topic, route)
        elif topic in self._wanted:
            self._absent.add(topic)
        return self._routes.get(topic)

    def _learn(self, topic: str, route: Route) -> None:
        before = self._routes.get(topic)
        self._routes[topic] = route
        if topic in self._wanted and (before is None or not before.has_queues_of(route)):
            seen_to_change = before is not None or topic in self._absent
            self._ask_soon(topic, ROUTE_EXPECTED_S if seen_to_change else ROUTE_HEARD_S)
        self._absent.discard(topic)
        for group in route.groups:
            known = group.name in self._groups
            self.group(group.name).routed(group.addresses)
            if not known:
                self._new_group()
        if before != route:
            for watcher in self._watchers:
                watcher(topic)

    def watch(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call back with each topic whose route changed; returns the call that ends this."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback)

    def want(self, topic: str) -> None:
        """Keep this topic's route fresh, also while nobody has the topic."""
        new = topic not in self._wanted
        self._wanted[topic] = self._wanted.get(topic, 0) + 1
        if topic not in self._routes:
            self.expect(topic)
        elif new:
            self._ask_soon(topic, ROUTE_HEARD_S)

    def expect(self, topic: str) -> None:
        """A wanted topic that nobody had may be there in the next moment."""
        if topic not in self._routes and topic in self._wanted:
            young = self._young.get(topic)
            if young is None or young.pause > ROUTE_EXPECTED_S:
                self._ask_soon(topic, ROUTE_EXPECTED_S)

    def unwant(self, topic: str) -> None:
        """Undo one `want`."""
        self._wanted[topic] -= 1
        if not self._wanted[topic]:
            del self._wanted[topic]
            self._young.pop(topic, None)
            self._absent.discard(topic)

    async def complete(self, topic: str, groups: Set[str]) -> None:
        """Ask until the route names all of these replica groups, which have just created the topic; at most 3 s."""
        backoff = Backoff(self._rng)
        with anyio.move_on_after(ROUTE_COMPLETE_S):
            while True:
                route = await self.refresh(topic)
                if route is not None and groups <= {group.name for group in route.groups}:
                    return
                await anyio.sleep(backoff.next_s())

    def _ask_soon(self, topic: str, pause: float) -> None:
        self._young[topic] = _Young(anyio.current_time() + pause, pause)
        self._sooner.set()

    async def run(self) -> None:
        """Ask again every 30 s for what is wanted or was used lately, sooner for what is young, until cancelled."""
        next_full = anyio.current_time() + ROUTE_REFRESH_S
        while True:
            due = min((young.due for young in self._young.values()), default=next_full)
            with anyio.move_on_after(max(min(due, next_full) - anyio.current_time(), 0)):
                await self._sooner.wait()
            self._sooner = anyio.Event()
            now = anyio.current_time()
            topics = [topic for topic, young in self._young.items() if young.due <= now]
            for topic in topics:
                self._grow(topic, now)
            if now >= next_full:
                next_full = now + ROUTE_REFRESH_S
                self._forget_unused()
                topics = list(dict.fromkeys([*self._wanted, *self._routes]))
            for topic in topics:
                try:
                    await self.refresh(topic)
                except TrimqError as error:
                    log.info("route not refreshed", extra={"topic": topic, "error": error})
                    break

    def _grow(self, topic: str, now: float) -> None:
        """The next pause of a young topic is twice as long, until it is as old as the others."""
        pause = 2 * self._young[topic].pause
        if topic not in self._routes:
            pause = min(pause, ROUTE_MISSING_S)
        if pause < ROUTE_REFRESH_S:
            self._young[topic] = _Young(now + pause, pause)
        else:
            del self._young[topic]

    def _forget_unused(self) -> None:
        """A client that once looked at many topics must not ask for them for ever."""
        for topic in list(self._routes):
            if topic not in self._wanted and topic not in self._used:
                del self._routes[topic]
        self._used.clear()

    async def learn_cluster(self) -> None:
        """Get to know every replica group there is. Raises `TrimqError` when no name server answers."""
        for name, broker in (await self._namesrv.cluster()).brokerAddrTable.items():
            known = name in self._groups
            self.group(name).routed(broker.brokerAddrs)
            if not known:
                self._new_group()

    async def find_leader(self, group: str) -> None:
        """Ask the name server who leads a group by now. Says nothing when it does not answer.

        By the route of a topic that lies there; a group of which no topic is known (a young one) by the cluster table.
        """
        topic = next((topic for topic, route in self._routes.items() if route.group(group)), None)
        try:
            if topic is not None:
                await self.refresh(topic)
                return
            broker = (await self._namesrv.cluster()).brokerAddrTable.get(group)
        except TrimqError as error:
            log.debug("route not refreshed", extra={"topic": topic, "group": group, "error": error})
            return
        if broker is not None:
            self.group(group).routed(broker.brokerAddrs)
