"""Statistics for tools: topics (202), consumers (208), connections (203). Tables keyed by a queue.

A queue as a key is written as a string that holds the queue's JSON: strictly valid, and Java reads it. Real Java
servers write the raw object; `fastjson` turns both into the same text.
"""

# ruff: noqa: RUF012  (msgspec gives each value a default list or dict of its own)
from __future__ import annotations

from collections.abc import Mapping
from typing import Self, TypeVar

import msgspec

from trimq.wire.body.base import I32, I64, Body, decode_body, encode_body
from trimq.wire.body.heartbeat import SubscriptionData
from trimq.wire.body.lock import MQ

__all__ = [
    "Connection",
    "ConsumeStats",
    "ConsumerConnection",
    "OffsetWrapper",
    "ProducerConnection",
    "TopicOffset",
    "TopicStatsTable",
    "queue_key",
]

V = TypeVar("V")


def queue_key(queue: MQ) -> str:
    """A queue as the key of a table."""
    return queue.to_json().decode()


def _keyed(table: Mapping[MQ, V]) -> dict[str, V]:
    return {queue_key(queue): value for queue, value in table.items()}


def _unkeyed(table: Mapping[str, V]) -> dict[MQ, V]:
    return {decode_body(key.encode(), MQ): value for key, value in table.items()}


class TopicOffset(Body, frozen=True, kw_only=True):
    lastUpdateTimestamp: I64 = 0
    maxOffset: I64 = 0
    minOffset: I64 = 0


class _RawTopicStats(Body, frozen=True, kw_only=True):
    offsetTable: dict[str, TopicOffset] = {}


class TopicStatsTable(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to 202."""

    offsetTable: dict[MQ, TopicOffset] = {}

    @classmethod
    def from_json(cls, data: bytes | memoryview) -> Self:
        """Raises `ProtocolError`."""
        return cls(offsetTable=_unkeyed(decode_body(data, _RawTopicStats).offsetTable))

    def to_json(self) -> bytes:
        return encode_body(_RawTopicStats(offsetTable=_keyed(self.offsetTable)))


class OffsetWrapper(Body, frozen=True, kw_only=True):
    """One queue's progress for one consumer group."""

    brokerOffset: I64 = 0
    consumerOffset: I64 = 0
    lastTimestamp: I64 = 0
    pullOffset: I64 = 0


class _RawConsumeStats(Body, frozen=True, kw_only=True):
    consumeTps: float = 0.0
    offsetTable: dict[str, OffsetWrapper] = {}


class ConsumeStats(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to 208."""

    consumeTps: float = 0.0
    offsetTable: dict[MQ, OffsetWrapper] = {}

    @classmethod
    def from_json(cls, data: bytes | memoryview) -> Self:
        """Raises `ProtocolError`."""
        raw = decode_body(data, _RawConsumeStats)
        return cls(consumeTps=raw.consumeTps, offsetTable=_unkeyed(raw.offsetTable))

    def to_json(self) -> bytes:
        return encode_body(_RawConsumeStats(consumeTps=self.consumeTps, offsetTable=_keyed(self.offsetTable)))


class Connection(Body, frozen=True, kw_only=True):
    clientAddr: str = ""
    clientId: str = ""
    language: str = "OTHER"
    version: I32 = 0


class ConsumerConnection(Body, frozen=True, kw_only=True):
    """The answer to 203."""

    connectionSet: list[Connection] = []
    consumeFromWhere: str = "CONSUME_FROM_LAST_OFFSET"
    consumeType: str = "CONSUME_PASSIVELY"
    messageModel: str = "CLUSTERING"
    subscriptionTable: dict[str, SubscriptionData] = {}


class ProducerConnection(Body, frozen=True, kw_only=True):
    """The answer to 204."""

    connectionSet: list[Connection] = []
