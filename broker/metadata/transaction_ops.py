"""Ops 16 to 18: the life of a half message.

A half message is a record of the half topic; what the log says *about* it are these ops. Op 16 comes in the entry of
the half itself, op 17 in the entry of the visible message (commit), of the given-up copy, or alone (rollback). So a
transaction is decided exactly when one entry is committed, and no entry decides half of it.

Halves are named by their offset in the half queue, which is what clients name them by, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from broker.metadata.op_fields import QUEUE_MAX, Raw, integer

__all__ = ["End", "Half", "HalfChecked", "HalfEnd"]


class End(IntEnum):
    """How a half message ended. The first two are RocketMQ's transaction bits."""

    COMMIT = 8
    ROLLBACK = 12
    GIVEN_UP = 0
    """Nobody could say: it lies in TRANS_CHECK_MAX_TIME_TOPIC."""


@dataclass(frozen=True, slots=True)
class Half:
    """A half message begins to wait for its end."""

    code: ClassVar[int] = 16
    offset: int
    """In the half queue."""
    position: int
    immunity_ms: int
    """Nobody asks for its state before this age; 0: the broker's `transactionTimeOut`."""

    def fields(self) -> list[Raw]:
        return [self.offset, self.position, self.immunity_ms]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> Half:
        offset, position, immunity_ms = raw
        return cls(integer(offset), integer(position), integer(immunity_ms))


@dataclass(frozen=True, slots=True)
class HalfEnd:
    """A half message is decided. The last three say where the message that came of it lies (-1: none did)."""

    code: ClassVar[int] = 17
    offset: int
    end: End
    queue: int = 0
    queue_offset: int = -1
    position: int = -1

    def fields(self) -> list[Raw]:
        return [self.offset, int(self.end), self.queue, self.queue_offset, self.position]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> HalfEnd:
        offset, end, queue, queue_offset, position = raw
        return cls(
            integer(offset), End(end), integer(queue, 0, QUEUE_MAX), integer(queue_offset, -1), integer(position, -1)
        )


@dataclass(frozen=True, slots=True)
class HalfChecked:
    """Producers are asked about these half messages now; each has been asked once more."""

    code: ClassVar[int] = 18
    offsets: Sequence[int]

    def fields(self) -> list[Raw]:
        return [list(self.offsets)]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> HalfChecked:
        (offsets,) = raw
        return cls([integer(each) for each in offsets])
