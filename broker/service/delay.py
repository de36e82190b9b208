"""What a delayed message looks like: for those who send one into the schedule topic and for who delivers it."""

from __future__ import annotations

from broker.replication.requests import PutMessage, Refused
from trimq.message import properties
from trimq.message.record import Record
from trimq.message.sysflag import HOST_MASK
from trimq.wire.codes import ResponseCode

__all__ = ["DELAY_TOPIC", "PROPERTIES_MAX", "copy_of", "delayed", "real_message"]

DELAY_TOPIC = "SCHEDULE_TOPIC_XXXX"
"""One queue per delay level; level 1 is queue 0."""
PROPERTIES_MAX = 32_767


def delayed(message: PutMessage, found: dict[str, str], level: int, topic: str, queue: int) -> None:
    """Turn `message`, whose properties are `found`, into one that waits and remembers where it goes."""
    found["DELAY"] = str(level)
    found["REAL_TOPIC"] = topic
    found["REAL_QID"] = str(queue)
    message.properties = properties.format(found).encode()
    if len(message.properties) > PROPERTIES_MAX:
        raise Refused(
            ResponseCode.MESSAGE_ILLEGAL, f"properties of {len(message.properties)} bytes are over {PROPERTIES_MAX}"
        )
    message.topic = DELAY_TOPIC.encode()
    message.queue_id = level - 1


def copy_of(record: Record) -> PutMessage:
    """A message of the broker's own with the content and the origin of a stored one."""
    return PutMessage(
        record.topic,
        record.queue_id,
        bytes(record.body),
        record.properties,
        record.flag,
        record.sys_flag & ~HOST_MASK,
        record.born_ms,
        record.born_host,
        record.reconsume_times,
        own=True,
    )


def real_message(record: Record) -> PutMessage | None:
    """The message that a waiting record becomes: real topic and queue, properties as they are. None: it names none."""
    topic = properties.get(record.properties, b"REAL_TOPIC")
    queue = properties.get(record.properties, b"REAL_QID")
    if not topic:
        return None
    message = copy_of(record)
    message.topic = topic
    message.queue_id = int(queue) if queue and queue.isdigit() else 0
    return message
