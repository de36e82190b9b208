"""Deadlines and waiting between attempts.

A call has one deadline: the caller's cancel scope, or the client's default when the caller set none. It bounds every
attempt and every wait together. The library gives up a moment *before* the caller's scope would be cancelled, so that
the caller learns what became of the call (`NotStored`, `SendUnknown`, ...) instead of a bare timeout.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf
from typing import Protocol

import anyio
import sniffio
import trio

__all__ = ["Backoff", "EventLoop", "Waitable", "bounded_deadline", "deadline_for"]

MARGIN_S = 0.02
"""How much earlier than the caller's scope a call ends by itself; at most a tenth of what is left."""


def deadline_for(default_timeout: float) -> float:
    """The point on the event loop's clock at which a call that begins now has to end."""
    return bounded_deadline(default_timeout)[0]


def bounded_deadline(default_timeout: float) -> tuple[float, bool]:
    """The same, and whether it is the caller's (then his cancel scope ends the call if we do not)."""
    return _bounded(anyio.current_time(), anyio.current_effective_deadline(), default_timeout)


def _bounded(now: float, theirs: float, default_timeout: float) -> tuple[float, bool]:
    if theirs == inf:
        return now + default_timeout, False
    left = theirs - now
    return theirs - min(MARGIN_S, max(left, 0.0) / 10), True


class Waitable(Protocol):
    """What `EventLoop.event` makes."""

    def set(self) -> object: ...

    async def wait(self) -> object: ...


class EventLoop:
    """What a producer asks of the event loop for every message, found once.

    AnyIO looks for the library in use at each call, which is a tenth of what a message costs here; under Trio its own
    functions are taken.
    """

    def __init__(self) -> None:
        """Called under the loop that is meant."""
        trios = sniffio.current_async_library() == "trio"
        self.event: Callable[[], Waitable] = trio.Event if trios else anyio.Event
        self.now: Callable[[], float] = trio.current_time if trios else anyio.current_time
        self._effective = trio.current_effective_deadline if trios else anyio.current_effective_deadline

    def bounded_deadline(self, default_timeout: float) -> tuple[float, bool]:
        """As the function of that name."""
        return _bounded(self.now(), self._effective(), default_timeout)


class Backoff:
    """Waits that double, with jitter: 20 ms at first, 200 ms at most (the time that an election takes)."""

    def __init__(self, rng: random.Random, first_s: float = 0.02, most_s: float = 0.2) -> None:
        self._rng = rng
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s

    def next_s(self) -> float:
        """Seconds to wait now."""
        delay = self._next_s
        self._next_s = min(delay * 2, self._most_s)
        return delay * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """The last attempt went well."""
        self._next_s = self._first_s
