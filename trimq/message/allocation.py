"""Who reads which queue: RocketMQ's six allocation strategies, so that our consumers share a group with Java's.

Every member of a consumer group computes the assignment for itself from the same two sorted lists, without talking to
the others. That works only if all compute alike, so these are Java's strategies to the letter, their odd cases
included: with fewer queues than members, *averagely* leaves the members at the end of the list without any.
All are pure; a broker uses them too, for members that leave the choice to it (QUERY_ASSIGNMENT).

The members of one group have to use the same strategy; mixing them leaves queues without a reader or with two.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from trimq.errors import BadRequest

__all__ = [
    "Averagely",
    "AveragelyByCircle",
    "ByConfig",
    "ByMachineRoom",
    "ConsistentHash",
    "MachineRoomNearby",
    "QueueLike",
    "Strategy",
]


class QueueLike(Protocol):
    """A queue, as far as strategies look at it."""

    @property
    def topic(self) -> str: ...
    @property
    def group(self) -> str:
        """The replica group that holds it (RocketMQ's brokerName)."""
        ...

    @property
    def id(self) -> int: ...


Q = TypeVar("Q", bound=QueueLike)


class Strategy(Protocol):
    """Gives each member its share."""

    @property
    def name(self) -> str:
        """RocketMQ's name of the strategy."""
        ...

    def allocate(self, queues: Sequence[Q], members: Sequence[str], me: str) -> Sequence[Q]:
        """The queues of member `me`. Both lists are sorted. A member that is not in its list gets nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Averagely:
    """Each member gets a run of neighbouring queues; the first ones get one more where it does not divide."""

    @property
    def name(self) -> str:
        return "AVG"

    def allocate(self, queues: Sequence[Q], members: Sequence[str], me: str) -> Sequence[Q]:
        if me not in members or not queues:
            return ()
        index = members.index(me)
        share, rest = divmod(len(queues), len(members))
        if len(queues) <= len(members):
            share, rest = 1, 0
            start = index
        elif index < rest:
            share += 1
            start = index * share
        else:
            start = index * share + rest
        return queues[start : start + share]


@dataclass(frozen=True, slots=True)
class AveragelyByCircle:
    """Queues are dealt out like cards."""

    @property
    def name(self) -> str:
        return "AVG_BY_CIRCLE"

    def allocate(self, queues: Sequence[Q], members: Sequence[str], me: str) -> Sequence[Q]:
        return queues[members.index(me) :: len(members)] if me in members else ()


@dataclass(frozen=True, slots=True)
class ByConfig:
    """Always these queues, whoever else is there: the application sees to it that each queue has one reader."""

    queues: Sequence[tuple[str, str, int]]
    """(topic, replica group, number) each."""

    @property
    def name(self) -> str:
        return "CONFIG"

    def allocate(self, queues: Sequence[Q], members: Sequence[str], me: str) -> Sequence[Q]:
        # Java hands its list out as it stands; a queue that does not exist is never read there either.
        known = {(queue.topic, queue.group, queue.id): queue for queue in queues}
        return [known[each] for each in self.queues if each in known]


@dataclass(frozen=True, slots=True)
class ByMachineRoom:
    """Only replica groups named `room@name` with one of these rooms; their queues are shared by all members."""

    rooms: Collection[str]

    @property
    def name(self) -> str:
        return "MACHINE_ROOM"

    def allocate(self, queues: Sequence[Q], members: Sequence[str], me: str) -> Sequence[Q]:
        if me not in members:
            return ()
        near = [queue for queue in queues if len(room := queue.group.split("@")) == 2 and room[0] in self.rooms]
        index = members.index(me)
        share, rest = divmod(len(near), len(members))
        mine = near[index * share : (index + 1) * share]
        return [*mine, near[index + share * len(members)]] if index < rest else mine


@dataclass(frozen=True, slots=True)
class MachineRoomNearby:
    """Queues go to members in the same room; a room without members is shared by everybody."""

    room_of_queue: Callable[[QueueLike], str]
    room_of_member: Callable[[str], str]
    inner: Strategy = field(default_factory=Averagely)
    """How those who come into question share."""

    @property
    def name(self) -> str:
        return f"MACHINE_ROOM_NEARBY-{self.inner.name}"

    def allocate(self, queues: Sequence[Q], members: Sequence[str], me: str) -> Sequence[Q]:
        if me not in members:
            return ()
        rooms: dict[str, list[Q]] = {}
        for queue in queues:
            rooms.setdefault(_room(self.room_of_queue(queue), queue), []).append(queue)
        people: dict[str, list[str]] = {}
        for member in members:
            people.setdefault(_room(self.room_of_member(member), member), []).append(member)
        here = self.room_of_member(me)
        mine = list(self.inner.allocate(rooms.pop(here, []), people[here], me))
        for room in sorted(rooms):
            if room not in people:
                mine += self.inner.allocate(rooms[room], members, me)
        return mine


def _room(room: str, of: object) -> str:
    if not room:
        raise BadRequest(f"no machine room is known for {of}", advice="the resolver has to name a room for everything")
    return room


@dataclass(frozen=True, slots=True)
class ConsistentHash:
    """Members stand on a hash ring, each several times: one that comes or goes moves few queues of the others."""

    virtual_nodes: int = 10

    @property
    def name(self) -> str:
        return "CONSISTENT_HASH"

    def allocate(self, queues: Sequence[Q], members: Sequence[str], me: str) -> Sequence[Q]:
        if me not in members:
            return ()
        ring = {_hash(f"{member}-{number}"): member for member in members for number in range(self.virtual_nodes)}
        places = sorted(ring)
        if not places:
            return ()
        mine: list[Q] = []
        for queue in queues:
            text = f"MessageQueue [topic={queue.topic}, brokerName={queue.group}, queueId={queue.id}]"
            at = bisect_left(places, _hash(text))
            if ring[places[at % len(places)]] == me:
                mine.append(queue)
        return mine


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[:4], "big")
