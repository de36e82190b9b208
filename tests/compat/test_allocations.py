"""All allocation strategies give what RocketMQ's own gave: 210 cases, answered by 5.3.3 (java/Allocations.java).

`python -m tests.compat.test_allocations` prints the cases as that program wants them; their answers, one line each, are
the file's `answers`.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from trimq.client.allocate import allocate
from trimq.client.model import Queue
from trimq.errors import BadRequest
from trimq.message.allocation import (
    Averagely,
    AveragelyByCircle,
    ByConfig,
    ByMachineRoom,
    ConsistentHash,
    MachineRoomNearby,
    QueueLike,
    Strategy,
)

FILE = Path(__file__).with_name("allocations.json")
NAMES = (
    "AVG",
    "AVG_BY_CIRCLE",
    "CONFIG",
    "MACHINE_ROOM",
    "MACHINE_ROOM_NEARBY-AVG",
    "MACHINE_ROOM_NEARBY-AVG_BY_CIRCLE",
    "CONSISTENT_HASH",
)
COUNT = 210
ROOMS = ("east", "north", "south", "west")


@dataclass(frozen=True)
class Case:
    name: str
    me: str
    members: list[str]
    queues: list[Queue]
    rooms: list[str]

    def line(self) -> str:
        queues = ",".join(f"{queue.topic}|{queue.group}|{queue.id}" for queue in self.queues)
        return "\t".join((self.name, self.me, ",".join(self.members), queues, ",".join(self.rooms)))

    @property
    def strategy(self) -> Strategy:
        match self.name:
            case "AVG":
                return Averagely()
            case "AVG_BY_CIRCLE":
                return AveragelyByCircle()
            case "CONFIG":
                chosen = [self.queues[int(each)] for each in self.rooms]
                return ByConfig([(queue.topic, queue.group, queue.id) for queue in chosen])
            case "MACHINE_ROOM":
                return ByMachineRoom(self.rooms)
            case "CONSISTENT_HASH":
                return ConsistentHash()
        inner = AveragelyByCircle() if self.name.endswith("CIRCLE") else Averagely()
        return MachineRoomNearby(room_of_queue, room_of_member, inner)


def room_of_queue(queue: QueueLike) -> str:
    return queue.group.split("@")[0]


def room_of_member(member: str) -> str:
    return member.split("@")[0]


def case(number: int) -> Case:
    rng = random.Random(f"allocation/{number}")
    name = NAMES[number % len(NAMES)]
    groups = sorted({f"{rng.choice(ROOMS)}@b{rng.randrange(5)}" for _ in range(rng.randrange(1, 6))})
    if name == "MACHINE_ROOM" and rng.random() < 0.3:
        groups.append("zone")  # without a room: left out
    queues = sorted(Queue("orders", group, at) for group in groups for at in range(rng.randrange(1, 9)))
    members = sorted(
        {f"{rng.choice(ROOMS)}@10.0.{rng.randrange(9)}.{rng.randrange(99)}" for _ in range(rng.randrange(1, 12))}
    )
    rooms = sorted(rng.sample(ROOMS, rng.randrange(1, 4)))
    if name == "CONFIG":
        rooms = [str(each) for each in rng.sample(range(len(queues)), rng.randrange(1, len(queues) + 1))]
    return Case(name, rng.choice(members), members, queues, rooms)


ANSWERS: list[str] = json.loads(FILE.read_text())["answers"] if FILE.exists() else []


@pytest.mark.parametrize("number", range(COUNT))
def test_equal_to_rocketmq(number: int) -> None:
    given = case(number)
    mine = allocate(given.strategy, reversed(given.queues), reversed(given.members), given.me)
    assert given.strategy.name == given.name
    assert ",".join(str(given.queues.index(queue)) for queue in mine) == ANSWERS[number], given


def test_the_cases_are_worth_something() -> None:
    assert len(ANSWERS) == COUNT
    for at in range(len(NAMES)):
        answers = ANSWERS[at :: len(NAMES)]
        assert len(set(answers)) > 10, NAMES[at]


def test_a_stranger_gets_nothing_and_every_queue_has_one_owner() -> None:
    for number in range(COUNT):
        given = case(number)
        if given.name == "CONFIG":
            continue
        assert list(allocate(given.strategy, given.queues, given.members, "stranger")) == []
        owned = [
            queue for member in given.members for queue in allocate(given.strategy, given.queues, given.members, member)
        ]
        assert len(owned) == len(set(owned))
        if given.name != "MACHINE_ROOM":
            assert sorted(owned) == given.queues


def test_a_room_that_nobody_knows_is_an_error_that_says_so() -> None:
    nearby = MachineRoomNearby(lambda queue: "", lambda member: "east")
    with pytest.raises(BadRequest, match="no machine room"):
        nearby.allocate([Queue("t", "b", 0)], ["m"], "m")


if __name__ == "__main__":
    print("\n".join(case(number).line() for number in range(COUNT)))
