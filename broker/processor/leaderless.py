"""What consumers hear while nobody leads: offsets kept here, marked provisional; under master-slave also who is there.

An election is short, but a majority may be gone for long, and consumers go on reading what is committed. So a replica
that knows no leader keeps offset updates (the highest wins) and answers queries with max(applied, kept) marked
`provisional=1`; an update that wants an answer is still refused, since nobody may be told "stored". As soon as a
leader is known the kept rows travel to it as ordinary updates, whose rules never let an offset go back.

A master may be down for minutes, and nobody takes over by itself. So a slave then answers consumer lists (38) from the
heartbeats that it gets like every replica: consumers that start meanwhile find their share. Under Raft it does not:
there a replica without a leader is on the wrong side of a partition, and the consumers on the other side go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import cbor2

from broker.metadata.ops import key_of
from broker.metadata.state import GroupState
from broker.replication.base import Outcome, Replicator, RoleEvent, Verdict
from broker.replication.forward import Forwarder
from broker.replication.ha.rules import RAFT
from broker.replication.intake import Intake
from trimq.errors import ProtocolError
from trimq.wire.body.consumer_list import ConsumerIdList
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import FLAG_ONEWAY, Command, encode, encode_response
from trimq.wire.headers.client import ConsumerListHeader
from trimq.wire.headers.offset import OffsetResponse, QueryOffsetHeader, UpdateOffsetHeader

__all__ = ["Leaderless"]

log = logging.getLogger(__name__)


class Leaderless:
    """Offsets of one replica in times without a leader."""

    def __init__(
        self,
        state: GroupState,
        intake: Intake,
        replicator: Replicator,
        forwarder: Forwarder | None,
        members: Callable[[str], list[str]],
    ) -> None:
        """`members`: the client ids of a consumer group, as this replica sees them."""
        self._state = state
        self._members = members
        self._intake = intake
        self._replicator = replicator
        self._forwarder = forwarder

    def pack(self) -> bytes:
        """What is kept, for the marks file: it survives a restart."""
        rows = self._intake.provisional.rows()
        return cbor2.dumps(rows) if rows else b""

    def unpack(self, data: bytes) -> None:
        """Take over what an earlier run kept. Bytes that cannot be read are of a newer version: nothing is lost but
        these few offsets, which nobody was told."""
        try:
            rows = cbor2.loads(data) if data else []
            for group, topic, queue, offset in rows:
                self._intake.provisional.put(str(group), str(topic), int(queue), int(offset))
        except (cbor2.CBORDecodeError, ValueError, TypeError) as error:
            log.warning("offsets kept without a leader cannot be read", extra={"error": str(error)})

    def note(self, command: Command) -> None:
        """A leader-only request arrived and no leader is known: keep it if it is an offset update."""
        if command.code != RequestCode.UPDATE_CONSUMER_OFFSET or self._replicator.leader.leader_id:
            return
        try:
            header = UpdateOffsetHeader.from_ext(command.ext)
        except ProtocolError:
            return  # it gets its answer where it is served or refused
        self._intake.provisional.put(header.consumer_group, header.topic, header.queue_id, header.commit_offset)

    def answer(self, command: Command, outcome: Outcome) -> bytes | None:
        """A provisional answer to a question that found no leader in time; None for what only a leader may say."""
        if outcome.verdict is not Verdict.LOST:
            return None
        try:
            if command.code == RequestCode.QUERY_CONSUMER_OFFSET:
                return self._offset(command, QueryOffsetHeader.from_ext(command.ext))
            if command.code == RequestCode.GET_CONSUMER_LIST_BY_GROUP and self._replicator.strategy != RAFT:
                return self._consumers(command, ConsumerListHeader.from_ext(command.ext).consumer_group)
        except ProtocolError:
            pass  # it gets its answer where it is served or refused
        return None

    def _consumers(self, command: Command, group: str) -> bytes | None:
        ids = self._members(group)
        if not ids:
            return None
        body = ConsumerIdList(consumerIdList=ids).to_json()
        return encode_response(command.opaque, command.serialize, ResponseCode.SUCCESS, {}, "", body)

    def _offset(self, command: Command, header: QueryOffsetHeader) -> bytes | None:
        known = self._intake.provisional.get(
            header.consumer_group, header.topic, header.queue_id, self._applied(header)
        )
        if known is None:
            return None
        ext = OffsetResponse(offset=known, provisional=True).to_ext()
        return encode_response(command.opaque, command.serialize, ResponseCode.SUCCESS, ext)

    def _applied(self, header: QueryOffsetHeader) -> int | None:
        group = self._state.groups.get(header.consumer_group)
        topic = self._state.topics.get(header.topic.encode())
        if group is None or topic is None:
            return None
        return self._state.offsets.get(group.gid, key_of(topic.tid, header.queue_id))

    def role_changed(self, event: RoleEvent) -> None:
        """Another replica leads: hand over what was kept. (A leader's own rows: `PendingCollector`.)"""
        provisional = self._intake.provisional
        leader = event.leader.leader_id
        if self._forwarder is None or not len(provisional) or leader in ("", self._replicator.node_id):
            return
        for group, topic, queue, offset in provisional.take():
            header = UpdateOffsetHeader(consumer_group=group, topic=topic, queue_id=queue, commit_offset=offset)
            self._forwarder.tell(
                encode(Command(code=RequestCode.UPDATE_CONSUMER_OFFSET, flag=FLAG_ONEWAY, ext=header.to_ext()))
            )
