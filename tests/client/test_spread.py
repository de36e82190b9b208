"""Which queue an order key has, while replica groups leave the route and come back."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from trimq import Message, Queue
from trimq.client.route import GroupRoute, Route
from trimq.client.spread import KEYED_S, Spread

pytestmark = pytest.mark.trio

KEYS = [f"k{number}" for number in range(40)]
READ, READ_WRITE = 4, 6


def route(**groups: int | tuple[int, int]) -> Route:
    """Group (`a` is broker-a) to its number of queues, or to that and its permission."""
    listed = []
    for name, said in groups.items():
        count, perm = said if isinstance(said, tuple) else (said, READ_WRITE)
        listed.append(GroupRoute(f"broker-{name}", "C", {0: f"{name}:1"}, count, count, perm))
    return Route("T", tuple(listed))


def chosen(spread: Spread) -> list[Queue]:
    return [spread.choose(Message(topic="T", body=b"x", order_key=key)) for key in KEYS]


def queues(group: str, count: int) -> set[Queue]:
    return {Queue("T", group, number) for number in range(count)}


def whole() -> Spread:
    return Spread(route(a=4, b=4).write_queues, start=0)


async def test_a_group_that_is_gone_for_a_moment_keeps_its_keys(autojump_clock: MockClock) -> None:
    """All replicas of a group restart: the name server has dropped it meanwhile."""
    before = chosen(whole())
    assert set(before) == queues("broker-a", 4) | queues("broker-b", 4)
    short = whole().renewed(route(a=4))
    assert chosen(short) == before
    assert {queue.group for queue in short.queues} == {"broker-a"}, "what may go anywhere does not wait"
    await trio.sleep(KEYED_S - 1)
    assert chosen(short.renewed(route(a=4, b=4))) == before
    assert chosen(short.renewed(route(a=2))) != before, "the queues of a group that is there are what it says"


async def test_a_group_that_stays_away_loses_its_keys(autojump_clock: MockClock) -> None:
    short = whole().renewed(route(a=4))
    await trio.sleep(KEYED_S / 2)
    short = short.renewed(route(a=3))
    await trio.sleep(KEYED_S / 2)
    assert set(chosen(short)) == queues("broker-a", 3)


async def test_a_group_that_takes_no_writes_any_more_loses_its_keys_at_once(autojump_clock: MockClock) -> None:
    """An operator wiped its permission: sends there would be refused for good."""
    assert set(chosen(whole().renewed(route(a=4, b=(4, READ))))) == queues("broker-a", 4)
    gone = whole().renewed(route(a=4))
    assert set(chosen(gone.renewed(route(a=4, b=(4, READ))))) == queues("broker-a", 4)


async def test_a_group_that_appears_gets_keys_only_after_a_while(autojump_clock: MockClock) -> None:
    """Found by the simulation (seeds 81614 and 80844): the first messages of a key were sent while the topic was known
    in one group only, the next ones a second later in another, and overtook them."""
    lone = Spread(route(a=4).write_queues, start=0)
    before = chosen(lone)
    both = lone.renewed(route(a=4, b=4))
    assert chosen(both) == before
    assert {queue.group for queue in both.queues} == {"broker-a", "broker-b"}, "what may go anywhere does not wait"
    await trio.sleep(KEYED_S - 1)
    assert chosen(both) == before
    third = both.renewed(route(a=4, b=4, c=4))
    await trio.sleep(KEYED_S - 1)
    assert chosen(third) == before, "the newest one counts"
    await trio.sleep(1)
    assert chosen(third) == chosen(Spread(route(a=4, b=4, c=4).write_queues, start=0))


async def test_when_nothing_is_left_of_what_keys_had_they_go_where_the_route_says(autojump_clock: MockClock) -> None:
    moved = Spread(route(a=4).write_queues, start=0).renewed(route(a=(4, READ), b=4))
    assert set(chosen(moved)) <= queues("broker-b", 4)
