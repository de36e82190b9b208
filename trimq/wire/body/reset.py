"""Offsets by queue: what a reset sets (220, 222), and how far a consumer is (221, 223).

The table is keyed by a queue, and each receiver reads another form of it (real-clients notes of RocketMQ's protocol):
Java a string that holds the queue's JSON, Go the bare object as key, C++ a list. Reading takes all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from trimq.errors import ProtocolError
from trimq.wire.body import fastjson
from trimq.wire.body.base import I64, Body, convert_body, decode_body, encode_body
from trimq.wire.body.lock import MQ
from trimq.wire.body.stats import queue_key

__all__ = [
    "consumer_table_body",
    "queue_table_body",
    "read_consumer_table",
    "read_queue_table",
    "read_reset_body",
    "reset_body",
]

LIST: Final = frozenset({"CPP"})
RAW: Final = frozenset({"GO"})


class _Row(Body, frozen=True, kw_only=True):
    brokerName: str = ""
    queueId: int
    topic: str
    offset: I64


def reset_body(table: Mapping[MQ, int], language: str = "JAVA") -> bytes:
    """The body of 220 and of 222's answer, in the form that clients of this language read."""
    if language in LIST:
        rows = [
            _Row(brokerName=mq.brokerName, queueId=mq.queueId, topic=mq.topic, offset=at) for mq, at in table.items()
        ]
        return encode_body({"offsetTable": rows})
    if language in RAW:
        pairs = b",".join(b"%b:%d" % (mq.to_json(), at) for mq, at in table.items())
        return b'{"offsetTable":{%b}}' % pairs
    return encode_body({"offsetTable": {queue_key(mq): at for mq, at in table.items()}})


def read_reset_body(data: bytes | memoryview) -> dict[MQ, int]:
    """Any of the forms. Raises `ProtocolError`."""
    found = fastjson.parse(bytes(data))
    table = found.get("offsetTable") if isinstance(found, dict) else None
    if isinstance(table, list):
        rows = [convert_body(each, _Row) for each in table]
        return {MQ(brokerName=row.brokerName, queueId=row.queueId, topic=row.topic): row.offset for row in rows}
    return _unkeyed(table)


def queue_table_body(table: Mapping[MQ, int]) -> bytes:
    """A consumer's answer to 221."""
    return encode_body({"messageQueueTable": {queue_key(mq): at for mq, at in table.items()}})


def read_queue_table(data: bytes | memoryview) -> dict[MQ, int]:
    """Raises `ProtocolError`."""
    found = fastjson.parse(bytes(data))
    return _unkeyed(found.get("messageQueueTable") if isinstance(found, dict) else None)


def consumer_table_body(tables: Mapping[str, Mapping[MQ, int]]) -> bytes:
    """A broker's answer to 223: client id → queue → offset."""
    keyed = {client: {queue_key(mq): at for mq, at in table.items()} for client, table in tables.items()}
    return encode_body({"consumerTable": keyed})


def read_consumer_table(data: bytes | memoryview) -> dict[str, dict[MQ, int]]:
    """Raises `ProtocolError`."""
    found = fastjson.parse(bytes(data))
    tables = found.get("consumerTable") if isinstance(found, dict) else None
    if not isinstance(tables, dict):
        return {}
    return {client: _unkeyed(table) for client, table in tables.items()}


def _unkeyed(table: fastjson.Value) -> dict[MQ, int]:
    if table is None:
        return {}
    try:
        offsets = msgspec.convert(table, dict[str, I64], strict=False)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"offset table: {error}") from None
    return {decode_body(key.encode(), MQ): at for key, at in offsets.items()}
