"""The timing wheel: which queue of the timer topic takes a message that is due at a certain time.

The wheel is 512 queues, a slot of five minutes each, so it turns once in 42 hours and 40 minutes. A message that is due
within `roll_ms` goes straight into the queue of its slot. One that is due later goes into queue 0, the *far* queue,
which is in order of arrival: what has been there for `roll_ms` is taken out and placed again. So a message that waits
for three years is appended anew every 36 hours, the log never has to be kept longer than that for it, and memory holds
eight bytes for each message of the slot that is current, and nothing for all others.

RocketMQ's wheel (TimerMessageStore) is a file of slots with linked lists through a second log, rolled every two days.
Here the queue index that every topic has anyway is the wheel: an index unit of the timer topic carries the due time
where others carry the tag.

Pure: numbers in, numbers out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["FAR_QUEUE", "ROLL_MS", "SLOTS", "SLOT_MS", "TIMER_QUEUES", "TIMER_TOPIC", "Wheel", "slot_of"]

TIMER_TOPIC: Final = "rmq_sys_wheel_timer"
FAR_QUEUE: Final = 0
SLOTS: Final = 512
SLOT_MS: Final = 300_000
TIMER_QUEUES: Final = 1 + SLOTS
ROLL_MS: Final = 36 * 3_600_000


def slot_of(due_ms: int) -> int:
    """The number of the slot since 1970 that a time belongs to."""
    return due_ms // SLOT_MS


@dataclass(frozen=True, slots=True)
class Wheel:
    """Where timed messages go. `roll_ms` belongs to the group's log: it must not change while messages wait."""

    roll_ms: int = ROLL_MS

    def __post_init__(self) -> None:
        # Two slots of distance keep the one that is being read apart from the one that comes round again.
        assert 0 < self.roll_ms <= (SLOTS - 2) * SLOT_MS, self.roll_ms

    def queue_for(self, due_ms: int, now_ms: int) -> int:
        """The queue of the timer topic for a message that is due after `now_ms`."""
        if due_ms - now_ms > self.roll_ms:
            return FAR_QUEUE
        return 1 + slot_of(due_ms) % SLOTS
