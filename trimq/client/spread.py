"""Which queue takes the next message that may go anywhere.

It stays the same until a request for it has gone out. So messages sent one by one go round all queues and replica
groups, and under load whole batches form for one queue at a time instead of single messages for many.
"""

from __future__ import annotations

from trimq.client.model import Queue
from trimq.client.route import interleave

__all__ = ["Spread"]


class Spread:
    """The queues of one topic, and which of them takes the next message that may go anywhere."""

    __slots__ = ("current", "index", "provisional_until", "queues", "sorted")

    def __init__(self, queues: tuple[Queue, ...], *, start: int, provisional_until: float) -> None:
        self.sorted = queues
        self.queues = interleave(queues)
        self.index = start % len(queues)
        self.current = self.queues[self.index]
        self.provisional_until = provisional_until
        """Of a topic that our sends create: until then a route with fewer groups does not count. Else 0."""

    @property
    def groups(self) -> set[str]:
        return {queue.group for queue in self.sorted}

    def advance(self) -> Queue:
        """Go on to the next queue."""
        self.index = (self.index + 1) % len(self.queues)
        self.current = self.queues[self.index]
        return self.current
