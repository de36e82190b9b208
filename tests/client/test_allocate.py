"""The shares must be those that RocketMQ's AllocateMessageQueueAveragely computes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimq.client.allocate import allocate_averagely
from trimq.client.model import Queue


def as_java_does(queues: list[Queue], members: list[str], me: str) -> list[Queue]:
    """The Java arithmetic, restated step by step as an oracle."""
    index = members.index(me)
    rest = len(queues) % len(members)
    if len(queues) <= len(members):
        size = 1
    elif rest > 0 and index < rest:
        size = len(queues) // len(members) + 1
    else:
        size = len(queues) // len(members)
    start = index * size if rest > 0 and index < rest else index * size + rest
    count = min(size, len(queues) - start)
    return [queues[(start + i) % len(queues)] for i in range(max(count, 0))]


@given(st.integers(0, 40), st.integers(1, 15))
def test_shares_equal_those_of_java(queue_count: int, member_count: int) -> None:
    queues = [Queue("t", "b", number) for number in range(queue_count)]
    members = [f"client-{i:02}" for i in range(member_count)]
    for me in members:
        expected = as_java_does(queues, members, me) if queues else []
        assert list(allocate_averagely(queues, members, me)) == expected


@given(st.integers(0, 40), st.integers(1, 15))
def test_every_queue_has_exactly_one_owner(queue_count: int, member_count: int) -> None:
    members = [f"client-{i:02}" for i in range(member_count)]
    queues = [Queue("t", "b", number) for number in range(queue_count)]
    owned = [queue for me in members for queue in allocate_averagely(queues, members, me)]
    assert sorted(owned) == queues


def test_both_lists_are_sorted_first() -> None:
    queues = [Queue("t", "b", 1), Queue("t", "a", 0), Queue("t", "b", 0), Queue("t", "a", 1)]
    assert list(allocate_averagely(queues, ["z", "y"], "y")) == [Queue("t", "a", 0), Queue("t", "a", 1)]
    assert list(allocate_averagely(queues, ["z", "y"], "z")) == [Queue("t", "b", 0), Queue("t", "b", 1)]


@pytest.mark.parametrize("members", [[], ["someone", "else"]])
def test_who_is_not_a_member_gets_nothing(members: list[str]) -> None:
    assert list(allocate_averagely([Queue("t", "b", 0)], members, "me")) == []
