"""Ops 32 to 36: what pop consumers hold.

Pop hands out messages one by one instead of queues: whoever asks gets the next ones, and they are invisible to others
until they are acknowledged or their time is up. All of that is in the log before anybody is told of it (docs/decisions,
"pop state is in the log"), so the handles that consumers hold, and what they acknowledged, are the same under every
leader.

Times are milliseconds of the leader's log time. Queues are named by topic id and number, messages by queue offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = ["OrderTake", "PopDone", "PopHide", "PopOp", "PopTake", "RequestMode"]

_I64_MAX = (1 << 63) - 1
_QUEUE_MAX = 0xFFFF

Raw = Any  # what CBOR decodes to, before it is checked


@dataclass(frozen=True, slots=True)
class PopTake:
    """Messages become invisible until `until_ms`; everything below `next` was taken or did not match.

    Without any message it only says where this consumer group begins in this queue, or what it skipped.
    """

    code: ClassVar[int] = 32
    gid: int
    tid: int
    queue: int
    next: int
    pop_ms: int
    """With the offset this is the handle of each of these messages."""
    until_ms: int
    offsets: Sequence[int]
    """Ascending."""

    def fields(self) -> list[Raw]:
        return [self.gid, self.tid, self.queue, self.next, self.pop_ms, self.until_ms, list(self.offsets)]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> PopTake:
        gid, tid, queue, following, pop_ms, until_ms, offsets = raw
        return cls(
            _int(gid),
            _int(tid),
            _int(queue, _QUEUE_MAX),
            _int(following),
            _int(pop_ms),
            _int(until_ms),
            [_int(each) for each in offsets],
        )


@dataclass(frozen=True, slots=True)
class PopDone:
    """Messages are acknowledged, or their copies for another attempt are in this entry.

    Rows are `(gid, tid, queue, offsets)`.
    """

    code: ClassVar[int] = 33
    rows: Sequence[tuple[int, int, int, Sequence[int]]]

    def fields(self) -> list[Raw]:
        return [[[gid, tid, queue, list(offsets)] for gid, tid, queue, offsets in self.rows]]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> PopDone:
        (rows,) = raw
        return cls([(_int(g), _int(t), _int(q, _QUEUE_MAX), [_int(each) for each in some]) for g, t, q, some in rows])


@dataclass(frozen=True, slots=True)
class PopHide:
    """A message that was taken stays invisible until another time, under a new handle."""

    code: ClassVar[int] = 34
    gid: int
    tid: int
    queue: int
    offset: int
    pop_ms: int
    until_ms: int

    def fields(self) -> list[Raw]:
        return [self.gid, self.tid, self.queue, self.offset, self.pop_ms, self.until_ms]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> PopHide:
        gid, tid, queue, offset, pop_ms, until_ms = raw
        return cls(_int(gid), _int(tid), _int(queue, _QUEUE_MAX), _int(offset), _int(pop_ms), _int(until_ms))


@dataclass(frozen=True, slots=True)
class OrderTake:
    """An ordered consumer took the next messages of a queue: it gives no others until these are done or visible again.

    Without any message: everything below `next` did not match, the group's offset moves there.
    """

    code: ClassVar[int] = 35
    gid: int
    tid: int
    queue: int
    next: int
    pop_ms: int
    until_ms: int
    attempt: str
    """Whoever asks again under the same id gets the same messages again ("" never does)."""
    offsets: Sequence[int]

    def fields(self) -> list[Raw]:
        return [
            self.gid,
            self.tid,
            self.queue,
            self.next,
            self.pop_ms,
            self.until_ms,
            self.attempt,
            list(self.offsets),
        ]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> OrderTake:
        gid, tid, queue, following, pop_ms, until_ms, attempt, offsets = raw
        return cls(
            _int(gid),
            _int(tid),
            _int(queue, _QUEUE_MAX),
            _int(following),
            _int(pop_ms),
            _int(until_ms),
            _str(attempt),
            [_int(each) for each in offsets],
        )


@dataclass(frozen=True, slots=True)
class RequestMode:
    """How the members of a consumer group read a topic, when they leave that to the broker: PULL or POP."""

    code: ClassVar[int] = 36
    topic: str
    group: str
    mode: str
    share: int
    """RocketMQ's popShareQueueNum: with how many neighbours a member shares its queues; 0: all with all."""

    def fields(self) -> list[Raw]:
        return [self.topic, self.group, self.mode, self.share]

    @classmethod
    def read(cls, raw: Sequence[Raw]) -> RequestMode:
        topic, group, mode, share = raw
        return cls(_str(topic), _str(group), _str(mode), _int(share))


PopOp = PopTake | PopDone | PopHide | OrderTake | RequestMode


def _int(value: Raw, high: int = _I64_MAX) -> int:
    if type(value) is not int or not 0 <= value <= high:
        raise ValueError(f"{value!r:.40} is not an integer of 0..{high}")
    return value


def _str(value: Raw) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r:.40} is not a text")
    return value
