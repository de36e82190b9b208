"""Pop: batch acknowledgement, and who reads what by which request (codes 200151, 400 to 402)."""

# ruff: noqa: RUF012  (msgspec gives each value a default list or dict of its own)
from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

import msgspec

from trimq.errors import ProtocolError
from trimq.wire.body.base import I32, I64, Body
from trimq.wire.body.lock import MQ

__all__ = [
    "BITS_MAX",
    "POP",
    "PULL",
    "BatchAck",
    "BatchAckRequest",
    "QueryAssignmentRequest",
    "QueryAssignmentResponse",
    "QueueAssignment",
    "RequestModeTable",
    "SetRequestModeRequest",
]

PULL = "PULL"
POP = "POP"
BITS_MAX = 65_536
"""Messages that one batch acknowledgement may span."""


class BatchAck(Body, frozen=True, kw_only=True):
    """Messages of one queue that came with one answer."""

    group: str = msgspec.field(name="c")
    topic: str = msgspec.field(name="t")
    """The original topic; with `retry` it says where the messages lie."""
    retry: str = msgspec.field(name="r", default="0")
    start: I64 = msgspec.field(name="so")
    queue: I32 = msgspec.field(name="q")
    revive_queue: I32 = msgspec.field(name="rq", default=0)
    pop_ms: I64 = msgspec.field(name="pt")
    invisible_ms: I64 = msgspec.field(name="it", default=0)
    bits: str = msgspec.field(name="b")
    """Base64 of a little-endian bit set: bit i is offset `start + i`."""

    def offsets(self) -> list[int]:
        """Raises `ProtocolError`."""
        try:
            raw = base64.b64decode(self.bits, validate=True)
        except (binascii.Error, ValueError):
            raise ProtocolError("batch acknowledgement: b is no base64") from None
        if len(raw) * 8 > BITS_MAX:
            raise ProtocolError(f"batch acknowledgement: more than {BITS_MAX} offsets")
        word = int.from_bytes(raw, "little")
        return [self.start + bit for bit in range(word.bit_length()) if word >> bit & 1]

    @staticmethod
    def pack(start: int, offsets: Iterable[int]) -> str:
        """The `b` of these offsets."""
        word = 0
        for offset in offsets:
            word |= 1 << (offset - start)
        return base64.b64encode(word.to_bytes((word.bit_length() + 7) // 8, "little")).decode()


class BatchAckRequest(Body, frozen=True, kw_only=True):
    brokerName: str = ""
    acks: list[BatchAck] = []


class QueryAssignmentRequest(Body, frozen=True, kw_only=True):
    topic: str
    consumerGroup: str
    clientId: str
    strategyName: str = "AVG"
    messageModel: str | int = "CLUSTERING"


class QueueAssignment(Body, frozen=True, kw_only=True):
    messageQueue: MQ
    mode: str = PULL
    attachments: dict[str, str] | None = None


class QueryAssignmentResponse(Body, frozen=True, kw_only=True):
    messageQueueAssignments: list[QueueAssignment] | None = None
    """None: nothing can be said now, the client keeps what it has."""


class SetRequestModeRequest(Body, frozen=True, kw_only=True):
    topic: str
    consumerGroup: str
    mode: str = PULL
    popShareQueueNum: I32 = 0


class RequestModeTable(Body, frozen=True, kw_only=True):
    messageRequestModeMap: dict[str, dict[str, SetRequestModeRequest]] = {}
