"""What a half message looks like: when it is stored, asked about, committed, given up.

A half message is stored as a plain message of the half topic that remembers where it goes, so nobody can consume it.
Committing makes a second record in its real topic with the same content; its property string is kept whole, as
RocketMQ does. Pure functions, for whoever sends, ends or checks.
"""

from __future__ import annotations

from broker.metadata.transaction_ops import Half
from broker.replication.requests import PutMessage, Refused
from broker.service.delay import PROPERTIES_MAX, copy_of
from trimq.message import properties
from trimq.message.record import Record, pack_record
from trimq.message.sysflag import TRANSACTION_COMMIT, TRANSACTION_MASK
from trimq.wire.codes import ResponseCode

__all__ = [
    "CHECK_TIMES",
    "GIVEN_UP_TOPIC",
    "HALF_TOPIC",
    "IMMUNITY",
    "OP_TOPIC",
    "committed",
    "given_up",
    "halve",
    "shown",
]

HALF_TOPIC = "RMQ_SYS_TRANS_HALF_TOPIC"
OP_TOPIC = "RMQ_SYS_TRANS_OP_HALF_TOPIC"
"""RocketMQ's second queue of marks. It exists for tools that look for it and stays empty: ends are ops of the log."""
GIVEN_UP_TOPIC = "TRANS_CHECK_MAX_TIME_TOPIC"
IMMUNITY = "CHECK_IMMUNITY_TIME_IN_SECONDS"
CHECK_TIMES = "TRANSACTION_CHECK_TIMES"
IMMUNITY_S_MAX = 3 * 86_400
"""The log is kept from the oldest undecided half message on, so nobody may ask for silence longer than this."""


def halve(message: PutMessage, found: dict[str, str], queue: int) -> None:
    """Turn `message`, whose properties are `found`, into a half message for `queue` of its topic. Raises `Refused`."""
    if not found.get(properties.PGROUP):
        found[properties.PGROUP] = message.producer_group
    immunity_ms = _immunity_ms(found.get(IMMUNITY, ""))
    found[properties.REAL_TOPIC] = message.topic.decode()
    found[properties.REAL_QID] = str(queue)
    message.transaction_id = found.get(properties.UNIQ_KEY, "")
    message.properties = properties.format(found).encode()
    if len(message.properties) > PROPERTIES_MAX:
        raise Refused(
            ResponseCode.MESSAGE_ILLEGAL, f"properties of {len(message.properties)} bytes are over {PROPERTIES_MAX}"
        )
    message.topic, message.queue_id, message.answer_queue = HALF_TOPIC.encode(), 0, queue
    message.sys_flag &= ~TRANSACTION_MASK
    message.mark = lambda _queue, offset, position: Half(offset, position, immunity_ms)


def _immunity_ms(text: str) -> int:
    if not text:
        return 0
    seconds = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= seconds <= IMMUNITY_S_MAX:
        raise Refused(
            ResponseCode.MESSAGE_ILLEGAL,
            f"{IMMUNITY}={text[:20]!r}: whole seconds from 0 to {IMMUNITY_S_MAX} are allowed",
        )
    return seconds * 1000


def committed(half: Record) -> PutMessage | None:
    """The message that a half message becomes, visible in its real topic. None: it does not say where."""
    topic = properties.get(half.properties, b"REAL_TOPIC")
    queue = properties.get(half.properties, b"REAL_QID")
    if not topic:
        return None
    message = copy_of(half)
    message.topic = topic
    message.queue_id = int(queue) if queue and queue.isdigit() else 0
    message.sys_flag = message.sys_flag & ~TRANSACTION_MASK | TRANSACTION_COMMIT
    message.prepared_offset = half.position
    return message


def given_up(half: Record, checks: int) -> PutMessage:
    """The copy for operators of a half message that nobody could decide."""
    message = copy_of(half)
    message.topic, message.queue_id = GIVEN_UP_TOPIC.encode(), 0
    raw = properties.without(message.properties, CHECK_TIMES.encode())
    counted = properties.append(raw, CHECK_TIMES.encode(), str(checks).encode())
    message.properties = counted if len(counted) <= PROPERTIES_MAX else raw
    return message


def shown(half: Record) -> bytes:
    """The half message as its producer is asked about it: topic and queue are the real ones, the rest as stored."""
    topic = properties.get(half.properties, b"REAL_TOPIC") or half.topic
    queue = properties.get(half.properties, b"REAL_QID")
    return pack_record(
        topic=topic,
        queue_id=int(queue) if queue and queue.isdigit() else 0,
        queue_offset=half.queue_offset,
        position=half.position,
        flag=half.flag,
        sys_flag=half.sys_flag,
        born_ms=half.born_ms,
        born_host=half.born_host,
        store_ms=half.store_ms,
        store_host=half.store_host,
        reconsume_times=half.reconsume_times,
        prepared_offset=half.prepared_offset,
        body=half.body,
        properties=half.properties,
    )
