"""Finding messages: by key (12) and by position in the log (33). Any replica answers from what it has dispatched.

A message is stored at the same position on every replica, so an answer names the leader of now as its store host and
not the one that stored it: RocketMQ's tools send what they ask next of a message to that address, and look for it
among the masters (`queryMsgByUniqueKey` would say after any failover that nobody has consumed it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from broker.metadata.state import GroupState
from broker.processor.request import Refused, Request
from broker.replication.base import NotLeader, Replicator
from broker.store.errors import StoreError
from trimq.errors import BadRequest, RecordError
from trimq.message import properties
from trimq.message.ids import host_bytes
from trimq.message.record import Record, unpack_record, with_store_host
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.query import QueryMessageHeader, QueryMessageResponse, ViewMessageHeader

if TYPE_CHECKING:
    from broker.store.message_store import MessageStore

__all__ = ["QueryProcessor"]

UNIQUE_MAX = 32
RESULTS_MAX = 64
CANDIDATES_MAX = 512
"""Positions looked at for one query: the index answers by hash, so some may be other keys."""
BODY_MAX_BYTES = 8 << 20


class QueryProcessor:
    """Looks messages up in one replica."""

    def __init__(self, state: GroupState, store: MessageStore, replicator: Replicator) -> None:
        self._state = state
        self._store = store
        self._replicator = replicator

    def _check(self) -> None:
        if not self._replicator.serves_reads:
            raise NotLeader(self._replicator.leader)

    async def view(self, request: Request) -> bytes:
        """Code 33: the stored message at a position."""
        self._check()
        header = ViewMessageHeader.from_ext(request.ext)
        found = await self._record(header.offset)
        if found is None:
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"can not find message by the offset, {header.offset}: it expired, or belongs to another group",
            )
        return request.success(body=found[0])

    async def query(self, request: Request) -> bytes:
        """Code 12: messages with a key, newest first."""
        self._check()
        header = QueryMessageHeader.from_ext(request.ext)
        topic = self._state.topics.get(header.topic.encode())
        nothing = Refused(ResponseCode.QUERY_NOT_FOUND, "can not find message, maybe time range not correct")
        if topic is None or not header.key:
            raise nothing
        limit = UNIQUE_MAX if header.unique_key else min(max(header.max_num, 1), RESULTS_MAX)
        positions = await self._store.query_key(
            topic.tid, header.key.encode(), header.begin_timestamp, header.end_timestamp, CANDIDATES_MAX
        )
        found: list[bytes] = []
        newest: Record | None = None
        size = 0
        for position in positions:
            await trio.lowlevel.checkpoint()
            read = await self._record(position)
            if read is None or not _carries(read[1], header):
                continue
            raw, record = read
            if size + len(raw) > BODY_MAX_BYTES and found:
                break
            found.append(raw)
            size += len(raw)
            if newest is None or record.position > newest.position:
                newest = record
            if len(found) >= limit:
                break
        if newest is None:
            raise nothing
        ext = QueryMessageResponse(
            index_last_update_timestamp=newest.store_ms, index_last_update_phyoffset=newest.position
        ).to_ext()
        return request.success(ext, body=b"".join(found))

    async def _record(self, position: int) -> tuple[bytes, Record] | None:
        """The committed record at a position, or None when there is none (any more)."""
        if not 0 <= position < self._replicator.visible():
            return None
        try:
            raw = bytes(await self._store.read_record(position))
            record = unpack_record(raw)
        except (RecordError, StoreError, OSError):
            return None
        host = self._leader_host()
        return (raw if host is None else with_store_host(raw, host)), record

    def _leader_host(self) -> bytes | None:
        """Where tools reach this group's leader; None when nobody is known, or only by a host name."""
        try:
            return host_bytes(self._replicator.leader.addr)
        except BadRequest:
            return None


def _carries(record: Record, header: QueryMessageHeader) -> bool:
    """Compare the real key: the index may confuse two, never our answer."""
    if record.topic != header.topic.encode():
        return False
    if not header.begin_timestamp <= record.store_ms <= header.end_timestamp:
        return False
    key = header.key.encode()
    if properties.get(record.properties, b"UNIQ_KEY") == key:
        return True
    return not header.unique_key and key in (properties.get(record.properties, b"KEYS") or b"").split(b" ")
