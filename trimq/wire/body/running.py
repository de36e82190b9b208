"""What a consumer tells of itself: running info (307) and the outcome of one message consumed on demand (309)."""

# ruff: noqa: RUF012  (msgspec gives each value a default list or dict of its own)
from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import msgspec

from trimq.wire.body.base import I32, I64, Body, decode_body, encode_body
from trimq.wire.body.heartbeat import SubscriptionData
from trimq.wire.body.lock import MQ
from trimq.wire.body.stats import queue_key

__all__ = ["ConsumeDirectlyResult", "ConsumeStatus", "ConsumerRunningInfo", "ProcessQueueInfo"]


class ProcessQueueInfo(Body, frozen=True, kw_only=True):
    """One queue that a consumer reads. `droped` is spelled so on the wire."""

    cachedMsgCount: I32 = 0
    cachedMsgMaxOffset: I64 = 0
    cachedMsgMinOffset: I64 = 0
    cachedMsgSizeInMiB: I32 = 0
    commitOffset: I64 = 0
    droped: bool = False
    lastConsumeTimestamp: I64 = 0
    lastLockTimestamp: I64 = 0
    lastPullTimestamp: I64 = 0
    locked: bool = False
    transactionMsgCount: I32 = 0
    transactionMsgMaxOffset: I64 = 0
    transactionMsgMinOffset: I64 = 0
    tryUnlockTimes: I64 = 0


class ConsumeStatus(Body, frozen=True, kw_only=True):
    """How fast one topic is consumed: per second, and milliseconds a message."""

    consumeFailedMsgs: I64 = 0
    consumeFailedTPS: float = 0.0
    consumeOKTPS: float = 0.0
    consumeRT: float = 0.0
    pullRT: float = 0.0
    pullTPS: float = 0.0


class _Raw(Body, frozen=True, kw_only=True):
    jstack: str = ""
    mqPopTable: dict[str, dict[str, int]] = {}
    mqTable: dict[str, ProcessQueueInfo] = {}
    properties: dict[str, str] = {}
    statusTable: dict[str, ConsumeStatus] = {}
    subscriptionSet: list[SubscriptionData] = []
    userConsumerInfo: dict[str, str] = {}


class ConsumerRunningInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to 307."""

    properties: Mapping[str, str] = {}
    subscriptions: list[SubscriptionData] = []
    queues: Mapping[MQ, ProcessQueueInfo] = {}
    statuses: Mapping[str, ConsumeStatus] = {}
    stacks: str = ""

    @classmethod
    def from_json(cls, data: bytes | memoryview) -> Self:
        """Raises `ProtocolError`."""
        raw = decode_body(data, _Raw)
        queues = {decode_body(key.encode(), MQ): info for key, info in raw.mqTable.items()}
        return cls(
            properties=raw.properties,
            subscriptions=raw.subscriptionSet,
            queues=queues,
            statuses=raw.statusTable,
            stacks=raw.jstack,
        )

    def to_json(self) -> bytes:
        return encode_body(
            _Raw(
                jstack=self.stacks,
                mqTable={queue_key(mq): info for mq, info in self.queues.items()},
                properties=dict(self.properties),
                statusTable=dict(self.statuses),
                subscriptionSet=self.subscriptions,
            )
        )


class ConsumeDirectlyResult(Body, frozen=True, kw_only=True):
    """The answer to 309."""

    autoCommit: bool = True
    consumeResult: str | int = "CR_SUCCESS"
    """CR_SUCCESS, CR_LATER, CR_ROLLBACK, CR_COMMIT, CR_THROW_EXCEPTION, CR_RETURN_NULL; Go sends the ordinal."""
    order: bool = False
    remark: str | None = None
    spentTimeMills: I64 = 0
