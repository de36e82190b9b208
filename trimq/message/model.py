"""Values that travel between the parts of a client: a queue, and a message as it came back from a broker."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

from trimq.message import properties as props
from trimq.message.compression import MAX_EXPANDED_BYTES, decompress
from trimq.message.ids import host_text, offset_message_id
from trimq.message.record import Buffer, Record, unpack_records

__all__ = ["MessageExt", "MessageQueue", "decode_messages"]


class MessageQueue(NamedTuple):
    """One queue of a topic in one replica group. Sorts by topic, group, number: the order in which queues are shared
    out, which all clients of a consumer group must agree on."""

    topic: str
    broker_name: str
    queue_id: int


@dataclass(frozen=True, kw_only=True)
class MessageExt:
    """A message as stored (Java: MessageExt). The body is expanded already."""

    topic: str
    queue_id: int
    queue_offset: int
    position: int
    """Where it lies in its group's log."""
    body: bytes
    properties: dict[str, str]
    flag: int
    sys_flag: int
    born_ms: int
    """Wall clock of the producer."""
    born_host: bytes
    store_ms: int
    """Wall clock of the broker."""
    store_host: bytes
    reconsume_times: int
    prepared_offset: int
    stored_bytes: int
    """Size of its record."""

    @classmethod
    def from_record(cls, record: Record, max_body: int = MAX_EXPANDED_BYTES) -> Self:
        """Raises `RecordError` when a compressed body is damaged or too large."""
        return cls(
            topic=record.topic.decode("utf-8", "replace"),
            queue_id=record.queue_id,
            queue_offset=record.queue_offset,
            position=record.position,
            body=decompress(record.body, record.sys_flag, max_body),
            properties=props.parse(record.properties),
            flag=record.flag,
            sys_flag=record.sys_flag,
            born_ms=record.born_ms,
            born_host=record.born_host,
            store_ms=record.store_ms,
            store_host=record.store_host,
            reconsume_times=record.reconsume_times,
            prepared_offset=record.prepared_offset,
            stored_bytes=record.size,
        )

    @cached_property
    def offset_message_id(self) -> str:
        """Where it lies, as an id: store host and position."""
        return offset_message_id(self.store_host, self.position)

    @property
    def message_id(self) -> str:
        """The producer's unique id; the offset id when it gave none."""
        return self.properties.get(props.UNIQ_KEY) or self.offset_message_id

    @property
    def tag(self) -> str | None:
        return self.properties.get(props.TAGS)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(word for word in self.properties.get(props.KEYS, "").split(" ") if word)

    @property
    def born_address(self) -> str:
        return host_text(self.born_host)

    @property
    def store_address(self) -> str:
        return host_text(self.store_host)


def decode_messages(body: Buffer, max_body: int = MAX_EXPANDED_BYTES) -> list[MessageExt]:
    """The messages of a pull, query or view answer. Raises `RecordError`."""
    return [MessageExt.from_record(record, max_body) for record in unpack_records(body)]
