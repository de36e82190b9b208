"""Request headers that only a name server reads; the shared ones are in `trimq.wire.headers.route`."""

from __future__ import annotations

from trimq.wire.headers.base import I64, Header

__all__ = [
    "BrokerHeartbeatHeader",
    "BrokerNameHeader",
    "ClusterHeader",
    "CountAdded",
    "CountWiped",
    "DeleteTopicHeader",
    "MemberGroupHeader",
    "TopicHeader",
]


class BrokerHeartbeatHeader(Header, frozen=True, kw_only=True):
    """Code 904."""

    cluster_name: str = ""
    broker_name: str
    broker_addr: str
    heartbeat_timeout_mills: I64 | None = None
    """Spelled so on the wire."""


class MemberGroupHeader(Header, frozen=True, kw_only=True):
    """Code 901."""

    cluster_name: str = ""
    broker_name: str


class BrokerNameHeader(Header, frozen=True, kw_only=True):
    """Codes 205 and 327."""

    broker_name: str


class CountWiped(Header, frozen=True, kw_only=True):
    wipe_topic_count: int


class CountAdded(Header, frozen=True, kw_only=True):
    add_topic_count: int


class DeleteTopicHeader(Header, frozen=True, kw_only=True):
    """Code 216; without a cluster the topic goes everywhere."""

    topic: str
    cluster_name: str = ""


class ClusterHeader(Header, frozen=True, kw_only=True):
    """Code 224."""

    cluster: str


class TopicHeader(Header, frozen=True, kw_only=True):
    """Code 217."""

    topic: str
