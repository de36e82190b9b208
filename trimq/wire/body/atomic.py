"""Messages that are stored together (code 9021) and where they lie then.

The request's body is a canonical CBOR array, per message `[topic, queue, sysFlag, flag, properties, body]`; the body of
the answer is JSON, per message `[queue, queue offset, offset id]`, in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import cbor2

from trimq.errors import ProtocolError

__all__ = ["MESSAGES_MAX", "AtomicMessage", "decode_atomic", "decode_places", "encode_atomic", "encode_places"]

MESSAGES_MAX = 1_024


class AtomicMessage(NamedTuple):
    """One of them."""

    topic: str
    queue: int
    sys_flag: int
    flag: int
    properties: bytes
    body: bytes


def encode_atomic(messages: Sequence[AtomicMessage]) -> bytes:
    return cbor2.dumps([list(message) for message in messages], canonical=True)


def decode_atomic(raw: bytes) -> list[AtomicMessage]:
    """Raises `ProtocolError`."""
    try:
        rows: Any = cbor2.loads(raw)
    except Exception as problem:  # whatever the decoder raises: the bytes are no CBOR
        raise ProtocolError(f"the messages are not CBOR: {problem}") from None
    if not isinstance(rows, list) or not 1 <= len(rows) <= MESSAGES_MAX:
        raise ProtocolError(f"1 to {MESSAGES_MAX} messages are wanted")
    return [_message(row) for row in rows]


def _message(row: Any) -> AtomicMessage:
    if isinstance(row, list) and len(row) == 6:
        topic, queue, sys_flag, flag, properties, body = row
        if (
            type(topic) is str
            and type(queue) is type(sys_flag) is type(flag) is int
            and 0 <= queue <= 0xFFFF
            and 0 <= sys_flag < 1 << 31
            and -(1 << 31) <= flag < 1 << 31
            and type(properties) is type(body) is bytes
        ):
            return AtomicMessage(topic, queue, sys_flag, flag, properties, body)
    raise ProtocolError(f"{row!r:.120} is no [topic, queue, sysFlag, flag, properties, body]")


def encode_places(places: Sequence[tuple[int, int, str]]) -> bytes:
    return json.dumps(places, separators=(",", ":")).encode()


def decode_places(raw: bytes) -> list[tuple[int, int, str]]:
    """Raises `ProtocolError`."""
    try:
        return [(int(queue), int(offset), str(offset_id)) for queue, offset, offset_id in json.loads(raw)]
    except (ValueError, TypeError) as problem:
        raise ProtocolError(f"the places of the messages cannot be read: {problem}") from None
