"""Live clients: who is connected, as which consumer or producer group, subscribed to what.

Heartbeats fill the table, closed connections and silence empty it. It is what *this* replica sees; the part of it that
must survive a failover (who belongs to a consumer group) is logged as op 9 by the member service. Nothing here waits,
reads a clock or sends: every method takes `now` (monotonic seconds) and returns which groups changed.

Subscriptions are kept per member, not last writer wins: two members of one group with different subscriptions each get
what they asked for, and the table says so once (`conflicts`), where RocketMQ silently lets the newest heartbeat decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from broker.filter.tags import FilterError, TagFilter, parse_tags
from broker.metadata.conflicts import Doubles, differences, wanted_of
from trimq.message.names import RETRY_PREFIX

__all__ = ["SILENCE_S", "ClientTable", "Consumer", "ConsumerGroup", "Link", "Producer", "Subscription"]

SILENCE_S = 120.0
"""A client that says nothing for so long is gone (Java brokers use the same figure)."""


class Link(Protocol):
    """The connection a client is reached by. Two links are the same when they are the same object."""

    peer: str

    def send(self, frame: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Subscription:
    """One topic that a consumer wants, and which of its messages."""

    topic: str
    expression: str
    expression_type: str
    version: int
    filter: TagFilter | None
    """None: it is no tag expression (`problem` says what is wrong with it, if anything). SQL92 is compiled by the first
    pull that needs it, so that a heartbeat full of it costs nothing."""
    problem: str = ""

    @classmethod
    def of(cls, topic: str, expression: str, expression_type: str, version: int) -> Subscription:
        if expression_type == "SQL92":
            return cls(topic, expression, expression_type, version, None)
        try:
            parsed = parse_tags(expression, expression_type)
        except FilterError as error:
            return cls(topic, expression, expression_type, version, None, str(error))
        return cls(topic, expression, expression_type, version, parsed)


@dataclass(slots=True)
class Consumer:
    """One member of a consumer group, on one connection."""

    link: Link
    client_id: str
    language: str
    version: int
    consume_type: str
    message_model: str
    from_where: str
    subscriptions: dict[str, Subscription]
    seen: float

    def wanted(self) -> dict[str, tuple[str, str]]:
        """What it wants of each topic; retry topics, which only some clients name, left out."""
        return wanted_of(each for topic, each in self.subscriptions.items() if not topic.startswith(RETRY_PREFIX))


@dataclass(slots=True)
class Producer:
    """One member of a producer group, on one connection."""

    link: Link
    client_id: str
    language: str
    version: int
    seen: float


@dataclass(slots=True)
class ConsumerGroup:
    """The live members of one consumer group, in order of arrival."""

    name: str
    members: dict[Link, Consumer] = field(default_factory=dict)

    @property
    def client_ids(self) -> list[str]:
        return sorted({member.client_id for member in self.members.values()})

    @property
    def broadcast(self) -> bool:
        return any(member.message_model == "BROADCASTING" for member in self.members.values())

    @property
    def newest(self) -> Consumer | None:
        return next(reversed(self.members.values()), None)

    def subscription(self, topic: str, link: Link | None) -> Subscription | None:
        """What the member on `link` wants of `topic`; for an unknown link, the newest version any member holds."""
        member = self.members.get(link) if link is not None else None
        if member is not None and (own := member.subscriptions.get(topic)) is not None:
            return own
        held = [each.subscriptions[topic] for each in self.members.values() if topic in each.subscriptions]
        return max(held, key=lambda subscription: subscription.version) if held else None

    def subscriptions(self) -> dict[str, Subscription]:
        """Topic → newest subscription over all members."""
        merged: dict[str, Subscription] = {}
        for member in self.members.values():
            for topic, subscription in member.subscriptions.items():
                if topic not in merged or subscription.version > merged[topic].version:
                    merged[topic] = subscription
        return dict(sorted(merged.items()))

    def conflicts(self) -> dict[str, tuple[str, ...]]:
        """Topic → the different things that members want of it (only topics where they differ)."""
        return differences({member.client_id: member.wanted() for member in self.members.values()})

    def odd(self, newcomer: Consumer) -> dict[str, tuple[str, ...]]:
        """Where a member, or somebody who wants to be one, differs from the others."""
        others = [each for each in self.members.values() if each.link is not newcomer.link]
        if not others:
            return {}
        return differences({"": newcomer.wanted(), others[0].client_id: others[0].wanted()})


class ClientTable:
    """All live clients of one replica."""

    def __init__(self) -> None:
        self._consumers: dict[str, ConsumerGroup] = {}
        self._producers: dict[str, dict[Link, Producer]] = {}
        self._links: dict[Link, tuple[set[str], set[str]]] = {}
        self._by_id: dict[str, dict[Link, None]] = {}
        """Client id → its connections, oldest first."""
        self._ids: dict[Link, dict[str, None]] = {}
        """The other way round; more than one id only for an odd client."""
        self.doubles = Doubles()
        """Client ids that are used over several connections at the same time."""

    # --- looking

    def consumer_group(self, name: str) -> ConsumerGroup | None:
        return self._consumers.get(name)

    def consumer_groups(self) -> Mapping[str, ConsumerGroup]:
        return self._consumers

    def producers(self, group: str) -> list[Producer]:
        return list(self._producers.get(group, {}).values())

    def producer_groups(self) -> list[str]:
        return sorted(self._producers)

    def links(self, group: str) -> list[Link]:
        """The connections of a consumer group's members."""
        found = self._consumers.get(group)
        return list(found.members) if found is not None else []

    def ids_of(self, link: Link) -> list[str]:
        """The client ids that consume over a connection (one, unless the client is odd)."""
        groups, _ = self._links.get(link, (set(), set()))
        return sorted({self._consumers[group].members[link].client_id for group in groups})

    def find(self, client_id: str, group: str = "") -> Link | None:
        """The newest connection of a client; with `group`, of the member of that consumer group."""
        if group:
            found = self._consumers.get(group)
            members = reversed(found.members.values()) if found is not None else ()
            return next((member.link for member in members if member.client_id == client_id), None)
        return next(reversed(self._by_id.get(client_id, {})), None)

    # --- changing

    def _known(self, link: Link, client_id: str, now: float) -> tuple[set[str], set[str]]:
        """The groups of a connection, by kind; enters its client id."""
        self.doubles.spoke(client_id, link, now)
        self._by_id.setdefault(client_id, {}).setdefault(link)
        self._ids.setdefault(link, {}).setdefault(client_id)
        return self._links.setdefault(link, (set(), set()))

    def put_consumer(self, group: str, consumer: Consumer, *, keep_subscriptions: bool = False) -> bool:
        """A heartbeat of a consumer. True when membership or subscriptions changed.

        A subscription is replaced only by a larger version (clients renew it when their queue set changes); topics
        that the heartbeat leaves out are dropped. `keep_subscriptions` is a heartbeat that repeats none.
        """
        table = self._consumers.setdefault(group, ConsumerGroup(group))
        self._known(consumer.link, consumer.client_id, consumer.seen)[0].add(group)
        known = table.members.get(consumer.link)
        if known is None:
            table.members[consumer.link] = consumer
            return True
        changed = known.client_id != consumer.client_id
        if keep_subscriptions:
            consumer.subscriptions = known.subscriptions
        else:
            changed |= _replace(known.subscriptions, consumer.subscriptions)
            consumer.subscriptions = known.subscriptions
        table.members[consumer.link] = consumer
        return changed

    def put_producer(self, group: str, producer: Producer) -> None:
        self._producers.setdefault(group, {})[producer.link] = producer
        self._known(producer.link, producer.client_id, producer.seen)[1].add(group)

    def unregister(self, link: Link, *, consumer_group: str, producer_group: str) -> list[str]:
        """A client leaves. Returns the consumer groups that changed."""
        if producer_group:
            self._drop_producer(producer_group, link)
        return [consumer_group] if consumer_group and self._drop_consumer(consumer_group, link) else []

    def closed(self, link: Link) -> list[str]:
        """A connection ended. Returns the consumer groups that changed, sorted."""
        consumers, producers = self._links.pop(link, (set(), set()))
        self._forget_ids(link)
        self.doubles.closed(link)
        for group in sorted(producers):
            self._drop_producer(group, link)
        return [group for group in sorted(consumers) if self._drop_consumer(group, link)]

    def expire(self, now: float) -> list[str]:
        """Drop who has been silent. Returns the consumer groups that changed, sorted."""
        changed: set[str] = set()
        for name, group in list(self._consumers.items()):
            for link, consumer in list(group.members.items()):
                if now - consumer.seen > SILENCE_S:
                    self._drop_consumer(name, link)
                    changed.add(name)
                    self.doubles.closed(link)
        for name, members in list(self._producers.items()):
            for link, producer in list(members.items()):
                if now - producer.seen > SILENCE_S:
                    self._drop_producer(name, link)
        return sorted(changed)

    def _drop_consumer(self, name: str, link: Link) -> bool:
        group = self._consumers.get(name)
        if group is None or group.members.pop(link, None) is None:
            return False
        if not group.members:
            del self._consumers[name]
        self._forget(link, 0, name)
        return True

    def _drop_producer(self, name: str, link: Link) -> None:
        members = self._producers.get(name)
        if members is not None and members.pop(link, None) is not None and not members:
            del self._producers[name]
        self._forget(link, 1, name)

    def _forget(self, link: Link, kind: int, name: str) -> None:
        names = self._links.get(link)
        if names is not None:
            names[kind].discard(name)
            if not names[0] and not names[1]:
                del self._links[link]
                self._forget_ids(link)

    def _forget_ids(self, link: Link) -> None:
        for client_id in self._ids.pop(link, ()):
            links = self._by_id[client_id]
            del links[link]
            if not links:
                del self._by_id[client_id]


def _replace(held: dict[str, Subscription], given: Mapping[str, Subscription]) -> bool:
    changed = False
    for topic in [topic for topic in held if topic not in given]:
        del held[topic]
        changed = True
    for topic, subscription in given.items():
        known = held.get(topic)
        if known is None or subscription.version > known.version:
            # A newer version with the same words is no news to the other members.
            changed |= known is None or known.expression != subscription.expression
            held[topic] = subscription
    return changed
