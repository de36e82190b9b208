"""Consumer groups: create, change (200, 225), list (201, 352), delete (207), progress (208), connections (203, 204)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.metadata.groups import GroupInfo
from broker.metadata.ops import GroupDel, key_of, tid_of
from broker.metadata.state import GroupState
from broker.metadata.topics import TopicInfo
from broker.processor.request import Refused, Request
from broker.replication.base import Replicator
from broker.replication.intake import Intake
from broker.service.members import Members
from broker.service.statistics import Statistics
from broker.service.tables import data_version, group_config, group_scalars
from trimq.errors import BadName
from trimq.message import names
from trimq.wire.body.base import decode_body
from trimq.wire.body.heartbeat import SubscriptionData
from trimq.wire.body.lock import MQ
from trimq.wire.body.stats import Connection, ConsumerConnection, ConsumeStats, OffsetWrapper, ProducerConnection
from trimq.wire.body.topic_config import SubscriptionGroupConfig, SubscriptionGroupList, SubscriptionGroupTable
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.admin import ConsumerConnectionHeader, ConsumeStatsHeader

if TYPE_CHECKING:
    from broker.config import BrokerConfig
    from broker.metadata.clients import ClientTable, Consumer, Producer
    from broker.store.message_store import MessageStore

__all__ = ["GroupAdmin"]

TIMES_MAX = 256
"""Queues of one answer whose last consumed message is looked up for its time; the rest say 0."""


class GroupAdmin:
    """Administers the consumer groups of one replica group."""

    def __init__(
        self,
        config: BrokerConfig,
        state: GroupState,
        store: MessageStore,
        intake: Intake,
        replicator: Replicator,
        clients: ClientTable,
        statistics: Statistics,
        members: Members,
    ) -> None:
        self._config = config
        self._state = state
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._clients = clients
        self._statistics = statistics
        self._members = members

    async def put(self, request: Request) -> bytes:
        """Code 200."""
        config = SubscriptionGroupConfig.from_json(request.command.body)
        _check_name(config.groupName)
        await self._put(config)
        return request.success()

    async def put_many(self, request: Request) -> bytes:
        """Code 225: all of them, or none when a name is bad."""
        wanted = decode_body(request.command.body, SubscriptionGroupList).groupConfigList
        if not wanted:
            raise Refused(ResponseCode.INVALID_PARAMETER, "the body names no consumer group (groupConfigList)")
        for config in wanted:
            _check_name(config.groupName)
        for config in wanted:
            await self._put(config)
        return request.success()

    async def _put(self, config: SubscriptionGroupConfig) -> None:
        await self._intake.apply(
            self._intake.group_ops(config.groupName, group_scalars(config), retry_queues=max(0, config.retryQueueNums))
        )

    async def all_groups(self, request: Request) -> bytes:
        """Code 201."""
        table = {info.name: group_config(info) for info in self._state.groups.all()}
        version = data_version(self._state, self._replicator)
        return request.success(body=SubscriptionGroupTable(dataVersion=version, subscriptionGroupTable=table).to_json())

    async def one_group(self, request: Request) -> bytes:
        """Code 352."""
        return request.success(body=group_config(self._group(request.ext.get("group", ""))).to_json())

    async def delete(self, request: Request) -> bytes:
        """Code 207. Without `cleanOffset` a group of the same name finds its offsets again."""
        name = request.ext.get("groupName", "")
        clean = (request.ext.get("cleanOffset") or request.ext.get("removeOffset") or "").lower() in ("true", "1")
        info = self._intake.view.group(name)
        if info is not None:
            await self._intake.apply([GroupDel(info.gid, clean)])
        return request.success()

    async def progress(self, request: Request) -> bytes:
        """Code 208: every read queue of every topic that the group has offsets on (or of those asked for)."""
        header = ConsumeStatsHeader.from_ext(request.ext)
        group = self._group(header.consumer_group)
        offsets = self._state.offsets.of_group(group.gid)
        table: dict[MQ, OffsetWrapper] = {}
        for info in self._topics(header, {tid_of(key) for key in offsets}):
            for queue in range(info.read_queues):
                key = key_of(info.tid, queue)
                consumed = offsets.get(key, 0)
                stamp = 0
                if consumed > self._store.queues.first_offset(key) and len(table) < TIMES_MAX:
                    stamp = await self._store.store_time(key, consumed - 1)
                mq = MQ(brokerName=self._config.broker_name, queueId=queue, topic=info.name)
                table[mq] = OffsetWrapper(
                    brokerOffset=self._store.queues.next_offset(key),
                    consumerOffset=consumed,
                    lastTimestamp=stamp,
                    pullOffset=consumed,
                )
        topics = {queue.topic for queue in table}
        tps = sum(self._statistics.finished_per_s(topic, group.name) for topic in topics)
        return request.success(body=ConsumeStats(consumeTps=tps, offsetTable=table).to_json())

    def _topics(self, header: ConsumeStatsHeader, with_offsets: set[int]) -> list[TopicInfo]:
        asked = header.topics()
        if asked:
            return [info for name in asked if (info := self._state.topics.get(name.encode())) is not None]
        return [info for tid in sorted(with_offsets) if (info := self._state.topics.by_id.get(tid)) is not None]

    async def consumers(self, request: Request) -> bytes:
        """Code 203: who is connected here. The remark names what an operator should know (`Members.warnings`)."""
        name = ConsumerConnectionHeader.from_ext(request.ext).consumer_group
        found = self._clients.consumer_group(name)
        newest = found.newest if found is not None else None
        if found is None or newest is None:
            raise Refused(
                ResponseCode.CONSUMER_NOT_ONLINE, f"the consumer group {name} not online: no consumer is connected"
            )
        subscriptions = {
            topic: SubscriptionData.of(topic, each.expression, each.version, each.expression_type)
            for topic, each in found.subscriptions().items()
        }
        return request.success(
            body=ConsumerConnection(
                connectionSet=[_connection(member) for member in found.members.values()],
                consumeFromWhere=newest.from_where,
                consumeType=newest.consume_type,
                messageModel=newest.message_model,
                subscriptionTable=subscriptions,
            ).to_json(),
            remark="; ".join(self._members.warnings(name)),
        )

    async def producers(self, request: Request) -> bytes:
        """Code 204."""
        name = request.ext.get("producerGroup", "")
        found = self._clients.producers(name)
        if not found:
            raise Refused(ResponseCode.SYSTEM_ERROR, f"the producer group {name} not exist: no producer is connected")
        return request.success(body=ProducerConnection(connectionSet=[_connection(each) for each in found]).to_json())

    def _group(self, name: str) -> GroupInfo:
        info = self._state.groups.get(name)
        if info is None:
            raise Refused(
                ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
                f"consumer group {name} does not exist here: its first heartbeat creates it, or updateSubGroup",
            )
        return info


def _check_name(name: str) -> None:
    try:
        names.check_group(name)
    except BadName as error:
        raise Refused(ResponseCode.INVALID_PARAMETER, f"bad consumer group name: {error}") from None


def _connection(client: Consumer | Producer) -> Connection:
    return Connection(
        clientAddr=client.link.peer, clientId=client.client_id, language=client.language, version=client.version
    )
