"""Who leads what: the name server's whole knowledge, in memory.

A pure core: no clock, no sockets; the caller passes `now` (seconds of any clock that does not jump) and a number for
the connection that a request came through. Everything here was told by brokers and is told again within 30 s, so a
name server keeps nothing on disk and several of them know nothing of each other.

The rules, beyond plain tables:

- A **closed connection** removes the entries that were registered through it, at once; else an entry expires when it
  was not refreshed for its heartbeat time (120 s when the broker named none).
- An address has **one id** per broker name: seen under a new one it leaves the old one. So a leader that became a
  follower no longer stands in the route as the leader.
- **A revived old leader cannot take the route back.** `DataVersion.stateVersion` carries the term: id 0 is refused to
  a lower one than id 0 was ever given. The memory of that ends with the broker name's last entry, for a group that
  was wiped and formed again starts at term 1.
- Topic data is taken from **id 0 only**, and only when its data version differs from the one held. A topic missing from
  a table leaves only when the sender says that the table is whole (`full`), since RocketMQ 5's brokers also send
  partial ones; else topics go by `delete_topic` or with their last broker.

Queries change nothing; `generation` moves with every change, so answers may be cached under it.
Source: RocketMQ's RouteInfoManager (tables, 120 s, connection close, stateVersion guard of 5.x).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from trimq.wire.body.route import DataVersion

__all__ = [
    "HEARTBEAT_LIMIT_S",
    "BrokerGroup",
    "DataVersion",
    "Registered",
    "Registration",
    "Replica",
    "Route",
    "RouteTable",
    "TableFull",
    "TopicQueues",
]

HEARTBEAT_LIMIT_S = 120.0
LEADER_ID = 0
NO_VERSION = DataVersion()
PERM_WRITE = 2
PERM_READ_WRITE = 6

GROUPS_MAX = 10_000
"""Broker names. A cluster has tens; the limit keeps a mad client from filling our memory."""
REPLICAS_MAX = 64
"""Addresses under one broker name."""
TOPICS_MAX = 500_000


class TableFull(Exception):
    """A registration that would exceed one of the limits above; nothing of it was taken."""


@dataclass(frozen=True, slots=True)
class TopicQueues:
    """One topic on one broker group."""

    read_queues: int
    write_queues: int
    perm: int
    """2 = writable, 4 = readable."""
    sys_flag: int = 0
    """1 = unit topic, 2 = has a unit subscription."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a broker says about itself."""

    cluster: str
    broker_name: str
    addr: str
    broker_id: int
    ha_addr: str = ""
    version: DataVersion = NO_VERSION
    topics: Mapping[str, TopicQueues] | None = None
    """None: no table came with it (it cannot be the first one of an id 0 then)."""
    full: bool = False
    """The table is whole: topics that are missing from it are gone."""
    heartbeat_s: float = HEARTBEAT_LIMIT_S
    acting_master: bool | None = None
    zone: str = ""


@dataclass(slots=True)
class Replica:
    """One address of a broker group."""

    addr: str
    broker_id: int
    ha_addr: str
    version: DataVersion
    conn_id: int
    heartbeat_s: float
    refreshed_at: float

    def expires_at(self) -> float:
        return self.refreshed_at + self.heartbeat_s


@dataclass(slots=True)
class BrokerGroup:
    """All replicas that share a broker name."""

    name: str
    cluster: str
    replicas: dict[int, Replica] = field(default_factory=dict)
    """By broker id."""
    leader_version: int = 0
    """The highest stateVersion that id 0 was given for."""
    topics_version: DataVersion | None = None
    """Version of the topic table that we hold; None: none was taken yet."""
    acting_master: bool | None = None
    zone: str = ""

    def addrs(self) -> dict[int, str]:
        """Addresses by id, ascending."""
        return {broker_id: self.replicas[broker_id].addr for broker_id in sorted(self.replicas)}

    def find(self, addr: str) -> Replica | None:
        return next((replica for replica in self.replicas.values() if replica.addr == addr), None)


@dataclass(frozen=True, slots=True)
class Registered:
    """The answer to a registration."""

    accepted: bool
    reason: str = ""
    """Why it was refused."""
    master_addr: str = ""
    """For a replica that is not id 0: where its id 0 is, if known."""
    ha_addr: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a topic's queues are."""

    queues: tuple[tuple[str, TopicQueues], ...]
    """(broker name, its queues), by name."""
    groups: tuple[BrokerGroup, ...]


class RouteTable:
    """Brokers, their topics, and what clients ask about them."""

    def __init__(self) -> None:
        self._groups: dict[str, BrokerGroup] = {}
        self._topics: dict[str, dict[str, TopicQueues]] = {}
        """topic -> broker name -> queues"""
        self.generation = 0
        """Moves whenever an answer may change."""

    # -- what brokers tell ---------------------------------------------------------------------------------------

    def register(self, reg: Registration, *, conn_id: int, now: float) -> Registered:
        """Take a broker's registration. Raises `TableFull`."""
        group = self._groups.get(reg.broker_name)
        if group is not None and reg.broker_id == LEADER_ID and (refusal := self._refusal(group, reg)):
            return Registered(False, refusal)
        if not reg.full and len(reg.topics or ()) == 1 and (group is None or group.find(reg.addr) is None):
            # RocketMQ 5 pushes single topics as they change. As the first table it would pass for the whole one.
            return Registered(False, "register broker failed: unknown address, send the whole topic table")
        self._check_limits(group, reg)
        if group is None:
            group = self._groups[reg.broker_name] = BrokerGroup(reg.broker_name, reg.cluster)
        self._place(group, reg, conn_id, now)
        if reg.broker_id == LEADER_ID:
            group.leader_version = max(group.leader_version, reg.version.stateVersion)
            self._take_topics(group, reg)
            return Registered(True)
        leader = group.replicas.get(LEADER_ID)
        return Registered(True, "", leader.addr, leader.ha_addr) if leader else Registered(True)

    @staticmethod
    def _refusal(group: BrokerGroup, reg: Registration) -> str:
        """Why `reg` may not be id 0; empty when it may.

        The very address that is id 0 now may come with a lower version: it is a new process there, its predecessor
        cannot be alive.
        """
        version = reg.version.stateVersion
        leader = group.replicas.get(LEADER_ID)
        if version >= group.leader_version or (leader is not None and leader.addr == reg.addr):
            return ""
        holder = f", held by {leader.addr}" if leader is not None else ""
        return f"{reg.addr} leads {group.name} no more: term {version} is older than {group.leader_version}{holder}"

    def _check_limits(self, group: BrokerGroup | None, reg: Registration) -> None:
        if group is None and len(self._groups) >= GROUPS_MAX:
            raise TableFull(f"more than {GROUPS_MAX} broker names")
        if group is not None and reg.broker_id not in group.replicas and len(group.replicas) >= REPLICAS_MAX:
            raise TableFull(f"more than {REPLICAS_MAX} addresses under broker name {reg.broker_name}")
        if reg.topics and len(self._topics) + len(reg.topics) > TOPICS_MAX:
            new = sum(1 for topic in reg.topics if topic not in self._topics)
            if len(self._topics) + new > TOPICS_MAX:
                raise TableFull(f"more than {TOPICS_MAX} topics")

    def _place(self, group: BrokerGroup, reg: Registration, conn_id: int, now: float) -> None:
        """Put the address under its id, and nowhere else."""
        for broker_id in [i for i, r in group.replicas.items() if r.addr == reg.addr and i != reg.broker_id]:
            del group.replicas[broker_id]
            self.generation += 1
        old = group.replicas.get(reg.broker_id)
        group.replicas[reg.broker_id] = Replica(
            reg.addr, reg.broker_id, reg.ha_addr, reg.version, conn_id, reg.heartbeat_s, now
        )
        shown = (reg.cluster, reg.acting_master, reg.zone)
        if old is None or old.addr != reg.addr or (group.cluster, group.acting_master, group.zone) != shown:
            group.cluster, group.acting_master, group.zone = shown
            self.generation += 1

    def _take_topics(self, group: BrokerGroup, reg: Registration) -> None:
        if reg.topics is None or reg.version == group.topics_version:
            return
        group.topics_version = reg.version
        for topic, queues in reg.topics.items():
            self._topics.setdefault(topic, {})[group.name] = queues
        if reg.full:
            for topic in [
                t for t, by_broker in self._topics.items() if group.name in by_broker and t not in reg.topics
            ]:
                self._drop_topic(topic, group.name)
        self.generation += 1

    def unregister(self, broker_name: str, addr: str) -> bool:
        """A broker says goodbye; False when it was not there (any more)."""
        group = self._groups.get(broker_name)
        replica = group.find(addr) if group else None
        if group is None or replica is None:
            return False
        self._remove(group, replica)
        return True

    def refresh(
        self, broker_name: str, addr: str, *, conn_id: int, now: float, heartbeat_s: float | None = None
    ) -> DataVersion | None:
        """A sign of life; returns the version of the topic table held for the group, None for an unknown address."""
        group = self._groups.get(broker_name)
        replica = group.find(addr) if group else None
        if group is None or replica is None:
            return None
        replica.refreshed_at = now
        replica.conn_id = conn_id
        if heartbeat_s is not None:
            replica.heartbeat_s = heartbeat_s
        return replica.version

    def connection_closed(self, conn_id: int) -> list[Replica]:
        """Remove what was registered through a connection that is gone; returns it."""
        return self._remove_where(lambda replica: replica.conn_id == conn_id)

    def expire(self, now: float) -> list[Replica]:
        """Remove who was silent too long; returns them."""
        return self._remove_where(lambda replica: replica.expires_at() <= now)

    # -- what administrators change ------------------------------------------------------------------------------

    def delete_topic(self, topic: str, cluster: str = "") -> bool:
        """Forget a topic, in one cluster or everywhere; False when it was unknown."""
        by_broker = self._topics.get(topic)
        if by_broker is None:
            return False
        for name in list(by_broker):
            group = self._groups.get(name)
            if not cluster or (group is not None and group.cluster == cluster):
                self._drop_topic(topic, name)
        self.generation += 1
        return True

    def add_topic(self, topic: str, queues: Iterable[tuple[str, TopicQueues]]) -> None:
        """Add queues of brokers that are known; others are ignored. Raises `TableFull`."""
        if topic not in self._topics and len(self._topics) >= TOPICS_MAX:
            raise TableFull(f"more than {TOPICS_MAX} topics")
        known = {name: q for name, q in queues if name in self._groups}
        if known:
            self._topics.setdefault(topic, {}).update(known)
            self.generation += 1

    def wipe_write_permission(self, broker_name: str) -> int:
        """Take the write bit from all topics of a broker; returns how many there are. Holds until its table changes."""
        return self._set_permission(broker_name, lambda perm: perm & ~PERM_WRITE)

    def add_write_permission(self, broker_name: str) -> int:
        """Make all topics of a broker readable and writable; returns how many there are."""
        return self._set_permission(broker_name, lambda perm: PERM_READ_WRITE)

    # -- what clients ask ----------------------------------------------------------------------------------------

    def route(self, topic: str) -> Route | None:
        """Where a topic's queues are; None when no live broker has it."""
        by_broker = self._topics.get(topic)
        if not by_broker:
            return None
        names = sorted(by_broker)
        return Route(tuple((n, by_broker[n]) for n in names), tuple(self._groups[n] for n in names))

    def groups(self) -> list[BrokerGroup]:
        """All broker groups, by name."""
        return [self._groups[name] for name in sorted(self._groups)]

    def group(self, broker_name: str) -> BrokerGroup | None:
        return self._groups.get(broker_name)

    def topics(self) -> list[str]:
        """All topics, sorted."""
        return sorted(self._topics)

    def topics_of_cluster(self, cluster: str) -> list[str]:
        """Topics with queues on a broker of that cluster, sorted."""
        names = {group.name for group in self._groups.values() if group.cluster == cluster}
        return sorted(topic for topic, by_broker in self._topics.items() if not names.isdisjoint(by_broker))

    def topics_with_flag(self, required: int, forbidden: int = 0) -> list[str]:
        """Topics one of whose system flags has all `required` bits and none of the `forbidden` ones, sorted."""
        return sorted(
            topic
            for topic, by_broker in self._topics.items()
            if any(q.sys_flag & required == required and not q.sys_flag & forbidden for q in by_broker.values())
        )

    # -- inside --------------------------------------------------------------------------------------------------

    def _remove_where(self, gone: Callable[[Replica], bool]) -> list[Replica]:
        removed: list[Replica] = []
        for group in list(self._groups.values()):
            for replica in [r for r in group.replicas.values() if gone(r)]:
                self._remove(group, replica)
                removed.append(replica)
        return removed

    def _remove(self, group: BrokerGroup, replica: Replica) -> None:
        del group.replicas[replica.broker_id]
        self.generation += 1
        if not group.replicas:
            del self._groups[group.name]
            for topic in self._topics_of(group.name):
                self._drop_topic(topic, group.name)

    def _topics_of(self, broker_name: str) -> list[str]:
        return [topic for topic, by_broker in self._topics.items() if broker_name in by_broker]

    def _drop_topic(self, topic: str, broker_name: str) -> None:
        by_broker = self._topics[topic]
        del by_broker[broker_name]
        if not by_broker:
            del self._topics[topic]

    def _set_permission(self, broker_name: str, change: Callable[[int], int]) -> int:
        count = 0
        for by_broker in self._topics.values():
            queues = by_broker.get(broker_name)
            if queues is not None:
                by_broker[broker_name] = replace(queues, perm=change(queues.perm))
                count += 1
        if count:
            self.generation += 1
        return count
