"""A member's own share of the queues of a topic: sorts as every member does, then asks the strategy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trimq.client.model import Queue
from trimq.message.allocation import Averagely, Strategy

__all__ = ["allocate", "allocate_averagely"]


def allocate(strategy: Strategy, queues: Iterable[Queue], members: Iterable[str], me: str) -> Sequence[Queue]:
    """The queues that fall to member `me`, in order.

    A member that is not in the list (its heartbeat has not arrived yet) gets nothing.
    """
    everyone = sorted(set(members))
    if me not in everyone:
        return ()
    return strategy.allocate(sorted(queues), everyone, me)


def allocate_averagely(queues: Iterable[Queue], members: Iterable[str], me: str) -> Sequence[Queue]:
    """The default strategy."""
    return allocate(Averagely(), queues, members, me)
