"""The insides of one replica, for operators: index units (321), statistics (315), replication (907), terms (1007)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.filter.tags import FilterError, TagFilter, parse_tags
from broker.metadata.ops import key_of
from broker.metadata.state import GroupState
from broker.processor.request import Refused, Request
from broker.replication.base import PeerStatus, Replicator, Role
from broker.service.statistics import Statistics
from broker.store.errors import StoreError
from broker.store.index_segment import UNIT_WORDS
from trimq.wire.body.inspect import (
    ConnectionRuntime,
    EpochEntry,
    EpochEntryCache,
    HARuntimeInfo,
    IndexUnit,
    QueryConsumeQueue,
)
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.inspect import QueryConsumeQueueHeader, StatsDataHeader

if TYPE_CHECKING:
    from broker.config import BrokerConfig
    from broker.metadata.clients import ClientTable
    from broker.store.message_store import MessageStore

__all__ = ["Inspection"]

UNITS_MAX = 1_024
"""Index units in one answer."""
IN_SYNC_BYTES = 256 << 20
"""A connected replica no further behind than this counts as in sync (RocketMQ's haMaxGapNotInSync)."""


class Inspection:
    """Answers of whichever replica is asked, about itself."""

    def __init__(
        self,
        config: BrokerConfig,
        state: GroupState,
        store: MessageStore,
        replicator: Replicator,
        clients: ClientTable,
        statistics: Statistics,
    ) -> None:
        self._config = config
        self._state = state
        self._store = store
        self._replicator = replicator
        self._clients = clients
        self._statistics = statistics

    async def index_units(self, request: Request) -> bytes:
        """Code 321: units of a queue's index; with a consumer group, whether its filter takes them."""
        header = QueryConsumeQueueHeader.from_ext(request.ext)
        info = self._state.topics.get(header.topic.encode())
        if info is None:
            raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"No topic in this broker. topic: {header.topic}")
        if not 0 <= header.queue_id < max(info.read_queues, info.write_queues):
            raise Refused(ResponseCode.INVALID_PARAMETER, f"{header.topic} has no queue {header.queue_id}")
        key = key_of(info.tid, header.queue_id)
        low, end = self._store.queues.first_offset(key), self._store.queues.next_offset(key)
        at = max(low, header.index)
        words = None
        if at < end:
            try:
                words = await self._store.queues.units(key, at, min(max(1, header.count), UNITS_MAX))
            except (LookupError, StoreError, OSError) as error:
                raise Refused(ResponseCode.SYSTEM_ERROR, f"the index cannot be read at {at}: {error}") from None
        wanted = self._filter(header)
        units = [
            IndexUnit(
                physicOffset=words[place],
                physicSize=words[place + 1],
                tagsCode=words[place + 2],
                eval=wanted is None or wanted.codes is None or words[place + 2] in wanted.codes,
            )
            for place in range(0, len(words or ()), UNIT_WORDS)
            if words is not None
        ]
        body = QueryConsumeQueue(maxQueueIndex=end, minQueueIndex=low, queueData=units)
        return request.success(body=body.to_json())

    def _filter(self, header: QueryConsumeQueueHeader) -> TagFilter | None:
        live = self._clients.consumer_group(header.consumer_group) if header.consumer_group else None
        held = live.subscriptions().get(header.topic) if live is not None else None
        if held is None:
            return None
        try:
            return parse_tags(held.expression, held.expression_type)
        except FilterError:
            return None

    async def statistics(self, request: Request) -> bytes:
        """Code 315: `TOPIC_PUT_NUMS` of a topic, `GROUP_GET_NUMS` of `topic@group`, and so on."""
        header = StatsDataHeader.from_ext(request.ext)
        found = self._statistics.data(header.stats_name, header.stats_key)
        if found is None:
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"The stats <{header.stats_name}> <{header.stats_key}> not exist: nothing was counted under this name",
            )
        return request.success(body=found.to_json())

    async def replication(self, request: Request) -> bytes:
        """Code 907: the other replicas, as the leader sees them."""
        status = self._replicator.status()
        addresses = dict((*self._replicator.replicas.voters, *self._replicator.replicas.learners))
        end = self._store.log.last.end
        rows = [self._row(peer, addresses.get(peer.node_id, peer.node_id), end) for peer in status.peers]
        leading = status.role is Role.LEADER
        body = HARuntimeInfo(
            master=leading,
            masterCommitLogMaxOffset=end if leading else 0,
            haConnectionInfo=rows if leading else [],
            inSyncSlaveNums=sum(row.inSync for row in rows) if leading else 0,
            haClientRuntimeInfo={}
            if leading
            else {"masterAddr": status.leader.addr, "maxOffset": end, "activated": bool(status.leader.addr)},
        )
        return request.success(body=body.to_json())

    @staticmethod
    def _row(peer: PeerStatus, address: str, end: int) -> ConnectionRuntime:
        return ConnectionRuntime(
            addr=address,
            diff=peer.lag_bytes,
            inSync=peer.connected and peer.lag_bytes < IN_SYNC_BYTES,
            slaveAckOffset=max(0, end - peer.lag_bytes),
            transferFromWhere=max(0, end - peer.lag_bytes),
        )

    async def epochs(self, request: Request) -> bytes:
        """Code 1007: the terms of this log, each with the positions of its entries."""
        starts = self._store.log.terms.starts()
        end = self._store.log.last.end
        ends = [*(start.first_position for start in starts[1:]), end]
        body = EpochEntryCache(
            brokerName=self._config.broker_name,
            clusterName=self._config.cluster_name,
            brokerId=0 if self._replicator.role.role is Role.LEADER else self._rank() + 1,
            epochList=[
                EpochEntry(epoch=start.term, startOffset=start.first_position, endOffset=until)
                for start, until in zip(starts, ends, strict=True)
            ],
            maxOffset=end,
        )
        return request.success(body=body.to_json())

    def _rank(self) -> int:
        return self._replicator.replicas.rank(self._replicator.node_id)
