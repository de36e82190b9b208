"""Offsets of a running consumer group: reset (222), clone (314), where its members are (223)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.config import BrokerConfig
from broker.metadata.clients import ClientTable
from broker.metadata.groups import GroupInfo
from broker.metadata.ops import key_of, queue_of, tid_of
from broker.metadata.state import GroupState
from broker.metadata.topics import TopicInfo
from broker.processor.request import Refused, Request
from broker.replication.intake import Intake
from broker.service.client_calls import ClientSilent
from broker.service.client_reach import ClientReach, ClientUnknown
from broker.service.offset_resets import OffsetResets
from trimq.errors import ProtocolError
from trimq.wire.body.lock import MQ
from trimq.wire.body.reset import consumer_table_body, read_queue_table, reset_body
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.inspect import CloneOffsetHeader
from trimq.wire.headers.reset import ConsumerStatusHeader, ResetOffsetHeader

if TYPE_CHECKING:
    from broker.store.message_store import MessageStore

__all__ = ["OffsetAdmin"]

ASK_S = 1.5
"""How long one member has to say where it is."""
ASKED_MAX = 64
"""Members asked for one answer."""


class OffsetAdmin:
    """Moves consumer groups of one replica group; register it for a ready leader."""

    def __init__(
        self,
        config: BrokerConfig,
        state: GroupState,
        store: MessageStore,
        intake: Intake,
        clients: ClientTable,
        reach: ClientReach,
        resets: OffsetResets,
    ) -> None:
        self._config = config
        self._state = state
        self._store = store
        self._intake = intake
        self._clients = clients
        self._reach = reach
        self._resets = resets

    async def reset(self, request: Request) -> bytes:
        """Code 222: the answer lists the offsets set."""
        header = ResetOffsetHeader.from_ext(request.ext)
        info, group = self._topic(header.topic), self._group(header.group)
        if not self._config.server_side_reset and not self._resets.member_ids(group.name):
            raise Refused(
                ResponseCode.CONSUMER_NOT_ONLINE,
                f"Consumer not online, so can not reset offset, Group: {group.name} Topic: {info.name}:"
                " set the offsets instead (15), or set useServerSideResetOffset=true",
            )
        if header.queue_id >= info.read_queues:
            raise Refused(
                ResponseCode.INVALID_PARAMETER,
                f"queueId {header.queue_id} is out of range: topic {info.name} has read queues"
                f" 0 to {info.read_queues - 1}",
            )
        queues = range(info.read_queues) if header.queue_id < 0 else (header.queue_id,)
        targets: dict[int, int] = {}
        for key in (key_of(info.tid, queue) for queue in queues):
            target = await self._target(header, key)
            held = self._state.offsets.get(group.gid, key)
            if header.is_force or held is None or target < held:
                targets[key] = target
        await self._resets.apply(group, targets, request.reply.peer, timestamp=header.timestamp)
        table = {self._mq(info, queue_of(key)): offset for key, offset in targets.items()}
        return request.success(body=reset_body(table))

    async def _target(self, header: ResetOffsetHeader, key: int) -> int:
        low, end = self._store.queues.first_offset(key), self._store.queues.next_offset(key)
        if header.offset is not None and header.offset >= 0:
            if not low <= header.offset <= end:
                raise Refused(
                    ResponseCode.INVALID_PARAMETER,
                    f"offset {header.offset} lies outside queue {queue_of(key)}: it holds {low} to {end}",
                )
            return header.offset
        if header.timestamp < 0:
            return end
        return min(max(await self._store.offset_by_time(key, header.timestamp), low), end)

    async def clone(self, request: Request) -> bytes:
        """Code 314: the destination continues where the source is, in one topic or in all of the source's."""
        header = CloneOffsetHeader.from_ext(request.ext)
        source = self._group(header.src_group)
        target = self._intake.view.group(header.dest_group) or self._intake.ensure_group(header.dest_group)
        wanted = self._topic(header.topic).tid if header.topic else None
        offsets = self._state.offsets.of_group(source.gid)
        targets = {key: offset for key, offset in offsets.items() if wanted in (None, tid_of(key))}
        await self._resets.apply(target, targets, request.reply.peer)
        return request.success()

    async def positions(self, request: Request) -> bytes:
        """Code 223: each member's own account of the offsets that it has reached."""
        header = ConsumerStatusHeader.from_ext(request.ext)
        self._topic(header.topic)
        wanted = [
            client_id for client_id in self._resets.member_ids(header.group) if header.client_addr in ("", client_id)
        ]
        if not wanted:
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"No Any Consumer online in the consumer group: [{header.group}]: start one, or ask for its progress",
            )
        tables: dict[str, dict[MQ, int]] = {}
        for client_id in wanted[:ASKED_MAX]:
            command = Command(code=RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, ext=dict(request.ext))
            try:
                answer = await self._reach.ask(client_id, command, group=header.group, within_s=ASK_S)
                if answer.code == ResponseCode.SUCCESS:
                    tables[client_id] = read_queue_table(answer.body)
            except (ClientUnknown, ClientSilent, ProtocolError):
                continue  # it left, or cannot say (C++ clients): the others' answers count
        return request.success(body=consumer_table_body(tables))

    def _mq(self, info: TopicInfo, queue: int) -> MQ:
        return MQ(brokerName=self._config.broker_name, queueId=queue, topic=info.name)

    def _topic(self, name: str) -> TopicInfo:
        info = self._state.topics.get(name.encode())
        if info is None:
            raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"No topic in this broker. topic: {name}: create it first")
        return info

    def _group(self, name: str) -> GroupInfo:
        info = self._intake.view.group(name)
        if info is None:
            raise Refused(
                ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
                f"consumer group {name} does not exist here: its first heartbeat creates it, or updateSubGroup",
            )
        return info
