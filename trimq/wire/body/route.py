"""Routes and clusters: who serves a topic (105), all brokers (106), topic lists (206), key-value tables (219, 28)."""

# ruff: noqa: RUF012  (msgspec gives each value a default list or dict of its own)
from __future__ import annotations

from trimq.wire.body.base import I32, I64, UNSET, Body, Optional

__all__ = [
    "BrokerData",
    "BrokerMemberGroup",
    "BrokerMemberGroupAnswer",
    "ClusterInfo",
    "DataVersion",
    "KVTable",
    "QueueData",
    "TopicList",
    "TopicRouteData",
]


class DataVersion(Body, frozen=True, kw_only=True):
    """How new a broker's tables are; equal only when all three are. 4.9 knows no `stateVersion`."""

    counter: I64 = 0
    stateVersion: I64 = 0
    """Ours: the term (epoch) of the replica group."""
    timestamp: I64 = 0


class BrokerData(Body, frozen=True, kw_only=True):
    """The addresses of one replica group: broker id to `ip:port`, id 0 leads."""

    brokerAddrs: dict[int, str] = {}
    brokerName: str
    cluster: str = ""
    enableActingMaster: Optional[bool] = UNSET
    zoneName: Optional[str] = UNSET


class QueueData(Body, frozen=True, kw_only=True):
    """The queues that one replica group has for a topic."""

    brokerName: str
    perm: I32
    readQueueNums: I32
    topicSysFlag: I32 = 0
    writeQueueNums: I32


class TopicRouteData(Body, frozen=True, kw_only=True):
    brokerDatas: list[BrokerData] = []
    filterServerTable: dict[str, list[str]] = {}
    orderTopicConf: Optional[str] = UNSET
    queueDatas: list[QueueData] = []


class ClusterInfo(Body, frozen=True, kw_only=True):
    brokerAddrTable: dict[str, BrokerData] = {}
    clusterAddrTable: dict[str, list[str]] = {}
    """Cluster to broker names."""


class TopicList(Body, frozen=True, kw_only=True):
    brokerAddr: Optional[str] = UNSET
    topicList: list[str] = []


class KVTable(Body, frozen=True, kw_only=True):
    table: dict[str, str] = {}


class BrokerMemberGroup(Body, frozen=True, kw_only=True):
    brokerAddrs: dict[int, str] = {}
    brokerName: str
    cluster: str = ""


class BrokerMemberGroupAnswer(Body, frozen=True, kw_only=True):
    brokerMemberGroup: BrokerMemberGroup
