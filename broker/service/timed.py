"""What a timed message looks like: when it is stored, moved on, delivered. Pure functions."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from broker.replication.requests import PutMessage, Refused
from broker.service.delay import PROPERTIES_MAX, copy_of
from broker.service.wheel import TIMER_TOPIC, Wheel
from trimq.message import properties
from trimq.message.record import Record
from trimq.wire.codes import ResponseCode

__all__ = ["TIMER_KEYS", "due_of", "make_handle", "real_timed", "time", "wanted_due"]

TIMER_KEYS = ("TIMER_DELAY_SEC", "TIMER_DELAY_MS", "TIMER_DELIVER_MS", "__STARTDELIVERTIME")
"""The first that is there counts. The last is the spelling of Alibaba's cloud clients for TIMER_DELIVER_MS."""


def wanted_due(found: Mapping[str, str], now_ms: int) -> int | None:
    """When the message shall be delivered by its properties; None: they say nothing. Raises `Refused`."""
    for key in TIMER_KEYS:
        text = found.get(key)
        if text is None:
            continue
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, f"{key}={text[:40]!r} is no number of {_UNITS[key]}")
        value = int(text)
        if key == "TIMER_DELAY_SEC":
            return now_ms + value * 1000
        return now_ms + value if key == "TIMER_DELAY_MS" else value
    return None


_UNITS = {
    "TIMER_DELAY_SEC": "seconds",
    "TIMER_DELAY_MS": "milliseconds",
    "TIMER_DELIVER_MS": "milliseconds since 1970",
    "__STARTDELIVERTIME": "milliseconds since 1970",
}


def time(message: PutMessage, found: dict[str, str], due_ms: int, now_ms: int, wheel: Wheel, queue: int) -> None:
    """Turn `message`, whose properties are `found`, into one that waits for `due_ms` and then goes to `queue`."""
    found["TIMER_OUT_MS"] = str(due_ms)
    found[properties.REAL_TOPIC] = message.topic.decode()
    found[properties.REAL_QID] = str(queue)
    message.properties = properties.format(found).encode()
    if len(message.properties) > PROPERTIES_MAX:
        raise Refused(
            ResponseCode.MESSAGE_ILLEGAL, f"properties of {len(message.properties)} bytes are over {PROPERTIES_MAX}"
        )
    message.topic = TIMER_TOPIC.encode()
    message.queue_id = wheel.queue_for(due_ms, now_ms)
    message.answer_queue = queue


def due_of(record: Record) -> int:
    """When a stored timed message is due."""
    text = properties.get(record.properties, b"TIMER_OUT_MS")
    return int(text) if text is not None and text.isdigit() else 0


def real_timed(record: Record, now_ms: int) -> PutMessage | None:
    """The message that a timed one becomes in its real topic. None: it names none."""
    topic = properties.get(record.properties, b"REAL_TOPIC")
    queue = properties.get(record.properties, b"REAL_QID")
    if not topic:
        return None
    message = copy_of(record)
    message.topic = topic
    message.queue_id = int(queue) if queue and queue.isdigit() else 0
    raw = properties.without(record.properties, b"REAL_TOPIC", b"REAL_QID")
    stamped = properties.append(raw, b"TIMER_DEQUEUE_MS", str(now_ms).encode())
    message.properties = stamped if len(stamped) <= PROPERTIES_MAX else raw
    return message


def rolled(record: Record, now_ms: int, wheel: Wheel) -> PutMessage:
    """The same message placed anew: in its slot when that is near, else in the far queue once more."""
    message = copy_of(record)
    text = properties.get(record.properties, b"TIMER_ROLL_TIMES")
    times = int(text) + 1 if text is not None and text.isdigit() else 1
    raw = properties.without(record.properties, b"TIMER_ROLL_TIMES")
    stamped = properties.append(raw, b"TIMER_ROLL_TIMES", str(times).encode())
    message.properties = stamped if len(stamped) <= PROPERTIES_MAX else raw
    message.queue_id = wheel.queue_for(due_of(record), now_ms)
    return message


def make_handle(topic: str, broker_name: str, due_ms: int, unique: str) -> str:
    """RocketMQ's recall handle: what a client gives back to cancel the message (code 370)."""
    return base64.urlsafe_b64encode(f"v1 {topic} {broker_name} {due_ms} {unique}".encode()).decode()


def read_handle(text: str) -> tuple[str, str, int, str]:
    """(topic, brokerName, due time, unique id). Raises `ValueError`."""
    parts = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().split(" ")
    if len(parts) != 5 or parts[0] != "v1":
        raise ValueError("it has not five parts, the first being v1")
    return parts[1], parts[2], int(parts[3]), parts[4]
