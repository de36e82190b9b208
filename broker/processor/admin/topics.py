"""Topics: create and change (17, 18), delete (215), list (21, 305), one (351), statistics (202), who consumes (300)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.metadata.ops import Op, TopicDel, key_of
from broker.metadata.state import GroupState
from broker.metadata.topics import TopicInfo
from broker.processor.request import Refused, Request
from broker.replication.base import Replicator
from broker.replication.control import create_topic
from broker.replication.intake import Intake
from broker.service.tables import data_version, topic_config
from trimq.errors import BadName, ProtocolError
from trimq.message import names
from trimq.wire.body.base import decode_body, encode_body
from trimq.wire.body.lock import MQ
from trimq.wire.body.route import TopicList
from trimq.wire.body.stats import TopicOffset, TopicStatsTable
from trimq.wire.body.topic_config import CreateTopicList, TopicConfigTable
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.admin import CreateTopicHeader, TopicStatsHeader

if TYPE_CHECKING:
    from broker.config import BrokerConfig
    from broker.metadata.clients import ClientTable
    from broker.service.registration import Registration
    from broker.store.message_store import MessageStore

__all__ = ["TopicAdmin"]

QUEUES_MAX = 65_536
"""A queue key has 16 bits for the queue."""
_FILTERS = ("SINGLE_TAG", "MULTI_TAG")


class TopicAdmin:
    """Administers the topics of one replica group."""

    def __init__(
        self,
        config: BrokerConfig,
        state: GroupState,
        store: MessageStore,
        intake: Intake,
        replicator: Replicator,
        clients: ClientTable,
        registration: Registration,
    ) -> None:
        self._config = config
        self._state = state
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._clients = clients
        self._registration = registration

    async def create(self, request: Request) -> bytes:
        """Code 17. Answered when the topic is applied and the name servers know it (or do not answer in a second)."""
        header = CreateTopicHeader.from_ext(request.ext)
        _check_new(header)
        name = header.topic.encode()
        known = self._intake.view.topic(name)
        if not header.auto:
            await self._intake.apply([self._op(header, known)])
        elif known is None:
            tables, rules = self._intake.view.tables, self._intake.config.creation
            await self._intake.apply([create_topic(tables, rules, name, b"TBW102", header.write_queue_nums)])
        await self._registration.told()
        return request.success()

    async def create_many(self, request: Request) -> bytes:
        """Code 18: all of them, or none when one is refused."""
        wanted = decode_body(request.command.body, CreateTopicList).topicConfigList
        if not wanted:
            raise Refused(ResponseCode.INVALID_PARAMETER, "the body names no topic (topicConfigList)")
        headers: list[CreateTopicHeader] = []
        for config in wanted:
            header = CreateTopicHeader(
                topic=config.topicName,
                read_queue_nums=config.readQueueNums,
                write_queue_nums=config.writeQueueNums,
                perm=config.perm,
                topic_filter_type=config.topicFilterType,
                topic_sys_flag=config.topicSysFlag,
                order=config.order,
                attributes=",".join(
                    f"{key if key[:1] in '+-' else '+' + key}={value}"
                    for key, value in (config.attributes or {}).items()
                ),
            )
            _check_new(header)
            headers.append(header)
        for header in headers:
            await self._intake.apply([self._op(header, self._intake.view.topic(header.topic.encode()))])
        await self._registration.told()
        return request.success()

    def _op(self, header: CreateTopicHeader, known: TopicInfo | None) -> Op:
        return self._intake.topic_op(
            header.topic,
            read_queues=header.read_queue_nums,
            write_queues=header.write_queue_nums,
            perm=header.perm,
            filter_type=_FILTERS.index(header.topic_filter_type),
            sys_flag=header.topic_sys_flag,
            order=header.order,
            attributes=_attributes(known, header.attributes),
        )

    async def delete(self, request: Request) -> bytes:
        """Code 215: configuration, queues and offsets go; deleting what does not exist is fine."""
        header = TopicStatsHeader.from_ext(request.ext)
        if not header.topic.strip() or names.is_system_topic(header.topic):
            raise Refused(ResponseCode.INVALID_PARAMETER, f"topic {header.topic!r} belongs to the system and stays")
        info = self._intake.view.topic(header.topic.encode())
        if info is not None:
            await self._intake.apply([TopicDel(info.tid)])
            await self._registration.told()
        return request.success()

    async def all_topics(self, request: Request) -> bytes:
        """Code 21."""
        table = {info.name: topic_config(info) for info in self._state.topics.all()}
        version = data_version(self._state, self._replicator)
        return request.success(body=TopicConfigTable(dataVersion=version, topicConfigTable=table).to_json())

    async def system_topics(self, request: Request) -> bytes:
        """Code 305."""
        found = [info.name for info in self._state.topics.all() if names.is_system_topic(info.name)]
        return request.success(body=TopicList(topicList=sorted(found)).to_json())

    async def one_topic(self, request: Request) -> bytes:
        """Code 351. Tools of 5.x ask for it before they read statistics."""
        return request.success(body=topic_config(self._topic(request)).to_json())

    async def statistics(self, request: Request) -> bytes:
        """Code 202: one row per queue, empty ones too."""
        info = self._topic(request)
        table: dict[MQ, TopicOffset] = {}
        for queue in range(max(info.read_queues, info.write_queues)):
            key = key_of(info.tid, queue)
            low, end = self._store.queues.first_offset(key), self._store.queues.next_offset(key)
            stored = await self._store.store_time(key, end - 1) if end > low else 0
            mq = MQ(brokerName=self._config.broker_name, queueId=queue, topic=info.name)
            table[mq] = TopicOffset(lastUpdateTimestamp=stored, maxOffset=end, minOffset=low)
        return request.success(body=TopicStatsTable(offsetTable=table).to_json())

    async def consumed_by(self, request: Request) -> bytes:
        """Code 300: consumer groups that subscribe to the topic now, or have offsets on it."""
        header = TopicStatsHeader.from_ext(request.ext)
        found = {
            name
            for name, group in self._clients.consumer_groups().items()
            if any(header.topic in member.subscriptions for member in group.members.values())
        }
        info = self._state.topics.get(header.topic.encode())
        if info is not None:
            for gid in self._state.offsets.groups_of_topic(info.tid):
                group = self._state.groups.by_id.get(gid)
                if group is not None:
                    found.add(group.name)
        return request.success(body=encode_body({"groupList": sorted(found)}))

    def _topic(self, request: Request) -> TopicInfo:
        name = TopicStatsHeader.from_ext(request.ext).topic
        info = self._state.topics.get(name.encode())
        if info is None:
            raise Refused(
                ResponseCode.TOPIC_NOT_EXIST, f"No topic in this broker. topic: {name}: create it (updateTopic)"
            )
        return info


def _check_new(header: CreateTopicHeader) -> None:
    try:
        names.check_topic(header.topic)
    except BadName as error:
        raise Refused(ResponseCode.INVALID_PARAMETER, f"bad topic name: {error}") from None
    if names.is_reserved(header.topic):
        raise Refused(ResponseCode.INVALID_PARAMETER, f"topic {header.topic} is reserved for the system")
    for what, count in (("readQueueNums", header.read_queue_nums), ("writeQueueNums", header.write_queue_nums)):
        if not 0 < count <= QUEUES_MAX:
            raise Refused(ResponseCode.INVALID_PARAMETER, f"{what} = {count}: allowed is 1 to {QUEUES_MAX}")
    if not 0 <= header.perm <= 7:
        raise Refused(ResponseCode.INVALID_PARAMETER, f"perm = {header.perm}: allowed is 2, 4 or 6")
    if header.topic_filter_type not in _FILTERS:
        raise Refused(
            ResponseCode.INVALID_PARAMETER, f"topicFilterType = {header.topic_filter_type}: {' or '.join(_FILTERS)}"
        )


def _attributes(known: TopicInfo | None, changes: str) -> dict[str, str]:
    """Apply `+name=value,-name` to what the topic has."""
    attributes = dict(known.attributes) if known is not None else {}
    for change in filter(None, (part.strip() for part in changes.split(","))):
        name, equals, value = change[1:].partition("=")
        if change[0] == "+" and equals and name:
            attributes[name] = value
        elif change[0] == "-" and name and not equals:
            attributes.pop(name, None)
        else:
            raise ProtocolError(f"attributes: {change!r} is neither +name=value nor -name")
    return attributes
