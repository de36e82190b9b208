"""The strategy of a group with one replica: what is written here (and synced, when asked for) is acknowledged.

The same interface, entries and files as the other strategies, so that a group can be moved to them in place; the term
(epoch) stays 1, or what the log has when it comes from another strategy.

Flow: the loop closes the open batch when the writer is idle (or the batch is full and fewer than two entries wait);
the writer takes everything queued, up to 8 MiB, in one `append`; what is on the disk is committed. With
`flush_sync=False` an entry counts when it is written, and a sync follows within `FLUSH_INTERVAL_S`
(RocketMQ's ASYNC_FLUSH).

A full disk: nothing is acknowledged, new requests are refused, the same entries are tried again until there is space.
Any other disk error is final for the open log: the replica stops leading, serves what is committed for a while, and
ends so that its store is opened anew.
"""

from __future__ import annotations

import errno
import logging
import random
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from broker.replication.base import (
    NO_LEADER,
    OK,
    ChangeRefused,
    GroupFailed,
    Health,
    LeaderHint,
    MembershipChange,
    NotLeader,
    Outcome,
    Replicas,
    ReplicaStatus,
    Replies,
    Role,
    RoleEvent,
    TransferFailed,
    Verdict,
)
from broker.replication.limits import (
    FLUSH_INTERVAL_S,
    IMPAIRED_S,
    SWEEP_S,
    TICKET_DEADLINE_S,
    UNCOMMITTED_MAX_BYTES,
    UNDISPATCHED_MAX_BYTES,
)
from broker.replication.membership import GroupDetail, first_entry
from broker.replication.roles import RoleBoard
from broker.replication.store_view import ReplicatedStore
from broker.replication.tickets import TicketTable
from broker.store.errors import LogUnusable
from raft.core.types import Member, Membership
from raft.signals import Signal

if TYPE_CHECKING:
    from broker.replication.base import EntrySource
    from broker.store.entry import Entry, EntryId

__all__ = ["LocalConfig", "LocalReplicator"]

log = logging.getLogger(__name__)

WRITE_MAX_BYTES = 8 << 20
"""One append and sync."""
UNFLUSHED_ENTRIES_MAX = 2
RETRY_SPACE_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalConfig:
    """What the strategy has to know about itself."""

    node_id: str
    client_addr: str = ""
    """Where clients reach this replica, `host:port`."""
    flush_sync: bool = True
    """flushDiskType=SYNC_FLUSH: acknowledge after the sync."""
    segment_bytes: int = 64 << 20
    """Segment size of a log that is still to be formed."""


class LocalReplicator:
    """`Replicator` of a group with a single replica."""

    strategy = "local"
    forwarder = None

    def __init__(self, store: ReplicatedStore, source: EntrySource, config: LocalConfig, rng: random.Random) -> None:
        self.node_id = config.node_id
        self._store = store
        self._log = store.log
        self._source = source
        self._config = config
        self._rng = rng
        self._hint = LeaderHint(config.node_id, config.client_addr, 1)
        self._board = RoleBoard()
        self._tickets = TicketTable()
        self._queue: deque[Entry] = deque()
        self._proposed: EntryId = store.log.last
        self._committed: EntryId = store.log.last
        self._writing = False
        self._leading = False
        self._draining = False
        self._unsynced = False
        self._health = Health.OK if store.log.formed else Health.UNFORMED
        self._detail = ""
        self._wake = Signal()
        self._write = Signal()
        self._settled = trio.Event()
        self._over = trio.Event()
        source.attach(self)

    # what others see

    @property
    def role(self) -> RoleEvent:
        return self._board.present

    @property
    def is_ready(self) -> bool:
        return self._leading

    @property
    def admitting(self) -> bool:
        return self._leading and not self._draining

    shortage = ""
    serves_reads = True

    @property
    def has_room(self) -> bool:
        committed = self._committed.end
        return (
            self._health is Health.OK
            and self._proposed.end - committed <= UNCOMMITTED_MAX_BYTES
            and committed - self._store.dispatched_end <= UNDISPATCHED_MAX_BYTES
        )

    @property
    def leader(self) -> LeaderHint:
        return self._hint if self._leading else NO_LEADER

    @property
    def replicas(self) -> Replicas:
        return Replicas(((self.node_id, self._config.client_addr),))

    def status(self) -> ReplicaStatus:
        role = self._board.present
        return ReplicaStatus(
            strategy=self.strategy,
            node_id=self.node_id,
            role=role.role,
            term=role.term,
            ready=role.ready,
            leader=self.leader,
            health=self._health,
            detail=self._detail,
            first=self._log.first_index,
            last=self._proposed.index,
            durable=self._log.last.index,
            commit=self._committed.index,
            dispatched=self._store.dispatched,
            visible=self.visible(),
        )

    def visible(self) -> int:
        return min(self._committed.end, self._store.dispatched_end)

    def subscribe(self) -> AsyncIterator[RoleEvent]:
        return self._board.subscribe()

    def wake(self) -> None:
        self._wake.set()

    async def room(self) -> None:
        while not self.has_room:
            self._check_leading()
            await self._settled.wait()
        self._check_leading()
        await trio.lowlevel.checkpoint()

    async def barrier(self) -> int:
        self._check_leading()
        committed = self._committed
        await self._store.wait_dispatched(committed.index)
        return committed.end

    async def transfer(self, target: str | None = None) -> None:
        await trio.lowlevel.checkpoint()
        raise TransferFailed("this group has one replica: there is nobody to hand over to")

    async def change(self, change: MembershipChange) -> None:
        await trio.lowlevel.checkpoint()
        raise ChangeRefused("this group is not replicated (strategy local): it has one replica and takes no others")

    async def drain(self) -> None:
        """Stop admitting; return when everything taken is settled."""
        self._draining = True
        self._turn()
        while self._proposed.index > self._committed.index and self._leading:
            await self._settled.wait()
        await trio.lowlevel.checkpoint()

    def _check_leading(self) -> None:
        if not self._leading:
            raise NotLeader(self.leader)

    # work

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Form the log if it is empty, dispatch what is there, then take entries until cancelled.

        Raises GroupFailed some seconds after a disk error: the store is to be opened anew, with verification. A damaged
        log stays open, for reading only: with one replica there is nobody who could mend it.
        """
        if not self._log.formed:
            await self._form()
        if self._log.fault is not None:
            await self._read_only(task_status)
            return
        self._health = Health.OK
        last = self._proposed = self._committed = self._log.last
        self._store.allow(last.index)
        await self._store.wait_dispatched(last.index)
        term = max(1, last.term)
        self._hint = LeaderHint(self.node_id, self._config.client_addr, term)
        await self._source.scan(term, _Nothing())
        self._leading = True
        self._source.begin_term(term, last)
        self._board.publish(RoleEvent(Role.LEADER, term, self._hint, True))
        log.info("local group is ready", extra={"node": self.node_id, "term": term, "last": last.index})
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._loop)
                nursery.start_soon(self._writer)
                nursery.start_soon(self._sweep)
                if not self._config.flush_sync:
                    nursery.start_soon(self._flush)
                task_status.started()
                await self._over.wait()
                if self._health is Health.DAMAGED:
                    await trio.sleep_forever()
                await trio.sleep(IMPAIRED_S)  # still serves what is committed
                raise GroupFailed(self._detail)
        finally:
            self._stop("stopped", self._health)

    async def _read_only(self, task_status: trio.TaskStatus[None]) -> None:
        fault = self._log.fault
        self._health, self._detail = Health.DAMAGED, fault.detail if fault is not None else ""
        log.error(
            "the log is damaged and there is no other replica to mend it; it can be read, not written",
            extra={"node": self.node_id, "detail": self._detail},
        )
        self._proposed = self._committed = self._log.last
        self._store.allow(self._log.last.index)
        task_status.started()
        await trio.sleep_forever()

    async def _form(self) -> None:
        config = self._config
        member = Member(id=config.node_id, client_address=config.client_addr)
        detail = GroupDetail(strategy=self.strategy, segment_bytes=config.segment_bytes)
        entry = first_entry(self._rng.getrandbits(64), Membership((member,)), detail, self._store.clock.wall_ms())
        await self._log.form(entry.lineage, config.segment_bytes)
        await self._log.append([entry], sync=True)

    async def _loop(self) -> None:
        while True:
            await self._wake.wait()
            self._turn()

    def _turn(self) -> None:
        """Close batches as long as the gate is open."""
        source = self._source
        while self._leading and source.has_work():
            unflushed = len(self._queue)
            if (self._writing or unflushed) and not (source.full and unflushed < UNFLUSHED_ENTRIES_MAX):
                return
            taken = source.take(self._proposed, self._committed.index)
            if not taken:
                return
            deadline = trio.current_time() + TICKET_DEADLINE_S
            for entry, ticket in taken:
                assert entry.position == self._proposed.end, "an entry begins where the one before ends"
                self._proposed = entry.id
                self._queue.append(entry)
                if ticket is not None:
                    self._tickets.add(ticket, entry.index, entry.term, deadline)
            self._write.set()

    def _next_write(self) -> list[Entry]:
        entries: list[Entry] = []
        size = 0
        while self._queue and (not entries or size + len(self._queue[0].data) <= WRITE_MAX_BYTES):
            entry = self._queue.popleft()
            size += len(entry.data)
            entries.append(entry)
        return entries

    async def _writer(self) -> None:
        while True:
            await self._write.wait()
            while entries := self._next_write():
                self._writing = True
                if not await self._append(entries):
                    return
                self._writing = False
                self._commit(entries[-1].id)
                self._turn()

    async def _append(self, entries: list[Entry]) -> bool:
        """True when the entries count; False when the log cannot be written any more."""
        while True:
            try:
                await self._log.append(entries, sync=self._config.flush_sync)
            except LogUnusable as error:
                self._impaired(error)
                return False
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    self._impaired(error)
                    return False
                if self._health is Health.OK:
                    log.error(
                        "disk is full; nothing is acknowledged until there is space", extra={"node": self.node_id}
                    )
                    self._health, self._detail = Health.IMPAIRED, "disk full"
                written = self._log.last.index  # the log keeps what still found room
                entries = [entry for entry in entries if entry.index > written]
                await trio.sleep(RETRY_SPACE_S)
            else:
                if self._health is not Health.OK:
                    log.info("disk has space again", extra={"node": self.node_id})
                    self._health, self._detail = Health.OK, ""
                self._unsynced = not self._config.flush_sync
                return True

    def _commit(self, last: EntryId) -> None:
        self._committed = last
        replies = Replies()
        self._tickets.committed(last.index, self._term_at, OK, replies)
        replies.flush()
        self._store.allow(last.index)
        self._settled.set()
        self._settled = trio.Event()

    def _term_at(self, index: int) -> int:
        entry = self._log.entry_id(index)
        return entry.term if entry is not None else 0

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP_S)
            if self._store.failure is not None and self._log.fault is None:
                raise self._store.failure  # dispatch ended for good
            if self._tickets:
                replies = Replies()
                self._tickets.expire(trio.current_time(), Outcome(Verdict.UNKNOWN, self.leader), replies)
                replies.flush()

    async def _flush(self) -> None:
        while True:
            await trio.sleep(FLUSH_INTERVAL_S)
            if self._unsynced and self._leading:
                self._unsynced = False
                try:
                    await self._log.sync()
                except (OSError, LogUnusable) as error:
                    self._impaired(error)

    def _impaired(self, error: OSError | LogUnusable) -> None:
        log.error("the log cannot be written any more", extra={"node": self.node_id, "error": str(error)})
        damaged = self._log.fault is not None and self._log.fault.damage is not None
        self._stop(f"disk error: {error}", Health.DAMAGED if damaged else Health.IMPAIRED)
        self._over.set()

    def _stop(self, detail: str, health: Health) -> None:
        """No longer the leader: what is open is lost, what was taken is of unknown fate."""
        self._health, self._detail = health, detail
        if not self._leading:
            return
        self._leading = False
        self._source.end_term()
        replies = Replies()
        self._tickets.settle_all(Outcome(Verdict.UNKNOWN), replies)
        replies.flush()
        self._board.publish(RoleEvent(Role.FOLLOWER, self._board.present.term, NO_LEADER, False))
        self._settled.set()
        self._settled = trio.Event()


class _Nothing:
    """With one replica everything on the disk is committed: there is nothing to scan."""

    def __aiter__(self) -> AsyncIterator[Entry]:
        return self

    async def __anext__(self) -> Entry:
        await trio.lowlevel.checkpoint()
        raise StopAsyncIteration
