"""What waits for its time: the answer to code 9020."""

# ruff: noqa: RUF012  (msgspec gives each value a default list of its own)
from __future__ import annotations

from trimq.wire.body.base import Body

__all__ = ["TimedMessage", "TimerList"]


class TimedMessage(Body, frozen=True, kw_only=True):
    """One timed message that waits."""

    topic: str
    queueId: int
    dueMs: int
    msgId: str = ""
    """Its unique id."""
    keys: str = ""
    tag: str = ""
    bornMs: int = 0
    bodyBytes: int = 0
    rolled: int = 0
    """How often it was placed anew since it was sent."""
    recallHandle: str = ""


class TimerList(Body, frozen=True, kw_only=True):
    messages: list[TimedMessage] = []
    waiting: int = 0
    """How many wait in this replica group at most: cancelled ones count until their time."""
