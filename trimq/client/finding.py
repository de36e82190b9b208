"""Finding messages: by id, by key, by time; and who has consumed one.

An offset id names an address and a place in a log. The address may be dead by now, or belong to another machine, so
every replica group is asked for that place and the id of what it has there is compared. A unique id and a business key
are looked up in the key index of every group that holds the topic.

The track of a message answers "who has consumed it?" as `mqadmin queryMsgById` does: by each consumer group's offset in
the message's queue, its subscription, and who is connected.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from trimq.client.broker_api import BrokerApi
from trimq.client.incoming import decode_records
from trimq.client.instance import Instance, refusal
from trimq.client.model import Queue, Tag, to_ms
from trimq.client.pull_consumer import UNACKNOWLEDGED
from trimq.client.received import Received
from trimq.errors import BadRequest, NoRoute
from trimq.message.ids import parse_offset_message_id
from trimq.message.record import unpack_records
from trimq.wire.body.base import Body, decode_body
from trimq.wire.body.running import ConsumeDirectlyResult, ConsumerRunningInfo
from trimq.wire.body.stats import ConsumerConnection, ConsumeStats
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.admin import ConsumerConnectionHeader, ConsumeStatsHeader, TopicStatsHeader
from trimq.wire.headers.query import QueryMessageHeader, ViewMessageHeader

__all__ = ["Finding", "Track", "TrackKind"]

FOREVER_MS = (1 << 63) - 1
LIMIT_MAX = 64


class TrackKind(enum.Enum):
    """What became of a message in one consumer group; the names are mqadmin's."""

    CONSUMED = "CONSUMED"
    CONSUMED_BUT_FILTERED = "CONSUMED_BUT_FILTERED"
    """Passed by: its tag is not among those subscribed."""
    PULL = "PULL"
    """Its members pull by hand: nobody but they can say."""
    NOT_CONSUME_YET = "NOT_CONSUME_YET"
    NOT_ONLINE = "NOT_ONLINE"
    """Nobody of the group is connected, and its offset has not passed the message."""
    CONSUME_BROADCASTING = "CONSUME_BROADCASTING"
    """Every member reads for itself and keeps its own offset."""
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Track:
    """One consumer group's part in a message's life."""

    group: str
    kind: TrackKind
    detail: str = ""


class _GroupList(Body, frozen=True, kw_only=True):
    groupList: list[str] = []  # noqa: RUF012  (msgspec gives each value a list of its own)


class Finding:
    """See the module docstring. Part of `trimq.Admin`."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._api = BrokerApi(instance)

    async def by_offset_id(self, message_id: str) -> Received | None:
        try:
            _, position = parse_offset_message_id(message_id)
        except BadRequest:
            return None
        header = ViewMessageHeader(offset=position)
        for name in await self._all_groups():
            command = Command(code=RequestCode.VIEW_MESSAGE_BY_ID, ext=header.to_ext())
            answer = await self._instance.call(name, command)
            if answer.code == ResponseCode.SUCCESS:
                for message in _messages(answer.body, name):
                    if message.offset_id == message_id.upper():
                        return message
        return None

    async def by_key(
        self, topic: str, key: str, *, unique: bool, since: datetime | None, until: datetime | None, limit: int
    ) -> Sequence[Received]:
        if not key or not 0 < limit <= LIMIT_MAX:
            raise BadRequest(f"key {key!r}, limit {limit}: a key is needed, and 1 to {LIMIT_MAX} messages")
        header = QueryMessageHeader(
            topic=topic,
            key=key,
            max_num=limit,
            begin_timestamp=0 if since is None else to_ms(since),
            end_timestamp=FOREVER_MS if until is None else to_ms(until),
            unique_key=unique,
        )
        found: list[Received] = []
        for group in (await self._instance.routes.route(topic)).groups:
            command = Command(code=RequestCode.QUERY_MESSAGE, ext=header.to_ext())
            answer = await self._instance.call(group.name, command)
            if answer.code == ResponseCode.SUCCESS:
                found += _messages(answer.body, group.name)
            elif answer.code != ResponseCode.QUERY_NOT_FOUND:
                raise refusal(answer, group.name)
        exact = [message for message in found if key == message.id or (not unique and key in message.keys)]
        return sorted(exact, key=lambda message: message.stored_ms, reverse=True)[:limit]

    async def track(self, message: Received) -> Sequence[Track]:
        at = message.queue.group
        command = Command(
            code=RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, ext=TopicStatsHeader(topic=message.queue.topic).to_ext()
        )
        answer = await self._instance.call(at, command)
        if answer.code != ResponseCode.SUCCESS:
            raise refusal(answer, at)
        groups = sorted(decode_body(answer.body, _GroupList).groupList)
        return [await self._track_of(group, message) for group in groups]

    async def _track_of(self, group: str, message: Received) -> Track:
        at = message.queue.group
        asked = Command(
            code=RequestCode.GET_CONSUMER_CONNECTION_LIST, ext=ConsumerConnectionHeader(consumer_group=group).to_ext()
        )
        answer = await self._instance.call(at, asked)
        people = ConsumerConnection.from_json(answer.body) if answer.code == ResponseCode.SUCCESS else None
        if people is not None and people.messageModel == "BROADCASTING":
            return Track(group, TrackKind.CONSUME_BROADCASTING)
        if people is not None and people.consumeType == "CONSUME_ACTIVELY":
            return Track(group, TrackKind.PULL)
        passed = await self._passed(group, message)
        if passed is None:
            return Track(group, TrackKind.UNKNOWN, "its progress cannot be read")
        if passed and people is not None and _filtered(people, message):
            return Track(group, TrackKind.CONSUMED_BUT_FILTERED)
        if passed:
            return Track(group, TrackKind.CONSUMED)
        if people is None:
            return Track(group, TrackKind.NOT_ONLINE)
        return Track(group, TrackKind.NOT_CONSUME_YET)

    async def _passed(self, group: str, message: Received) -> bool | None:
        queue = message.queue
        header = ConsumeStatsHeader(consumer_group=group, topic=queue.topic)
        command = Command(code=RequestCode.GET_CONSUME_STATS, ext=header.to_ext())
        answer = await self._instance.call(queue.group, command)
        if answer.code != ResponseCode.SUCCESS:
            return None
        for mq, offsets in ConsumeStats.from_json(answer.body).offsetTable.items():
            if (mq.topic, mq.brokerName, mq.queueId) == (queue.topic, queue.group, queue.id):
                return offsets.consumerOffset > message.offset
        return False

    async def consume_directly(self, group: str, client_id: str, message: Received) -> ConsumeDirectlyResult:
        ext = {"consumerGroup": group, "clientId": client_id, "msgId": message.offset_id, "topic": message.queue.topic}
        command = Command(code=RequestCode.CONSUME_MESSAGE_DIRECTLY, ext=ext)
        answer = await self._instance.call_once(message.queue.group, command)
        if answer.code != ResponseCode.SUCCESS:
            raise refusal(answer, message.queue.group)
        return ConsumeDirectlyResult.from_json(answer.body)

    async def running_info(self, group: str, client_id: str) -> ConsumerRunningInfo:
        last = NoRoute("no broker is known", advice="check the name server's address")
        for name in await self._all_groups():
            ext = {"consumerGroup": group, "clientId": client_id, "jstackEnable": "false"}
            answer = await self._instance.call(name, Command(code=RequestCode.GET_CONSUMER_RUNNING_INFO, ext=ext))
            if answer.code == ResponseCode.SUCCESS:
                return ConsumerRunningInfo.from_json(answer.body)
            last = NoRoute(answer.remark, advice="see who is connected: trimq admin consumerProgress")
        raise last

    async def _all_groups(self) -> list[str]:
        info = await self._instance.namesrv.cluster()
        for name, broker in info.brokerAddrTable.items():
            self._instance.routes.group(name).routed(dict(broker.brokerAddrs))
        return sorted(info.brokerAddrTable)


def _messages(body: bytes, group: str) -> list[Received]:
    found: list[Received] = []
    at = 0
    for record in unpack_records(body):
        queue = Queue(record.topic.decode("utf-8", "replace"), group, record.queue_id)
        found += decode_records(body[at : at + record.size], queue, Tag(), UNACKNOWLEDGED)
        at += record.size
    return found


def _filtered(people: ConsumerConnection, message: Received) -> bool:
    """Is the message one that the group's subscription leaves out? (Conditions are the broker's business.)"""
    subscription = people.subscriptionTable.get(message.queue.topic)
    if subscription is None or subscription.expressionType not in ("", "TAG"):
        return False
    wanted = Tag(subscription.subString).names
    return bool(wanted) and message.tag not in wanted
