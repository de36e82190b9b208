"""Queue locks for ordered consumption: bodies of 41 and 42."""

# ruff: noqa: RUF012  (msgspec gives each value a default list or dict of its own)
from __future__ import annotations

from trimq.wire.body.base import I32, Body

__all__ = ["MQ", "LockRequest", "LockResponse"]


class MQ(Body, frozen=True, kw_only=True, order=True):
    """A queue as bodies name it."""

    brokerName: str = ""
    queueId: I32
    topic: str


class LockRequest(Body, frozen=True, kw_only=True):
    """Also the body of an unlock."""

    clientId: str
    consumerGroup: str
    mqSet: list[MQ] = []
    onlyThisBroker: bool = False


class LockResponse(Body, frozen=True, kw_only=True):
    lockOKMQSet: list[MQ] = []
    """Those of the request that the client owns now."""
