"""How much a push consumer takes on at once: RocketMQ's flow control, in one value.

Reading stops at whichever bound is reached first and goes on when there is room again, so memory is bounded and a slow
handler holds back the reads and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from trimq.errors import BadRequest

__all__ = ["Limits", "Pace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one consumer."""

    messages: int = 256
    """Messages held in memory, all queues together (RocketMQ's pullThresholdForQueue, 1000 for each there)."""
    bytes: int = 64 << 20
    """Their bodies, all queues together (pullThresholdSizeForQueue)."""
    span: int = 2_000
    """Offsets between the first and the last unfinished message of a queue (consumeConcurrentlyMaxSpan): one message
    that hangs stops its queue here, so that a restart repeats no more than that. Not for ordered consumers."""
    per_second: float = inf
    """Messages handed out, at most."""
    process_s: float = 900.0
    """A message that is in a handler for longer comes again elsewhere, and what the handler says then counts no more
    (RocketMQ's consumeTimeout). Not for ordered consumers."""

    def __post_init__(self) -> None:
        if self.messages < 1 or self.bytes < 1 or self.span < 1 or not self.per_second > 0 or not self.process_s > 0:
            raise BadRequest(f"{self}: every limit has to be above 0")


class Pace:
    """Says when the next message may be handed out. Pure: `now` is passed in."""

    __slots__ = ("_gap_s", "_next")

    def __init__(self, per_second: float) -> None:
        self._gap_s = 1 / per_second
        self._next = 0.0

    def wait_s(self, now: float) -> float:
        """Reserve the next turn; seconds until it comes. What was not used is not saved up."""
        turn = max(now, self._next)
        self._next = turn + self._gap_s
        return turn - now
