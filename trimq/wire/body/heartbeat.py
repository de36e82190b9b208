"""Heartbeats (34): which groups a client belongs to and what it wants.

Foreign heartbeats are read with distrust. C++ writes enums as numbers, versions as text, leaves out empty sets and
fills `codeSet` with zeros; Go writes codes as text and hashes UTF-8. So enums are turned into names, and tags and codes
are computed from the expression, whatever the sets say.
"""

# ruff: noqa: RUF012  (msgspec gives each value a default list or dict of its own)
from __future__ import annotations

from typing import Any, Final, Self

from trimq.errors import ProtocolError
from trimq.message.tags import tags_code, tags_in
from trimq.wire.body.base import I32, I64, Body, decode_body

__all__ = [
    "CONSUME_FROM",
    "CONSUME_TYPES",
    "MESSAGE_MODELS",
    "ConsumerData",
    "HeartbeatData",
    "ProducerData",
    "RawSubscription",
    "SubscriptionData",
]

CONSUME_TYPES: Final = ("CONSUME_ACTIVELY", "CONSUME_PASSIVELY", "CONSUME_POP")
MESSAGE_MODELS: Final = ("BROADCASTING", "CLUSTERING")
CONSUME_FROM: Final = (
    "CONSUME_FROM_LAST_OFFSET",
    "CONSUME_FROM_LAST_OFFSET_AND_FROM_MIN_WHEN_BOOT_FIRST",
    "CONSUME_FROM_MIN_OFFSET",
    "CONSUME_FROM_MAX_OFFSET",
    "CONSUME_FROM_FIRST_OFFSET",
    "CONSUME_FROM_TIMESTAMP",
)


class ProducerData(Body, frozen=True, kw_only=True):
    groupName: str


class SubscriptionData(Body, frozen=True, kw_only=True):
    """One topic that a consumer wants. Build it with `of`, which fills the sets."""

    classFilterMode: bool = False
    codeSet: list[int] = []
    expressionType: str = "TAG"
    subString: str = "*"
    subVersion: I64 = 0
    """Grows whenever the subscription or the set of queues changes."""
    tagsSet: list[str] = []
    topic: str

    @classmethod
    def of(cls, topic: str, expression: str = "*", version: int = 0, kind: str = "TAG") -> Self:
        tags = tags_in(expression) if kind == "TAG" else ()
        return cls(
            codeSet=sorted({tags_code(tag) for tag in tags}),
            expressionType=kind,
            subString=expression or "*",
            subVersion=version,
            tagsSet=sorted(tags),
            topic=topic,
        )


class ConsumerData(Body, frozen=True, kw_only=True):
    """One consumer group of a client; the enums by name."""

    consumeFromWhere: str = "CONSUME_FROM_LAST_OFFSET"
    consumeType: str = "CONSUME_PASSIVELY"
    groupName: str
    messageModel: str = "CLUSTERING"
    subscriptionDataSet: list[SubscriptionData] = []
    unitMode: bool = False


class HeartbeatData(Body, frozen=True, kw_only=True):
    clientID: str
    consumerDataSet: list[ConsumerData] = []
    heartbeatFingerprint: I32 = 0
    producerDataSet: list[ProducerData] = []
    withoutSub: bool = False
    """The client left its subscriptions out: keep those it had."""

    @classmethod
    def from_json(cls, data: bytes | memoryview) -> Self:
        """Read any client's heartbeat. Raises `ProtocolError`."""
        raw = decode_body(data, _RawHeartbeat)
        return cls(
            clientID=raw.clientID,
            consumerDataSet=[consumer.clean() for consumer in raw.consumerDataSet or ()],
            heartbeatFingerprint=raw.heartbeatFingerprint or 0,
            producerDataSet=[ProducerData(groupName=p.groupName) for p in raw.producerDataSet or () if p.groupName],
            withoutSub=bool(raw.withoutSub),
        )


class RawSubscription(Body, frozen=True, kw_only=True):
    """A subscription as it came, sets unread."""

    topic: str
    classFilterMode: bool | None = None
    codeSet: Any = None  # Any: not read, see the module docstring
    tagsSet: Any = None
    expressionType: str | None = None
    subString: str | None = None
    subVersion: I64 | None = None

    def clean(self) -> SubscriptionData:
        """The same with its sets computed from the expression; nothing said means all tags."""
        kind = self.expressionType or "TAG"
        return SubscriptionData.of(self.topic, self.subString or "*", self.subVersion or 0, kind)


class _RawConsumer(Body, frozen=True, kw_only=True):
    groupName: str
    consumeFromWhere: str | int | None = None
    consumeType: str | int | None = None
    messageModel: str | int | None = None
    subscriptionDataSet: list[RawSubscription] | None = None
    unitMode: bool | None = None

    def clean(self) -> ConsumerData:
        return ConsumerData(
            consumeFromWhere=_enum(self.consumeFromWhere, CONSUME_FROM, CONSUME_FROM[0]),
            consumeType=_enum(self.consumeType, CONSUME_TYPES, CONSUME_TYPES[1]),
            groupName=self.groupName,
            messageModel=_enum(self.messageModel, MESSAGE_MODELS, MESSAGE_MODELS[1]),
            subscriptionDataSet=[each.clean() for each in self.subscriptionDataSet or ()],
            unitMode=bool(self.unitMode),
        )


class _RawProducer(Body, frozen=True, kw_only=True):
    groupName: str | None = None


class _RawHeartbeat(Body, frozen=True, kw_only=True):
    clientID: str
    consumerDataSet: list[_RawConsumer] | None = None
    heartbeatFingerprint: I32 | None = None
    producerDataSet: list[_RawProducer] | None = None
    withoutSub: bool | None = None


def _enum(value: str | int | None, names: tuple[str, ...], default: str) -> str:
    """An enum given by name, by ordinal or by an ordinal as text."""
    if value is None or value == "":
        return default
    if isinstance(value, str):
        if value in names:
            return value
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 4 else -1
    if 0 <= value < len(names):
        return names[value]
    raise ProtocolError(f"heartbeat: {value!r} is none of {', '.join(names)}")
