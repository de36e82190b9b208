"""Stored once: is this send a repeat of one that is in the log, or on its way there?

There are two ways to know. Our own client numbers its sends: `broker.metadata.producers.judge` decides by the number
alone. Everyone else is known by the message's unique id: the id window finds a *suspect*, and this module says whether
the suspect's record really is the same message. A hash of 64 bits proves nothing, and an application may send one
`Message` object twice on purpose with another body.

Compared are topic, body, properties, flag and reconsume count. Not compared is what a client sets anew for each
attempt: born time, queue, host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from trimq.errors import RecordError
from trimq.message.properties import append, without
from trimq.message.properties import get as get_property
from trimq.message.record import Buffer, Record, unpack_record

__all__ = ["UNIQ_KEY", "Ids", "KeyLookup", "LogView", "Place", "identified", "place_of", "resembles", "same_id"]

UNIQ_KEY = b"UNIQ_KEY"
_PROPERTIES_MAX = 32767


class LogView(Protocol):
    """What the intake reads of the log (the store's CommitLog)."""

    @property
    def lineage(self) -> int:
        """The 32-bit tag of the group's lineage."""
        ...

    @property
    def segment_bytes(self) -> int: ...

    @property
    def first_position(self) -> int:
        """Everything below has expired."""
        ...

    def cached_bytes(self, position: int, size: int) -> memoryview | None:
        """Bytes of the log, when they are in memory."""
        ...

    async def read_record(self, position: int) -> bytes:
        """The record that begins at `position`."""
        ...


class Ids(Protocol):
    """Makes unique ids, 32 hex digits each (`trimq.message.ids.IdSource`)."""

    def new_id(self) -> str:
        """One that was never given before."""
        ...

    def new_ids(self, count: int) -> list[str]:
        """So many of them."""
        ...


class KeyLookup(Protocol):
    """What the intake asks the key index (the store's)."""

    async def lookup(self, tid: int, key: bytes, begin_ms: int, end_ms: int, limit: int) -> Sequence[int]:
        """Positions of records that may have this key, stored between the two times."""
        ...


class Place(NamedTuple):
    """Where a message is stored. Queue offset −1: its record has expired."""

    queue_id: int
    queue_offset: int
    position: int


def resembles(raw: Buffer, *, topic: bytes, body: Buffer, properties: bytes, flag: int, reconsume_times: int) -> bool:
    """Whether the record in `raw` is the message that is being sent."""
    try:
        record = unpack_record(raw, check_body=False)
    except RecordError:
        return False
    return (
        record.topic == topic
        and record.reconsume_times == reconsume_times
        and record.flag == flag
        and (record.properties == properties or _lasting(record.properties) == _lasting(properties))
        and record.body == body
    )


def _lasting(properties: bytes) -> bytes:
    """Without what the broker decides anew for each attempt: a repeated delayed or half message is still the same."""
    return without(properties, b"REAL_QID", b"TIMER_OUT_MS")


def same_id(raw: Buffer, topic: bytes, uniq_key: bytes) -> Record | None:
    """The record in `raw` when it is this topic's message with this id: what the key index found by hash alone."""
    try:
        record = unpack_record(raw, check_body=False)
    except RecordError:
        return None
    return record if record.topic == topic and get_property(record.properties, UNIQ_KEY) == uniq_key else None


def place_of(raw: Buffer) -> Place:
    """Where a record says that it lies."""
    record = unpack_record(raw, check_body=False)
    return Place(record.queue_id, record.queue_offset, record.position)


def identified(properties: bytes, new_id: str) -> bytes:
    """`properties` with a unique id of ours, for clients that set none; unchanged when there is no room for one."""
    longer = append(properties, UNIQ_KEY, new_id.encode())
    return longer if len(longer) <= _PROPERTIES_MAX else properties
