"""What the drill's clients saw: the only thing that the verdict is based on.

A send has three outcomes. OK: acknowledged. FAILED: surely not stored. UNKNOWN: nobody knows; it may appear, once,
or never. A checker that took UNKNOWN for FAILED would report phantoms, one that took it for OK would report losses.

A message proves itself: its body carries producer, sequence and a checksum, so what is read back can be trusted
without any bookkeeping at the broker.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from struct import Struct

BODY_BYTES = 1024
_HEAD = Struct(">4sIQI")
_MAGIC = b"DRIL"


class Outcome(Enum):
    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Value:
    """One message, named by who sent it: unique within a drill."""

    producer: int
    sequence: int


@dataclass(frozen=True, slots=True)
class QueueId:
    """One queue, with the replica group that it lives in."""

    topic: str
    group: str
    queue: int


@dataclass(frozen=True, slots=True)
class Stored:
    """One record as it was read back."""

    offset: int
    value: Value | None
    """None when the body does not prove itself: damaged or not ours."""


def make_body(value: Value, size: int = BODY_BYTES) -> bytes:
    """The body of a drill message, `size` bytes long."""
    filler = bytes(size - _HEAD.size)
    crc = zlib.crc32(b"%d/%d" % (value.producer, value.sequence))
    return _HEAD.pack(_MAGIC, value.producer, value.sequence, crc) + filler


def read_body(body: bytes) -> Value | None:
    """The value that a body claims and proves, or None."""
    if len(body) < _HEAD.size:
        return None
    magic, producer, sequence, crc = _HEAD.unpack_from(body)
    if magic != _MAGIC or crc != zlib.crc32(b"%d/%d" % (producer, sequence)) or any(body[_HEAD.size :]):
        return None
    return Value(producer, sequence)


@dataclass(slots=True)
class History:
    """Everything that happened, as the clients saw it."""

    sends: dict[Value, tuple[QueueId, Outcome]] = field(default_factory=dict)
    """Target and outcome of every send that was begun; UNKNOWN until it ends."""
    reads: dict[tuple[str, QueueId], list[Stored]] = field(default_factory=lambda: defaultdict(list))
    """(node, queue) to all its records from offset 0 to its end."""
    told_offsets: dict[tuple[str, QueueId], list[int]] = field(default_factory=lambda: defaultdict(list))
    """(consumer group, queue) to the committed offsets that the cluster told, in the order of the answers."""
    deliveries: dict[Value, int] = field(default_factory=dict)
    """How often a value reached a consumer of the drill."""
    client_errors: int = 0
    short: int = 0
    """Sends that a master stored without the slaves it should have waited for."""
    acked_at: dict[Value, float] = field(default_factory=dict)
    """When the acknowledgement came (`trio.current_time()`)."""
    blows_at: list[float] = field(default_factory=list)
    """When each round struck."""

    def begin(self, value: Value, queue: QueueId) -> None:
        self.sends[value] = (queue, Outcome.UNKNOWN)

    def end(self, value: Value, outcome: Outcome, at: float = 0.0) -> None:
        self.sends[value] = (self.sends[value][0], outcome)
        if outcome is Outcome.OK:
            self.acked_at[value] = at

    def delivered(self, value: Value) -> None:
        self.deliveries[value] = self.deliveries.get(value, 0) + 1

    def queues(self) -> Iterator[QueueId]:
        """Every queue that was read back, once each."""
        yield from dict.fromkeys(queue for _, queue in self.reads)
