"""How far the timer is: a function of ops 24 and 25.

Per queue of the timer topic one small tuple, whatever number of messages waits there; of a cancelled message its place
until the timer comes by (`CANCELLED_MAX` at most: recalls are refused beyond).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Final, NamedTuple

from broker.metadata.timer_ops import TimerCancel, TimerDone

__all__ = ["CANCELLED_MAX", "NOTHING_DONE", "QueueDone", "Timers"]

CANCELLED_MAX: Final = 1_000_000


class QueueDone(NamedTuple):
    """What of one queue is done: all below `start`; above it, what sorts at or below (due, offset)."""

    start: int
    due_ms: int
    offset: int


NOTHING_DONE: Final = QueueDone(0, 0, 0)


class Timers:
    """Queue → how far it is; (queue, offset) of what was cancelled. The leader's view passes overlays in."""

    __slots__ = ("cancelled", "queues")

    def __init__(
        self,
        queues: MutableMapping[int, QueueDone] | None = None,
        cancelled: MutableMapping[tuple[int, int], bool] | None = None,
    ) -> None:
        self.queues: MutableMapping[int, QueueDone] = {} if queues is None else queues
        self.cancelled: MutableMapping[tuple[int, int], bool] = {} if cancelled is None else cancelled

    def apply(self, op: TimerDone | TimerCancel) -> None:
        """Change the tables as `op` says."""
        if isinstance(op, TimerCancel):
            self.cancelled[op.queue, op.offset] = True
            return
        self.queues[op.queue] = QueueDone(op.start, op.due_ms, op.offset)
        for offset in op.skipped:
            if (op.queue, offset) in self.cancelled:
                del self.cancelled[op.queue, offset]

    def done(self, queue: int) -> QueueDone:
        return self.queues.get(queue, NOTHING_DONE)

    def waits(self, queue: int, due_ms: int, offset: int) -> bool:
        """Will this message still be delivered?"""
        done = self.done(queue)
        if offset < done.start or (due_ms, offset) <= (done.due_ms, done.offset):
            return False
        return (queue, offset) not in self.cancelled

    def flat(self) -> dict[str, Any]:
        return {"queues": dict(self.queues), "cancelled": list(self.cancelled)}

    @staticmethod
    def encode(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "queues": [[queue, *done] for queue, done in flat["queues"].items()],
            "cancelled": [list(place) for place in flat["cancelled"]],
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        self.queues.clear()
        self.cancelled.clear()
        for queue, *done in data["queues"]:
            self.queues[queue] = QueueDone(*done)
        for queue, offset in data["cancelled"]:
            self.cancelled[queue, offset] = True
