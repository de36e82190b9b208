"""What ordered consumers saw, judged: swaps, gaps, and queues that two consumers worked on at once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

__all__ = ["OrderHistory"]


@dataclass(slots=True)
class OrderHistory:
    """Per key: numbers 0, 1, 2, ... as they were processed. Redelivery in order is allowed, nothing else is."""

    last: dict[str, int] = field(default_factory=lambda: defaultdict(lambda: -1))
    gaps: list[str] = field(default_factory=list)
    swaps: list[str] = field(default_factory=list)
    overlaps: list[str] = field(default_factory=list)
    processed: int = 0
    redelivered: int = 0
    _seen: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    _skipped: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    _working: dict[object, str] = field(default_factory=dict)

    def enter(self, queue: object, consumer: str) -> None:
        """A consumer begins with a message of a queue."""
        other = self._working.get(queue)
        if other is not None:
            self.overlaps.append(f"{queue}: {consumer} while {other}")
        self._working[queue] = consumer

    def leave(self, queue: object, consumer: str, key: str, number: int) -> None:
        """It has processed the message."""
        self.give_up(queue, consumer)
        self.processed += 1
        if number in self._seen[key]:
            self.redelivered += 1
        self._seen[key].add(number)
        if number in self._skipped[key]:
            self.swaps.append(f"{key}: {number} after {self.last[key]}")
            self._skipped[key].discard(number)
        elif number > self.last[key] + 1:
            missing = range(self.last[key] + 1, number)
            self.gaps.append(f"{key}: {number} after {self.last[key]}")
            self._skipped[key].update(missing)
        self.last[key] = max(self.last[key], number)

    def give_up(self, queue: object, consumer: str) -> None:
        """It stopped in the middle of it."""
        if self._working.get(queue) == consumer:
            del self._working[queue]

    def missing(self, sent: dict[str, int]) -> list[str]:
        """Keys of which not everything was processed; `sent` is how many messages each has."""
        return [key for key, count in sent.items() if self._seen[key] != set(range(count))]
