"""Pop: the texts by which brokers and consumers name messages that are out. RocketMQ's formats, to the letter.

A consumer acknowledges with a *handle* (`extraInfo`, property POP_CK): eight fields with single blanks between. Brokers
do not send handles but, per answer, what consumers build them from: for each queue where its messages begin
(`startOffsetInfo`) and which they are (`msgOffsetInfo`), and for ordered consumers how often each was given out before
(`orderCountInfo`). Only messages of retry topics carry their handle already, since their topic is replaced by the
original one.

Source: RocketMQ 5's ExtraInfoUtil and KeyBuilder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trimq.errors import ProtocolError
from trimq.message.names import RETRY_PREFIX

__all__ = [
    "ANY_QUEUE",
    "FIRST_POP_TIME",
    "NORMAL",
    "ORDER_REVIVE_QUEUE",
    "POP_CK",
    "RETRY",
    "RETRY_V2",
    "Handle",
    "format_counts",
    "format_offsets",
    "format_starts",
    "parse_counts",
    "parse_offsets",
    "parse_starts",
    "pop_retry_topic",
    "real_topic",
    "retry_flag",
]

POP_CK: Final = "POP_CK"
FIRST_POP_TIME: Final = "1ST_POP_TIME"
ORDER_REVIVE_QUEUE: Final = 999
"""Instead of a revive queue: the message belongs to an ordered consumer."""
ANY_QUEUE: Final = -1

NORMAL: Final = 0
RETRY: Final = 1
"""The message lies in `%RETRY%group_topic`."""
RETRY_V2: Final = 2
"""It lies in `%RETRY%group+topic`, a newer naming that is off by default and that we only understand."""

QueueKey = tuple[int, int]
"""Retry flag, queue number."""


def pop_retry_topic(topic: str, group: str) -> str:
    """Where messages of a topic come back that a pop consumer group did not acknowledge in time."""
    return f"{RETRY_PREFIX}{group}_{topic}"


def retry_flag(topic: str) -> int:
    """What stands for the topic in handles."""
    if not topic.startswith(RETRY_PREFIX):
        return NORMAL
    return RETRY_V2 if "+" in topic else RETRY


def real_topic(topic: str, group: str, flag: int) -> str:
    """The topic in which a message lies that a consumer knows as one of `topic`. Raises `ProtocolError`."""
    if flag == NORMAL:
        return topic
    if flag == RETRY:
        return pop_retry_topic(topic, group)
    if flag == RETRY_V2:
        return f"{RETRY_PREFIX}{group}+{topic}"
    raise ProtocolError(f"retry flag {flag!r} is none of 0, 1, 2")


@dataclass(frozen=True, slots=True)
class Handle:
    """The right to acknowledge one message, once."""

    start: int
    """Where the messages of this queue began in the answer that brought it."""
    pop_ms: int
    invisible_ms: int
    revive_queue: int
    retry: int
    broker: str
    queue: int
    offset: int

    def __str__(self) -> str:
        return (
            f"{self.start} {self.pop_ms} {self.invisible_ms} {self.revive_queue} {self.retry}"
            f" {self.broker} {self.queue} {self.offset}"
        )

    @property
    def ordered(self) -> bool:
        return self.revive_queue == ORDER_REVIVE_QUEUE

    @classmethod
    def parse(cls, text: str) -> Handle:
        """Old clients leave out the last field: it is -1 then. Raises `ProtocolError`."""
        fields = text.split(" ")
        try:
            start, pop_ms, invisible_ms, revive, retry = map(int, fields[:5])
            broker, queue = fields[5], int(fields[6])
            offset = int(fields[7]) if len(fields) > 7 else -1
        except (ValueError, IndexError):
            raise ProtocolError(f"extraInfo {text[:120]!r} is no pop handle") from None
        return cls(start, pop_ms, invisible_ms, revive, retry, broker, queue, offset)


def format_starts(starts: Iterable[tuple[int, int, int]]) -> str:
    """`startOffsetInfo` from (retry flag, queue, first offset)."""
    return ";".join(f"{flag} {queue} {start}" for flag, queue, start in starts)


def format_offsets(offsets: Iterable[tuple[int, int, Sequence[int]]]) -> str:
    """`msgOffsetInfo` from (retry flag, queue, offsets)."""
    return ";".join(f"{flag} {queue} {','.join(map(str, some))}" for flag, queue, some in offsets)


def format_counts(rows: Iterable[tuple[int, int, Mapping[int, int], int]]) -> str:
    """`orderCountInfo` from (retry flag, queue, offset → times given out before, the least of all its messages)."""
    parts: list[str] = []
    for flag, queue, counts, least in rows:
        parts += [f"{flag} qo{queue}%{offset} {count}" for offset, count in counts.items()]
        parts.append(f"{flag} {queue} {least}")  # old clients look for the queue only
    return ";".join(parts)


def parse_starts(text: str) -> dict[QueueKey, int]:
    """Raises `ProtocolError`, as the others do."""
    return {(flag, _int(key)): _int(value) for flag, key, value in _rows(text)}


def parse_offsets(text: str) -> dict[QueueKey, list[int]]:
    return {(flag, _int(key)): [_int(each) for each in value.split(",")] for flag, key, value in _rows(text)}


def parse_counts(text: str) -> dict[tuple[int, int, int], int]:
    """(retry flag, queue, offset) → count; offset -1 stands for the whole queue."""
    found: dict[tuple[int, int, int], int] = {}
    for flag, key, value in _rows(text):
        if key.startswith("qo"):
            queue, _, offset = key[2:].partition("%")
            found[flag, _int(queue), _int(offset)] = _int(value)
        else:
            found[flag, _int(key), -1] = _int(value)
    return found


def _rows(text: str) -> Iterable[tuple[int, str, str]]:
    for row in text.split(";") if text else ():
        fields = row.split(" ")
        if len(fields) != 3:
            raise ProtocolError(f"pop answer: {row[:80]!r} does not have three fields")
        yield _int(fields[0]), fields[1], fields[2]


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ProtocolError(f"pop answer: {text[:40]!r} is no number") from None
