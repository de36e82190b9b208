"""What tools look at beyond topics and progress: statistics, index units, replication, producers, time spans.

Answers of codes 303, 308, 315, 317, 321, 328, 907 and 1007. Names are Java's; tables keyed by a queue are written as in
`trimq.wire.body.stats`.
"""

# ruff: noqa: RUF012  (msgspec gives each value a default list or dict of its own)
from __future__ import annotations

from trimq.wire.body.base import I32, I64, Body, encode_body
from trimq.wire.body.lock import MQ
from trimq.wire.body.stats import ConsumeStats

__all__ = [
    "BrokerStatsData",
    "ConnectionRuntime",
    "EpochEntry",
    "EpochEntryCache",
    "HARuntimeInfo",
    "IndexUnit",
    "ProducerInfo",
    "ProducerTableInfo",
    "QueryConsumeQueue",
    "QueueTimeSpan",
    "StatsItem",
    "TimeSpans",
    "consume_stats_list",
]


class StatsItem(Body, frozen=True, kw_only=True):
    """A counted thing over one span."""

    avgpt: float = 0.0
    """Average per event (bytes per message for sizes); 1 where events are counted."""
    sum: I64 = 0
    tps: float = 0.0


class BrokerStatsData(Body, frozen=True, kw_only=True):
    """The answer to 315."""

    statsDay: StatsItem = StatsItem()
    statsHour: StatsItem = StatsItem()
    statsMinute: StatsItem = StatsItem()


class QueueTimeSpan(Body, frozen=True, kw_only=True):
    """Store times of a queue's ends and of where a consumer group stands in it, in ms."""

    consumeTimeStamp: I64 = 0
    delayTime: I64 = 0
    maxTimeStamp: I64 = 0
    messageQueue: MQ
    minTimeStamp: I64 = 0


class TimeSpans(Body, frozen=True, kw_only=True):
    """The answer to 303."""

    consumeTimeSpanSet: list[QueueTimeSpan] = []


class IndexUnit(Body, frozen=True, kw_only=True):
    """One unit of a queue's index."""

    eval: bool = True
    """False: the consumer group's expression leaves the message out."""
    msg: str = ""
    physicOffset: I64
    physicSize: I32
    tagsCode: I64


class QueryConsumeQueue(Body, frozen=True, kw_only=True):
    """The answer to 321."""

    filterData: str = ""
    maxQueueIndex: I64
    minQueueIndex: I64
    queueData: list[IndexUnit] = []


class ProducerInfo(Body, frozen=True, kw_only=True):
    clientId: str
    language: str = "OTHER"
    lastUpdateTimestamp: I64 = 0
    remoteIP: str = ""
    version: I32 = 0


class ProducerTableInfo(Body, frozen=True, kw_only=True):
    """The answer to 328: producer group → its members."""

    data: dict[str, list[ProducerInfo]] = {}


class ConnectionRuntime(Body, frozen=True, kw_only=True):
    """One replica as the leader (master) sees it."""

    addr: str
    diff: I64 = 0
    inSync: bool = False
    slaveAckOffset: I64 = 0
    transferFromWhere: I64 = 0
    transferredByteInSecond: I64 = 0


class HARuntimeInfo(Body, frozen=True, kw_only=True):
    """The answer to 907."""

    haClientRuntimeInfo: dict[str, str | int | bool] = {}
    haConnectionInfo: list[ConnectionRuntime] = []
    inSyncSlaveNums: I32 = 0
    master: bool = False
    masterCommitLogMaxOffset: I64 = 0


class EpochEntry(Body, frozen=True, kw_only=True):
    """A term (master–slave: an epoch) and the positions of its entries."""

    endOffset: I64
    epoch: I64
    startOffset: I64


class EpochEntryCache(Body, frozen=True, kw_only=True):
    """The answer to 1007."""

    brokerId: I64 = 0
    brokerName: str = ""
    clusterName: str = ""
    epochList: list[EpochEntry] = []
    maxOffset: I64 = 0


def consume_stats_list(addr: str, groups: dict[str, list[ConsumeStats]]) -> bytes:
    """The answer to 317: per consumer group the progress in each topic, as JSON."""
    behind = sum(
        row.brokerOffset - row.consumerOffset
        for listed in groups.values()
        for stats in listed
        for row in stats.offsetTable.values()
    )
    # Each ConsumeStats knows how its table is written; its bytes are taken as they are.
    rows = ",".join(
        "{" + encode_body(name).decode() + ":[" + ",".join(stats.to_json().decode() for stats in listed) + "]}"
        for name, listed in groups.items()
    )
    head = encode_body(addr).decode()
    return f'{{"brokerAddr":{head},"consumeStatsList":[{rows}],"totalDiff":{behind},"totalInflightDiff":0}}'.encode()
