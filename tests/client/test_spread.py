"""Which queue an order key has, while replica groups leave the route and come back."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from trimq import Message, Queue
from trimq.client.spread import KEYED_S, Spread

pytestmark = pytest.mark.trio

KEYS = [f"k{number}" for number in range(40)]
A = tuple(Queue("T", "broker-a", number) for number in range(4))
B = tuple(Queue("T", "broker-b", number) for number in range(4))


def chosen(spread: Spread) -> list[Queue]:
    return [spread.choose(Message(topic="T", body=b"x", order_key=key)) for key in KEYS]


async def test_a_group_that_is_gone_for_a_moment_keeps_its_keys(autojump_clock: MockClock) -> None:
    """All replicas of a group restart: the name server has dropped it meanwhile."""
    whole = Spread((*A, *B), start=0)
    before = chosen(whole)
    assert set(before) == {*A, *B}
    short = whole.renewed(A)
    assert chosen(short) == before
    assert {queue.group for queue in short.queues} == {"broker-a"}, "what may go anywhere does not wait"
    await trio.sleep(KEYED_S - 1)
    assert chosen(short.renewed((*A, *B))) == before
    assert chosen(short.renewed(A[:2])) != before, "the queues of a group that is there are what it says"


async def test_a_group_that_stays_away_loses_its_keys(autojump_clock: MockClock) -> None:
    whole = Spread((*A, *B), start=0)
    short = whole.renewed(A)
    await trio.sleep(KEYED_S / 2)
    short = short.renewed(A[:3])
    await trio.sleep(KEYED_S / 2)
    assert set(chosen(short)) == set(A[:3])
