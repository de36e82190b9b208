"""The name server's headers: routes (105), registration (103, 104, 322), key-value configuration (100-102, 219)."""

from __future__ import annotations

import msgspec

from trimq.wire.headers.base import I32, I64, Header

__all__ = [
    "DeleteKVHeader",
    "GetKVHeader",
    "GetKVListHeader",
    "GetKVResponse",
    "GetRouteHeader",
    "PutKVHeader",
    "QueryDataVersionHeader",
    "QueryDataVersionResponse",
    "RegisterBrokerHeader",
    "RegisterBrokerResponse",
    "UnregisterBrokerHeader",
]


class GetRouteHeader(Header, frozen=True, kw_only=True):
    topic: str
    accept_standard_json_only: bool | None = None


class RegisterBrokerHeader(Header, frozen=True, kw_only=True):
    """Code 103; the body is a `RegisterBrokerBody`."""

    broker_name: str
    broker_addr: str
    cluster_name: str
    ha_server_addr: str = ""
    broker_id: I64
    compressed: bool = False
    body_crc32: I32 = msgspec.field(name="bodyCrc32", default=0)
    """CRC32 of the body as sent, without its sign bit; 0: not checked."""
    heartbeat_timeout_millis: I64 | None = None
    enable_acting_master: bool | None = None


class RegisterBrokerResponse(Header, frozen=True, kw_only=True):
    """Both fields only for a slave: its master's addresses."""

    ha_server_addr: str = ""
    master_addr: str = ""


class UnregisterBrokerHeader(Header, frozen=True, kw_only=True):
    """Code 104."""

    broker_name: str
    broker_addr: str
    cluster_name: str
    broker_id: I64


class QueryDataVersionHeader(UnregisterBrokerHeader, frozen=True, kw_only=True):
    """Code 322; the body is the broker's `DataVersion`. Counts as a sign of life."""


class QueryDataVersionResponse(Header, frozen=True, kw_only=True):
    changed: bool


class PutKVHeader(Header, frozen=True, kw_only=True):
    namespace: str
    key: str
    value: str


class GetKVHeader(Header, frozen=True, kw_only=True):
    namespace: str
    key: str


class GetKVResponse(Header, frozen=True, kw_only=True):
    value: str = ""


class DeleteKVHeader(Header, frozen=True, kw_only=True):
    namespace: str
    key: str


class GetKVListHeader(Header, frozen=True, kw_only=True):
    namespace: str
