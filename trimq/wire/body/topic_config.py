"""Topics and consumer groups as configurations: bodies of 18, 21, 200, 201 and 225, and inside a registration."""

# ruff: noqa: RUF012  (msgspec gives each value a default list or dict of its own)
from __future__ import annotations

from trimq.wire.body.base import I32, I64, UNSET, Body, Optional
from trimq.wire.body.route import DataVersion

__all__ = [
    "CreateTopicList",
    "SubscriptionGroupConfig",
    "SubscriptionGroupList",
    "SubscriptionGroupTable",
    "TopicConfig",
    "TopicConfigTable",
]


class TopicConfig(Body, frozen=True, kw_only=True):
    attributes: dict[str, str] = {}
    order: bool = False
    perm: I32 = 6
    """Bits: 1 inherit, 2 write, 4 read."""
    readQueueNums: I32 = 16
    topicFilterType: str = "SINGLE_TAG"
    topicName: str
    topicSysFlag: I32 = 0
    writeQueueNums: I32 = 16


class TopicConfigTable(Body, frozen=True, kw_only=True):
    """All topics of a broker (Java: TopicConfigSerializeWrapper)."""

    dataVersion: DataVersion = DataVersion()
    topicConfigTable: dict[str, TopicConfig] = {}


class CreateTopicList(Body, frozen=True, kw_only=True):
    """The request of 18; attributes are changes (`+name` or `-name` → value), as in 17."""

    topicConfigList: list[TopicConfig] = []


class SubscriptionGroupConfig(Body, frozen=True, kw_only=True):
    attributes: dict[str, str] = {}
    brokerId: I64 = 0
    consumeBroadcastEnable: bool = True
    consumeEnable: bool = True
    consumeFromMinEnable: bool = True
    consumeMessageOrderly: bool = False
    consumeTimeoutMinute: I32 = 15
    groupName: str
    groupSysFlag: I32 = 0
    notifyConsumerIdsChangedEnable: bool = True
    retryMaxTimes: I32 = 16
    retryQueueNums: I32 = 1
    whichBrokerWhenConsumeSlowly: I64 = 1


class SubscriptionGroupList(Body, frozen=True, kw_only=True):
    """The request of 225."""

    groupConfigList: list[SubscriptionGroupConfig] = []


class SubscriptionGroupTable(Body, frozen=True, kw_only=True):
    """All consumer groups of a broker (Java: SubscriptionGroupWrapper)."""

    dataVersion: DataVersion = DataVersion()
    forbiddenTable: Optional[dict[str, dict[str, int]]] = UNSET
    subscriptionGroupTable: dict[str, SubscriptionGroupConfig] = {}
