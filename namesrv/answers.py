"""The name server's tables as bodies of answers.

`trimq.wire.body` writes compact JSON with quoted keys: Go's client cuts `brokerAddrs` by text, others parse strictly,
and Java reads this as well as its own unquoted form.
"""

from __future__ import annotations

from collections.abc import Iterable

from namesrv.route_info import BrokerGroup, Route
from trimq.wire.body.base import UNSET
from trimq.wire.body.route import (
    BrokerData,
    BrokerMemberGroup,
    BrokerMemberGroupAnswer,
    ClusterInfo,
    QueueData,
    TopicRouteData,
)

__all__ = ["cluster_info", "member_group", "route"]


def _group(group: BrokerGroup) -> BrokerData:
    return BrokerData(
        brokerAddrs=group.addrs(),
        brokerName=group.name,
        cluster=group.cluster,
        enableActingMaster=UNSET if group.acting_master is None else group.acting_master,
        zoneName=group.zone or UNSET,
    )


def route(found: Route, order_conf: str | None = None) -> bytes:
    """The answer to 105."""
    return TopicRouteData(
        brokerDatas=[_group(group) for group in found.groups],
        queueDatas=[
            QueueData(
                brokerName=name,
                perm=queues.perm,
                readQueueNums=queues.read_queues,
                topicSysFlag=queues.sys_flag,
                writeQueueNums=queues.write_queues,
            )
            for name, queues in found.queues
        ],
        orderTopicConf=UNSET if order_conf is None else order_conf,
    ).to_json()


def cluster_info(groups: Iterable[BrokerGroup]) -> bytes:
    """The answer to 106."""
    brokers: dict[str, BrokerData] = {}
    clusters: dict[str, list[str]] = {}
    for group in groups:
        brokers[group.name] = _group(group)
        clusters.setdefault(group.cluster, []).append(group.name)
    return ClusterInfo(brokerAddrTable=brokers, clusterAddrTable=clusters).to_json()


def member_group(cluster: str, name: str, group: BrokerGroup | None) -> bytes:
    """The answer to 901; empty for an unknown name."""
    members = BrokerMemberGroup(brokerAddrs=group.addrs() if group else {}, brokerName=name, cluster=cluster)
    return BrokerMemberGroupAnswer(brokerMemberGroup=members).to_json()
