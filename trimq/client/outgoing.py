"""From a `Message` to bytes: properties, compression, batch elements, and the header of a send request.

Layouts: message properties are `name 0x01 value` joined by 0x02; a batch body is a run of elements, each 20 bytes of
lengths and flags, body, properties. Both are RocketMQ's (MessageDecoder). Everything that a caller can get wrong is
refused here, before a message takes a place in any queue.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from trimq.client.model import Message, to_ms
from trimq.client.telemetry import carried
from trimq.errors import BadRequest
from trimq.message.batch import ELEMENT_OVERHEAD, BatchElement, encode_batch
from trimq.message.compression import compress
from trimq.message.names import check_topic
from trimq.message.properties import MAX_BYTES, RESERVED, format
from trimq.message.sysflag import TRANSACTION_PREPARED
from trimq.wire.body.atomic import AtomicMessage, encode_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trimq.client.lane import Request, Slot

__all__ = [
    "BODY_BYTES_MAX",
    "DELAY_LEVELS_S",
    "Outgoing",
    "batch_body",
    "delay_level",
    "is_postponed",
    "is_timed",
    "prepare",
    "send_fields",
]

BODY_BYTES_MAX = 4 * 1024 * 1024
"""RocketMQ's maxMessageSize."""

BATCHABLE_BYTES_MAX = 64 * 1024
"""Larger messages gain nothing from sharing a request."""

DELAY_LEVELS_S = (1, 5, 10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200)
"""RocketMQ's default messageDelayLevel: level 1 is one second."""

DEFAULT_TOPIC_QUEUES = 4
"""Queues per group that a topic gets when a send creates it (RocketMQ's defaultTopicQueueNums of clients)."""


class Outgoing:
    """A message as it goes over the wire."""

    __slots__ = ("batchable", "body", "message", "properties", "size", "sys_flag")

    def __init__(self, message: Message, body: bytes, properties: str, sys_flag: int) -> None:
        self.message = message
        self.body = body
        self.properties = properties
        self.sys_flag = sys_flag
        self.size = len(body) + len(properties) + ELEMENT_OVERHEAD
        self.batchable = (
            not sys_flag and self.size <= BATCHABLE_BYTES_MAX and not is_postponed(message) and not message._carried
        )


def prepare(message: Message, compress_over: int, method: str = "zlib", *, half_of: str = "") -> Outgoing:
    """Check and encode one message; `half_of`: as a half message of this producer group.

    Raises `BadRequest` (`BadName` for the topic).
    """
    body = message.body
    if not isinstance(body, bytes):
        raise BadRequest(f"the body is {type(body).__name__}, not bytes", advice="encode it, for example .encode()")
    properties = _properties(message)
    sys_flag = 0
    if half_of:
        properties += f"\x02TRAN_MSG\x01true\x02PGROUP\x01{half_of}"
        sys_flag = TRANSACTION_PREPARED
    body, bits = pack_body(body, compress_over, method)
    return Outgoing(message, body, properties, sys_flag | bits)


def prepare_stored(properties: Mapping[str, str]) -> str:
    """The property string of a message that was stored before and is sent again. Raises `BadRequest`."""
    text = format(properties)
    if len(text.encode()) > MAX_BYTES:
        raise BadRequest(f"properties, tag and keys need more than {MAX_BYTES} bytes")
    return text


def pack_body(body: bytes, compress_over: int, method: str = "zlib") -> tuple[bytes, int]:
    """The body as it goes over the wire, and the flag bits that say how."""
    if len(body) > BODY_BYTES_MAX:
        raise BadRequest(
            f"the body has {len(body):,} bytes, more than {BODY_BYTES_MAX:,}",
            advice="send a reference to the data, or split it",
        )
    if len(body) >= compress_over:
        packed, bits = compress(body, method)
        if len(packed) < len(body):
            return packed, bits
    return body, 0


def _properties(message: Message) -> str:
    text = f"UNIQ_KEY\x01{message.id}\x02WAIT\x01true"
    if message.tag:
        _plain("tag", message.tag)
        if "|" in message.tag:
            raise BadRequest(f"the tag {message.tag!r} contains '|', which separates tags in filters")
        text += f"\x02TAGS\x01{message.tag}"
    if message.keys:
        text += f"\x02KEYS\x01{_keys(message.keys)}"
    if message.order_key:
        _plain("order_key", message.order_key)
        text += f"\x02__SHARDINGKEY\x01{message.order_key}"
    if is_postponed(message):
        text += _timing(message)
    for name, value in message.properties.items():
        if name in RESERVED:
            raise BadRequest(f"the property name {name!r} is reserved", advice="use the fields of Message")
        if not name or not value:
            raise BadRequest(f"property {name!r}={value!r}: RocketMQ drops empty names and values")
        _plain("property", name)
        _plain("property", value)
        text += f"\x02{name}\x01{value}"
    for name, value in carried().items():
        if name not in message.properties:
            text += f"\x02{name}\x01{value}"
    for name, value in message._carried.items():
        text += f"\x02{name}\x01{value}"
    if len(text) > MAX_BYTES // 3 and len(text.encode()) > MAX_BYTES:
        raise BadRequest(f"properties, tag and keys need more than {MAX_BYTES} bytes")
    return text


def _keys(keys: Sequence[str]) -> str:
    if isinstance(keys, str):
        keys = (keys,)
    for key in keys:
        _plain("key", key)
        if not key or " " in key:
            raise BadRequest(f"the key {key!r} is empty or has a space in it: keys are stored separated by spaces")
    return " ".join(keys)


def _plain(what: str, text: str) -> None:
    if "\x01" in text or "\x02" in text:
        raise BadRequest(f"the {what} {text!r} contains a character 1 or 2, which separate properties")


def is_postponed(message: Message) -> bool:
    """Whether it is to be delivered later than now."""
    return message.delay is not None or message.at is not None or message.delay_level is not None


def is_timed(message: Message) -> bool:
    """Whether it is to be delivered at a time of its own, which RocketMQ knows from 5.0 on."""
    return message.delay is not None or message.at is not None


def _timing(message: Message) -> str:
    if (message.delay is not None) + (message.at is not None) + (message.delay_level is not None) > 1:
        raise BadRequest("a message has either a delay, a time, or a delay level")
    if message.delay_level is not None:
        if message.delay_level < 0:
            raise BadRequest(f"delay_level={message.delay_level}: levels begin at 1")
        return f"\x02DELAY\x01{message.delay_level}" if message.delay_level else ""
    if message.at is not None:
        return f"\x02TIMER_DELIVER_MS\x01{to_ms(message.at)}"
    assert message.delay is not None
    ms = round(message.delay.total_seconds() * 1000)
    return f"\x02TIMER_DELAY_MS\x01{ms}" if ms > 0 else ""


def delay_level(delay: timedelta) -> int:
    """The smallest of RocketMQ's default delay levels that is at least `delay`; 0 for no delay. Above two hours:
    refused."""
    seconds = delay.total_seconds()
    if seconds <= 0:
        return 0
    for level, length in enumerate(DELAY_LEVELS_S, 1):
        if seconds <= length:
            return level
    raise BadRequest(f"a delay of {delay} is longer than the longest delay level, 2 hours")


def batch_body(messages: Sequence[Outgoing]) -> bytes:
    """The body of a batch request: one element per message."""
    return encode_batch(
        BatchElement(outgoing.body, outgoing.properties.encode(), outgoing.message.flag) for outgoing in messages
    )


def send_fields(request: Request, producer_group: str, born_ms: int) -> dict[str, str]:
    """The ext fields of a send (keys of SendMessageRequestHeaderV2), without the producer's sequence."""
    queue = request.queue
    head = request.slots[0].message
    batch = len(request.slots) > 1
    return {
        "a": producer_group,
        "b": queue.topic,
        "c": "TBW102",
        "d": str(DEFAULT_TOPIC_QUEUES),
        "e": str(queue.id),
        "f": str(head.sys_flag),
        "g": str(born_ms),
        "h": str(head.message.flag),
        "i": "WAIT\x01true" if batch else head.properties,
        "j": "0",
        "k": "false",
        "m": "true" if batch else "false",
        "n": queue.group,
    }


def atomic_body(slots: Sequence[Slot]) -> bytes:
    """The body of an atomic send: each message with its own topic and queue."""
    found: list[AtomicMessage] = []
    for slot in slots:
        assert slot.target is not None
        each = slot.message
        found.append(
            AtomicMessage(
                slot.target.topic, slot.target.id, each.sys_flag, each.message.flag, each.properties.encode(), each.body
            )
        )
    return encode_atomic(found)


def atomic_fields(request: Request, producer_group: str, born_ms: int) -> dict[str, str]:
    """The ext fields of an atomic send, without the producer's sequence."""
    return {"producerGroup": producer_group, "bornTimestamp": str(born_ms), "bname": request.queue.group}


def check_topic_name(topic: str) -> None:
    """Raise `BadName` for a topic that no broker would take."""
    check_topic(topic)
