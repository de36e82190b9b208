"""Deadlines and waiting between attempts.

A call has one deadline: the caller's cancel scope, or the client's default when the caller set none. It bounds every
attempt and every wait together. The library gives up a moment *before* the caller's scope would be cancelled, so that
the caller learns what became of the call (`NotStored`, `SendUnknown`, ...) instead of a bare timeout.
"""

from __future__ import annotations

import random
from math import inf

import anyio

__all__ = ["Backoff", "bounded_deadline", "deadline_for"]

MARGIN_S = 0.02
"""How much earlier than the caller's scope a call ends by itself; at most a tenth of what is left."""


def deadline_for(default_timeout: float) -> float:
    """The point on the event loop's clock at which a call that begins now has to end."""
    return bounded_deadline(default_timeout)[0]


def bounded_deadline(default_timeout: float) -> tuple[float, bool]:
    """The same, and whether it is the caller's (then his cancel scope ends the call if we do not)."""
    now = anyio.current_time()
    theirs = anyio.current_effective_deadline()
    if theirs == inf:
        return now + default_timeout, False
    left = theirs - now
    return theirs - min(MARGIN_S, max(left, 0.0) / 10), True


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
