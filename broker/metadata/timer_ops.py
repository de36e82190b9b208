"""Ops 24 and 25: how far the timer's queues are, and which of their messages were cancelled.

A timed message is a record of the timer topic; its place there is its name here. Op 24 comes in the entry of the
messages that it says are delivered (or moved on), so nothing is delivered twice or skipped, whoever leads next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from broker.metadata.op_fields import QUEUE_MAX, Raw, integer

__all__ = ["TimerCancel", "TimerDone"]


@dataclass(frozen=True, slots=True)
class TimerDone:
    """One queue of the timer topic is done with everything below `start`, and above it with what was due up to here."""

    code: ClassVar[int] = 24
    queue: int
    start: int
    due_ms: int
    """Of the messages from `start` on, those at or below (due, offset) are done."""
    offset: int
    skipped: Sequence[int] = ()
    """Offsets among them that had been cancelled: nothing more needs to be known of these."""

    def fields(self) -> list[Raw]:
        return [self.queue, self.start, self.due_ms, self.offset, list(self.skipped)]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> TimerDone:
        queue, start, due_ms, offset, skipped = raw
        return cls(
            integer(queue, 0, QUEUE_MAX),
            integer(start),
            integer(due_ms),
            integer(offset),
            tuple(integer(each) for each in skipped),
        )


@dataclass(frozen=True, slots=True)
class TimerCancel:
    """A timed message shall not be delivered."""

    code: ClassVar[int] = 25
    queue: int
    offset: int

    def fields(self) -> list[Raw]:
        return [self.queue, self.offset]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> TimerCancel:
        queue, offset = raw
        return cls(integer(queue, 0, QUEUE_MAX), integer(offset))
