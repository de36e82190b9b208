"""How consumer groups stand, beyond 208: every group at once (317), time spans (303), topics and subscription of
a group (343, 345), corrections (308).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from broker.metadata.groups import GroupInfo
from broker.metadata.ops import key_of, tid_of
from broker.metadata.state import GroupState
from broker.metadata.topics import TopicInfo
from broker.processor.request import Refused, Request
from broker.replication.intake import Intake
from trimq.wire.body.base import encode_body
from trimq.wire.body.heartbeat import SubscriptionData
from trimq.wire.body.inspect import QueueTimeSpan, TimeSpans, consume_stats_list
from trimq.wire.body.lock import MQ
from trimq.wire.body.route import TopicList
from trimq.wire.body.stats import ConsumeStats, OffsetWrapper
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.inspect import CorrectionOffsetHeader, SubscriptionHeader, TimeSpanHeader

if TYPE_CHECKING:
    from broker.config import BrokerConfig
    from broker.metadata.clients import ClientTable
    from broker.store.message_store import MessageStore
    from trimq.env import Clock

__all__ = ["ProgressAdmin"]

TIMES_MAX = 256
"""Queues of one answer whose last consumed message is looked up for its time; the rest say 0."""
_I64_MAX = (1 << 63) - 1


class ProgressAdmin:
    """Tells about consumer groups of one replica group; register it for a ready leader."""

    def __init__(
        self,
        config: BrokerConfig,
        state: GroupState,
        store: MessageStore,
        intake: Intake,
        clients: ClientTable,
        clock: Clock,
    ) -> None:
        self._config = config
        self._state = state
        self._store = store
        self._intake = intake
        self._clients = clients
        self._clock = clock

    async def all_progress(self, request: Request) -> bytes:
        """Code 317: each consumer group's progress, one table per topic."""
        looked_up = 0
        found: dict[str, list[ConsumeStats]] = {}
        for group in sorted(self._state.groups.all(), key=lambda info: info.name):
            offsets = self._state.offsets.of_group(group.gid)
            listed: list[ConsumeStats] = []
            for info in self._topics_of(group):
                await trio.lowlevel.checkpoint()
                table: dict[MQ, OffsetWrapper] = {}
                for queue in range(info.read_queues):
                    key = key_of(info.tid, queue)
                    consumed, stamp = offsets.get(key, 0), 0
                    if consumed > self._store.queues.first_offset(key) and looked_up < TIMES_MAX:
                        looked_up += 1
                        stamp = await self._store.store_time(key, consumed - 1)
                    table[self._mq(info, queue)] = OffsetWrapper(
                        brokerOffset=self._store.queues.next_offset(key),
                        consumerOffset=consumed,
                        lastTimestamp=stamp,
                        pullOffset=consumed,
                    )
                listed.append(ConsumeStats(offsetTable=table))
            if listed:
                found[group.name] = listed
        return request.success(body=consume_stats_list(self._config.broker_name, found))

    async def time_spans(self, request: Request) -> bytes:
        """Code 303: store times of each queue's first and last message, and of the last one consumed."""
        header = TimeSpanHeader.from_ext(request.ext)
        info, group = self._topic(header.topic), self._state.groups.get(header.group)
        offsets = self._state.offsets.of_group(group.gid) if group is not None else {}
        now = self._clock.wall_ms()
        spans: list[QueueTimeSpan] = []
        for queue in range(info.write_queues):
            key = key_of(info.tid, queue)
            low, end = self._store.queues.first_offset(key), self._store.queues.next_offset(key)
            consumed = offsets.get(key, -1)
            stamp = await self._store.store_time(key, max(consumed - 1, low)) if consumed >= 0 and end > low else 0
            waiting = 0
            if 0 <= consumed < end:
                waiting = max(0, now - await self._store.store_time(key, max(consumed, low)))
            spans.append(
                QueueTimeSpan(
                    consumeTimeStamp=stamp,
                    delayTime=waiting,
                    maxTimeStamp=await self._store.store_time(key, end - 1) if end > low else 0,
                    messageQueue=self._mq(info, queue),
                    minTimeStamp=await self._store.store_time(key, low) if end > low else 0,
                )
            )
        return request.success(body=TimeSpans(consumeTimeSpanSet=spans).to_json())

    async def corrections(self, request: Request) -> bytes:
        """Code 308: per queue the lowest offset of the groups, or the largest number where `compareGroup` is lower."""
        header = CorrectionOffsetHeader.from_ext(request.ext)
        info = self._topic(header.topic)
        names = [name for name in header.filter_groups.split(",") if name]
        groups = [group for group in self._state.groups.all() if not names or group.name in names]
        compared = self._state.groups.get(header.compare_group)
        found: dict[str, int] = {}
        for queue in range(info.read_queues):
            key = key_of(info.tid, queue)
            held = [at for group in groups if (at := self._state.offsets.get(group.gid, key)) is not None]
            own = self._state.offsets.get(compared.gid, key) if compared is not None else None
            if held and own is not None:
                found[str(queue)] = _I64_MAX if min(held) > own else min(held)
        return request.success(body=encode_body({"correctionOffsets": found}))

    async def topics(self, request: Request) -> bytes:
        """Code 343: topics that a group has offsets on or subscribes to."""
        header = SubscriptionHeader.from_ext(request.ext)
        live = self._clients.consumer_group(header.group)
        names = set(live.subscriptions()) if live is not None else set()
        group = self._state.groups.get(header.group)
        if group is not None:
            names |= {info.name for info in self._topics_of(group)}
        return request.success(body=TopicList(topicList=sorted(names)).to_json())

    async def subscription(self, request: Request) -> bytes:
        """Code 345: how a connected group subscribes to a topic; nothing when it does not."""
        header = SubscriptionHeader.from_ext(request.ext)
        live = self._clients.consumer_group(header.group)
        held = live.subscriptions().get(header.topic) if live is not None else None
        body: dict[str, object] = {"group": header.group, "topic": header.topic}
        if held is not None:
            body["subscriptionData"] = SubscriptionData.of(
                header.topic, held.expression, held.version, held.expression_type
            )
        return request.success(body=encode_body(body))

    def _topics_of(self, group: GroupInfo) -> list[TopicInfo]:
        tids = sorted({tid_of(key) for key in self._state.offsets.of_group(group.gid)})
        return [info for tid in tids if (info := self._state.topics.by_id.get(tid)) is not None]

    def _mq(self, info: TopicInfo, queue: int) -> MQ:
        return MQ(brokerName=self._config.broker_name, queueId=queue, topic=info.name)

    def _topic(self, name: str) -> TopicInfo:
        info = self._state.topics.get(name.encode())
        if info is None:
            raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"No topic in this broker. topic: {name}: create it first")
        return info
