"""Clients and groups: unregister (35), consumer list (38), change notice (40). Heartbeats are bodies."""

from __future__ import annotations

import msgspec

from trimq.wire.headers.base import Header

__all__ = ["ConsumerListHeader", "HeartbeatResponse", "NotifyIdsChangedHeader", "UnregisterClientHeader"]


class HeartbeatResponse(Header, frozen=True, kw_only=True):
    """The answer to 34. Java 5.x reads both; others ignore them."""

    heartbeat_v2: bool = msgspec.field(name="IS_SUPPORT_HEART_BEAT_V2", default=True)
    sub_change: bool = msgspec.field(name="IS_SUB_CHANGE", default=True)


class UnregisterClientHeader(Header, frozen=True, kw_only=True):
    """Code 35: one group of one client goes."""

    client_id: str = msgspec.field(name="clientID")
    producer_group: str = ""
    consumer_group: str = ""


class ConsumerListHeader(Header, frozen=True, kw_only=True):
    """Code 38; the answer is a `ConsumerIdList` body, or code 1 when the group has nobody."""

    consumer_group: str


class NotifyIdsChangedHeader(Header, frozen=True, kw_only=True):
    """Code 40, broker to client, oneway: rebalance now."""

    consumer_group: str
