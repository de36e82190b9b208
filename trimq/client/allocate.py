"""Who reads which queue: RocketMQ's averaging strategy, so that our consumers share a group with Java's.

Every member of a consumer group computes the assignment for itself from the same two sorted lists, without talking to
the others. That works only if all compute alike, so this is `AllocateMessageQueueAveragely` to the letter, its odd case
included: with fewer queues than members, the members at the end of the list get nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

__all__ = ["allocate_averagely"]


class _Ordered(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...  # Any: each type compares with its own kind only


Q = TypeVar("Q", bound=_Ordered)


def allocate_averagely(queues: Iterable[Q], members: Iterable[str], me: str) -> Sequence[Q]:
    """The queues that fall to member `me`, in order.

    Both lists are sorted here. A member that is not in the list (its heartbeat has not arrived yet) gets nothing.
    """
    ordered = sorted(queues)
    everyone = sorted(set(members))
    if me not in everyone or not ordered:
        return ()
    index = everyone.index(me)
    share, rest = divmod(len(ordered), len(everyone))
    if len(ordered) <= len(everyone):
        share, rest = 1, 0
        start = index
    elif index < rest:
        share += 1
        start = index * share
    else:
        start = index * share + rest
    return ordered[start : start + share]
