"""What consumers ask the leader: who else is there (38), offsets (14, 29 to 32), queue locks (41, 42).

Answers that a later one must not contradict (consumer list, committed offset, end of a queue) are given after a
barrier: leadership confirmed, everything acknowledged so far applied. So no consumer is ever told an older figure than
another one was (docs/architecture.md, "One read").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.config import BrokerConfig
from broker.metadata.ops import key_of
from broker.metadata.state import GroupState
from broker.metadata.topics import TopicInfo
from broker.processor.request import Refused, Request
from broker.replication.base import Replicator
from broker.replication.intake import Intake
from broker.replication.pending_offsets import PendingCollector
from broker.service.leases import Leases
from broker.service.members import Members
from broker.store.errors import StoreError
from trimq.wire.body.consumer_list import ConsumerIdList
from trimq.wire.body.lock import MQ, LockRequest, LockResponse
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.client import ConsumerListHeader
from trimq.wire.headers.offset import (
    EarliestStoreTimeHeader,
    EarliestStoreTimeResponse,
    GetMaxOffsetHeader,
    GetMinOffsetHeader,
    OffsetResponse,
    QueryOffsetHeader,
    SearchOffsetHeader,
)

if TYPE_CHECKING:
    from broker.store.message_store import MessageStore

__all__ = ["ConsumerProcessor"]

HOT_BYTES = 256 << 20
"""A queue whose first message is within so many bytes of the log's end counts as young (see `query_offset`)."""
LOCKS_MAX = 65_536


class ConsumerProcessor:
    """Serves consumers of one replica. Register all of it for a ready leader."""

    def __init__(
        self,
        config: BrokerConfig,
        state: GroupState,
        store: MessageStore,
        intake: Intake,
        replicator: Replicator,
        members: Members,
        leases: Leases,
        pending: PendingCollector,
    ) -> None:
        self._config = config
        self._state = state
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._members = members
        self._leases = leases
        self._pending = pending

    async def consumer_list(self, request: Request) -> bytes:
        """Code 38."""
        group = ConsumerListHeader.from_ext(request.ext).consumer_group
        await self._replicator.barrier()
        ids = self._members.consumer_ids(group)
        if not ids:
            raise Refused(
                ResponseCode.SYSTEM_ERROR, f"no consumer for this group, {group}: send a heartbeat, then ask again"
            )
        return request.success(body=ConsumerIdList(consumerIdList=ids).to_json())

    async def query_offset(self, request: Request) -> bytes:
        """Code 14. "Never committed" is 22, unless the queue is young: then 0, so that nothing of it is skipped."""
        header = QueryOffsetHeader.from_ext(request.ext)
        await self._pending.complete()
        await self._replicator.barrier()
        group = self._state.groups.get(header.consumer_group)
        topic = self._state.topics.get(header.topic.encode())
        if topic is not None and group is not None:
            offset = self._state.offsets.get(group.gid, key_of(topic.tid, header.queue_id))
            if offset is not None:
                return request.success(OffsetResponse(offset=offset).to_ext())
        if topic is not None and header.set_zero_if_not_found and await self._young(topic, header.queue_id):
            return request.success(OffsetResponse(offset=0).to_ext())
        raise Refused(ResponseCode.QUERY_NOT_FOUND, "Not found, V3_0_6_SNAPSHOT maybe this group consumer boot first")

    async def _young(self, topic: TopicInfo, queue: int) -> bool:
        """Does the queue still begin at 0, not far behind the log's end?"""
        key = key_of(topic.tid, queue)
        queues = self._store.queues
        if queues.first_offset(key) > 0:
            return False
        if queues.next_offset(key) == 0:
            return True
        try:
            words = await queues.units(key, 0, 1)
        except (LookupError, StoreError, OSError):
            return False
        return self._replicator.visible() - words[0] <= HOT_BYTES

    async def max_offset(self, request: Request) -> bytes:
        """Code 30: the queue's exclusive end."""
        header = GetMaxOffsetHeader.from_ext(request.ext)
        await self._replicator.barrier()
        key = self._key(header.topic, header.queue_id)
        return request.success(OffsetResponse(offset=self._store.queues.next_offset(key)).to_ext())

    async def min_offset(self, request: Request) -> bytes:
        """Code 31."""
        header = GetMinOffsetHeader.from_ext(request.ext)
        key = self._key(header.topic, header.queue_id)
        return request.success(OffsetResponse(offset=self._store.queues.first_offset(key)).to_ext())

    async def search_offset(self, request: Request) -> bytes:
        """Code 29: an offset by store time."""
        header = SearchOffsetHeader.from_ext(request.ext)
        key = self._key(header.topic, header.queue_id)
        upper = header.boundary_type.upper() == "UPPER"
        offset = await self._store.offset_by_time(key, header.timestamp, upper=upper)
        return request.success(OffsetResponse(offset=offset).to_ext())

    async def earliest_time(self, request: Request) -> bytes:
        """Code 32: store time of the queue's first message, -1 when it has none."""
        header = EarliestStoreTimeHeader.from_ext(request.ext)
        key = self._key(header.topic, header.queue_id)
        time_ms = await self._store.earliest_store_time(key)
        return request.success(EarliestStoreTimeResponse(timestamp=time_ms).to_ext())

    def _key(self, topic: str, queue: int) -> int:
        info = self._state.topics.get(topic.encode())
        if info is None:
            raise Refused(
                ResponseCode.TOPIC_NOT_EXIST, f"topic {topic} does not exist here: create it or refresh the route"
            )
        if not 0 <= queue < max(info.read_queues, info.write_queues):
            raise Refused(
                ResponseCode.INVALID_PARAMETER,
                f"queueId {queue} is out of range: topic {topic} has queues"
                f" 0 to {max(info.read_queues, info.write_queues) - 1}",
            )
        return key_of(info.tid, queue)

    async def lock(self, request: Request) -> bytes:
        """Code 41: the subset of queues that the client owns now."""
        body, gid, keys = self._locks(request)
        if gid == 0:
            gid = self._intake.ensure_group(body.consumerGroup).gid
        owned = await self._leases.lock(gid, body.clientId, list(keys))
        return request.success(body=LockResponse(lockOKMQSet=[keys[key] for key in owned]).to_json())

    async def unlock(self, request: Request) -> bytes:
        """Code 42."""
        body, gid, keys = self._locks(request)
        if gid:
            await self._leases.unlock(gid, body.clientId, list(keys))
        return request.success()

    def _locks(self, request: Request) -> tuple[LockRequest, int, dict[int, MQ]]:
        """The body, the consumer group's id (0: unknown yet) and the queues of ours that it names, by key."""
        body = LockRequest.from_json(request.command.body)
        if not body.clientId or not body.consumerGroup:
            raise Refused(ResponseCode.SYSTEM_ERROR, "a lock names clientId and consumerGroup")
        if len(body.mqSet) > LOCKS_MAX:
            raise Refused(ResponseCode.SYSTEM_ERROR, f"at most {LOCKS_MAX} queues in one lock request")
        keys: dict[int, MQ] = {}
        for queue in body.mqSet:
            info = self._intake.view.topic(queue.topic.encode())
            if (
                info is not None
                and 0 <= queue.queueId < max(info.read_queues, info.write_queues)
                and queue.brokerName in ("", self._config.broker_name)
            ):
                keys[key_of(info.tid, queue.queueId)] = queue
        group = self._intake.view.group(body.consumerGroup)
        if group is None and not self._intake.config.creation.auto_create_group:
            raise Refused(
                ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"consumer group {body.consumerGroup} does not exist here"
            )
        return body, group.gid if group is not None else 0, keys
