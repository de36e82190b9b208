"""Where topics live and who leads: what a client knows about the cluster.

A *route* is one topic's answer from a name server: the replica groups that hold it, with their addresses, and how many
queues each has. A *group view* is what is known of one replica group from all sources: routes, and the leader hints in
answers (`leaderAddr`, `leaderTerm`). Hints are believed only with a term at least as new as the newest seen, because a
deposed leader may still name itself; a route is believed always, since the name server refuses old leaders itself.

Plain values and decisions; asking the name server is `trimq.client.instance`'s work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trimq.client.model import Queue
from trimq.message.tags import java_hash
from trimq.wire.body.route import TopicRouteData

__all__ = ["DEFAULT_TOPIC", "LEADER_ID", "PERM_READ", "PERM_WRITE", "GroupRoute", "GroupView", "Route", "pick_by_key"]

PERM_WRITE = 2
PERM_READ = 4

LEADER_ID = 0
"""The broker id under which a master, or the ready leader of a Raft group, is registered."""

DEFAULT_TOPIC = "TBW102"
"""The template from which brokers create unknown topics; routed wherever they would."""


@dataclass(frozen=True, slots=True)
class GroupRoute:
    """One replica group in a route."""

    name: str
    cluster: str
    addresses: Mapping[int, str]
    """Broker id to `ip:port`; id 0 leads, the others are replicas in order of their ids."""
    read_queues: int
    write_queues: int
    perm: int

    @property
    def leader(self) -> str | None:
        return self.addresses.get(LEADER_ID)


@dataclass(frozen=True, slots=True)
class Route:
    """Where one topic lives, groups sorted by name."""

    topic: str
    groups: tuple[GroupRoute, ...]

    def group(self, name: str) -> GroupRoute | None:
        return next((group for group in self.groups if group.name == name), None)

    def has_queues_of(self, other: Route) -> bool:
        """Whether both name the same queues in the same groups, wherever those are reached and whoever leads them."""
        mine, its = (
            {group.name: (group.read_queues, group.write_queues, group.perm) for group in route.groups}
            for route in (self, other)
        )
        return mine == its

    @property
    def read_queues(self) -> tuple[Queue, ...]:
        """All queues that may be read, sorted."""
        return tuple(
            Queue(self.topic, group.name, number)
            for group in self.groups
            if group.perm & PERM_READ
            for number in range(group.read_queues)
        )

    @property
    def write_queues(self) -> tuple[Queue, ...]:
        """All queues that may be written, sorted: the list that order keys are mapped onto."""
        return tuple(
            Queue(self.topic, group.name, number)
            for group in self.groups
            if group.perm & PERM_WRITE
            for number in range(group.write_queues)
        )

    def provisional(self, topic: str, queues: int) -> Route:
        """The route that `topic` will have once every group of this one created it with `queues` queues at most."""
        return Route(
            topic,
            tuple(
                GroupRoute(
                    group.name,
                    group.cluster,
                    group.addresses,
                    min(queues, group.write_queues),
                    min(queues, group.write_queues),
                    group.perm,
                )
                for group in self.groups
            ),
        )


def read_route(topic: str, data: TopicRouteData) -> Route:
    """A name server's answer as a Route. Queue data of a group without addresses is left out: nobody to ask."""
    brokers = {broker.brokerName: broker for broker in data.brokerDatas}
    groups = []
    for queues in sorted(data.queueDatas, key=lambda queue_data: queue_data.brokerName):
        broker = brokers.get(queues.brokerName)
        if broker is None or not broker.brokerAddrs:
            continue
        addresses = {int(key): addr for key, addr in sorted(broker.brokerAddrs.items(), key=lambda item: int(item[0]))}
        groups.append(
            GroupRoute(
                queues.brokerName,
                broker.cluster,
                addresses,
                queues.readQueueNums,
                queues.writeQueueNums,
                queues.perm,
            )
        )
    return Route(topic, tuple(groups))


def interleave(queues: Iterable[Queue]) -> list[Queue]:
    """Queues in an order that goes round the groups: consecutive messages load all groups, also in short runs."""
    return sorted(queues, key=lambda queue: (queue.id, queue.group))


def pick_by_key(queues: tuple[Queue, ...], key: str) -> Queue:
    """The queue of an order key: as Java's SelectMessageQueueByHash picks it for a String, so both agree."""
    number = abs(java_hash(key))
    return queues[number % len(queues)] if number >= 0 else queues[0]


@dataclass(slots=True)
class GroupView:
    """What is known of one replica group."""

    name: str
    addresses: dict[int, str] = field(default_factory=dict)
    leader: str | None = None
    term: int = 0
    """The newest term that an answer of this group carried; 0 with brokers that know no terms."""

    def routed(self, addresses: Mapping[int, str]) -> None:
        """A route named the group's replicas: also whether one leads, and that the leader of before is gone."""
        self.addresses = dict(addresses)
        leader = addresses.get(LEADER_ID)
        if leader is not None or self.leader not in addresses.values():
            self.leader = leader

    def hinted(self, leader: str, term: int) -> bool:
        """An answer named the leader of `term`. Returns whether that is news worth following."""
        if term < self.term or not leader:
            return False
        news = leader != self.leader
        self.term = term
        self.leader = leader
        return news

    def targets(self, *, replicas: bool) -> list[str]:
        """Addresses to try, best first. `replicas`: any of them will do, since they pass on what only a leader may
        do."""
        order = [self.leader] if self.leader else []
        if replicas:
            order += [addr for _, addr in sorted(self.addresses.items())]
        return list(dict.fromkeys(order))

    @property
    def all_addresses(self) -> list[str]:
        return [addr for _, addr in sorted(self.addresses.items())]
