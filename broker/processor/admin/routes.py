"""The part of the table of request codes that is for operators and their tools.

Who may ask: anybody, for what only looks, and for what makes topics and consumer groups, as clients need them. What
destroys data or changes configuration goes through the guard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker.processor.admin.broker import BrokerAdmin
from broker.processor.admin.clients import ClientAdmin
from broker.processor.admin.groups import GroupAdmin
from broker.processor.admin.guard import guarded
from broker.processor.admin.inspection import Inspection
from broker.processor.admin.master_slave import MasterSlaveAdmin
from broker.processor.admin.offsets import OffsetAdmin
from broker.processor.admin.progress import ProgressAdmin
from broker.processor.admin.replication import ReplicationAdmin
from broker.processor.admin.topics import TopicAdmin
from broker.processor.admin.upkeep import Upkeep
from broker.processor.lane import Lane
from broker.processor.registry import Needs, Route, Slow, slow
from trimq.wire.codes import RequestCode as Code

__all__ = ["Administration", "admin_routes"]


@dataclass(frozen=True, slots=True)
class Administration:
    """Everything that serves operators in one replica."""

    topics: TopicAdmin
    groups: GroupAdmin
    progress: ProgressAdmin
    offsets: OffsetAdmin
    clients: ClientAdmin
    inspection: Inspection
    broker: BrokerAdmin
    upkeep: Upkeep
    replicas: MasterSlaveAdmin
    replication: ReplicationAdmin


def admin_routes(serving: Administration, lane: Lane, allowed: Sequence[str]) -> Mapping[int, Route]:
    """Request code → route."""
    leader = Needs.READY
    topics, groups, progress, clients = serving.topics, serving.groups, serving.progress, serving.clients
    inspection, broker, upkeep = serving.inspection, serving.broker, serving.upkeep

    def local(handler: Slow) -> Slow:
        return guarded(handler, allowed)

    return {
        # topics
        Code.UPDATE_AND_CREATE_TOPIC: slow(topics.create, lane, leader),
        Code.UPDATE_AND_CREATE_TOPIC_LIST: slow(topics.create_many, lane, leader),
        Code.DELETE_TOPIC_IN_BROKER: slow(local(topics.delete), lane, leader),
        Code.GET_ALL_TOPIC_CONFIG: slow(topics.all_topics, lane),
        Code.GET_TOPIC_CONFIG: slow(topics.one_topic, lane, leader),
        Code.GET_SYSTEM_TOPIC_LIST_FROM_BROKER: slow(topics.system_topics, lane),
        Code.GET_TOPIC_STATS_INFO: slow(topics.statistics, lane, leader),
        Code.QUERY_TOPIC_CONSUME_BY_WHO: slow(topics.consumed_by, lane, leader),
        # consumer groups
        Code.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP: slow(groups.put, lane, leader),
        Code.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST: slow(groups.put_many, lane, leader),
        Code.DELETE_SUBSCRIPTIONGROUP: slow(local(groups.delete), lane, leader),
        Code.GET_ALL_SUBSCRIPTIONGROUP_CONFIG: slow(groups.all_groups, lane),
        Code.GET_SUBSCRIPTIONGROUP_CONFIG: slow(groups.one_group, lane, leader),
        # how they stand
        Code.GET_CONSUME_STATS: slow(groups.progress, lane, leader),
        Code.GET_BROKER_CONSUME_STATS: slow(progress.all_progress, lane, leader),
        Code.QUERY_CONSUME_TIME_SPAN: slow(progress.time_spans, lane, leader),
        Code.QUERY_CORRECTION_OFFSET: slow(progress.corrections, lane, leader),
        Code.QUERY_TOPICS_BY_CONSUMER: slow(progress.topics, lane),
        Code.QUERY_SUBSCRIPTION_BY_CONSUMER: slow(progress.subscription, lane),
        Code.CLONE_GROUP_OFFSET: slow(serving.offsets.clone, lane, leader),
        Code.INVOKE_BROKER_TO_RESET_OFFSET: slow(serving.offsets.reset, lane, leader),
        Code.INVOKE_BROKER_TO_GET_CONSUMER_STATUS: slow(serving.offsets.positions, lane, leader),
        # connected clients
        Code.GET_CONSUMER_CONNECTION_LIST: slow(groups.consumers, lane),
        Code.GET_PRODUCER_CONNECTION_LIST: slow(groups.producers, lane),
        Code.GET_ALL_PRODUCER_INFO: slow(clients.all_producers, lane),
        Code.GET_CONSUMER_RUNNING_INFO: slow(clients.running_info, lane),
        Code.CONSUME_MESSAGE_DIRECTLY: slow(clients.consume_directly, lane),
        # the broker
        Code.GET_BROKER_RUNTIME_INFO: slow(broker.runtime, lane),
        Code.GET_BROKER_CONFIG: slow(broker.configuration, lane),
        Code.UPDATE_BROKER_CONFIG: slow(local(broker.update_configuration), lane, leader),
        Code.GROUP_STATUS: slow(broker.status, lane),
        Code.CHANGE_GROUP_MEMBERS: slow(local(serving.replication.change_members), lane, leader),
        Code.TRANSFER_GROUP_LEADER: slow(local(serving.replication.transfer), lane, leader),
        Code.CREATE_GROUP: slow(local(serving.replication.create_group), lane),
        Code.JOIN_GROUP: slow(serving.replicas.join, lane, leader),
        Code.SET_GROUP_STRATEGY: slow(local(serving.replicas.set_strategy), lane, leader),
        Code.PROMOTE_MASTER: slow(local(serving.replicas.promote), lane),
        Code.TRUST_LOG: slow(local(serving.replicas.trust_log), lane),
        Code.VIEW_BROKER_STATS_DATA: slow(inspection.statistics, lane),
        Code.QUERY_CONSUME_QUEUE: slow(inspection.index_units, lane),
        Code.GET_BROKER_HA_STATUS: slow(inspection.replication, lane),
        Code.GET_BROKER_EPOCH_CACHE: slow(inspection.epochs, lane),
        Code.DELETE_EXPIRED_COMMITLOG: slow(local(upkeep.expired_log), lane),
        Code.CLEAN_EXPIRED_CONSUMEQUEUE: slow(local(upkeep.expired_index), lane),
        Code.CLEAN_UNUSED_TOPIC: slow(local(upkeep.unused_topics), lane),
    }
