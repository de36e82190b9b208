"""Wire forms of what the log keeps about topics and consumer groups."""

from __future__ import annotations

from broker.metadata.group_settings import KEYS, settings_of
from broker.metadata.groups import GroupInfo
from broker.metadata.ops import Scalar
from broker.metadata.state import GroupState
from broker.metadata.topics import TopicInfo
from broker.replication.base import Replicator
from trimq.wire.body.route import DataVersion
from trimq.wire.body.topic_config import SubscriptionGroupConfig, TopicConfig

__all__ = ["data_version", "group_config", "group_scalars", "topic_config"]


def data_version(state: GroupState, replicator: Replicator) -> DataVersion:
    """How new the topic table is: the term, and the index of the last change of a topic."""
    return DataVersion(
        counter=state.topics_changed, stateVersion=replicator.role.term, timestamp=max(state.log_time, 0)
    )


def topic_config(info: TopicInfo) -> TopicConfig:
    return TopicConfig(
        attributes=dict(info.attributes),
        order=info.order,
        perm=info.perm,
        readQueueNums=info.read_queues,
        topicFilterType="MULTI_TAG" if info.filter_type else "SINGLE_TAG",
        topicName=info.name,
        topicSysFlag=info.sys_flag,
        writeQueueNums=info.write_queues,
    )


def group_config(info: GroupInfo) -> SubscriptionGroupConfig:
    settings = settings_of(info.settings)
    return SubscriptionGroupConfig(
        brokerId=settings.broker_id,
        consumeBroadcastEnable=settings.consume_broadcast_enable,
        consumeEnable=settings.consume_enable,
        consumeFromMinEnable=settings.consume_from_min_enable,
        consumeMessageOrderly=settings.consume_message_orderly,
        consumeTimeoutMinute=settings.consume_timeout_minute,
        groupName=info.name,
        groupSysFlag=settings.group_sys_flag,
        notifyConsumerIdsChangedEnable=settings.notify_consumer_ids_changed_enable,
        retryMaxTimes=settings.retry_max_times,
        retryQueueNums=settings.retry_queue_nums,
        whichBrokerWhenConsumeSlowly=settings.which_broker_when_consume_slowly,
    )


def group_scalars(config: SubscriptionGroupConfig) -> dict[str, Scalar]:
    """What the log keeps of a group's configuration: every known key, booleans as 0 or 1."""
    return {key: int(getattr(config, key)) for key in KEYS}
