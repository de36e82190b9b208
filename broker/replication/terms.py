"""The intake's frame: terms of leadership, the open batch in them, and what becomes of entries.

`Terms` is the `EntrySource` that the replicator calls. It knows when admission is open, hands batches over, and turns
outcomes into answers. What is admitted is the business of the classes above it: `sends.Sends`, `intake.Intake`.

The life of a batch: it grows (`BatchQueue.current`), is closed, is taken as an entry (then it is a `TakenBatch`, with a
ticket), is settled, is applied. A repeat of one of its messages may arrive at any of these moments; where its answer
waits is decided by `release_with`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import trio

from broker.metadata.ops import queue_of, tid_of
from broker.metadata.state import GroupState
from broker.replication.answers import SendAnswers, failure_frame, settle
from broker.replication.base import (
    NO_LEADER,
    OK,
    Busy,
    LeaderHint,
    NotLeader,
    Outcome,
    Owner,
    Replies,
    Ticket,
    TooFewInSync,
    Verdict,
)
from broker.replication.control import CreationRules
from broker.replication.leader_view import LeaderView, QueueEnds
from broker.replication.offset_commits import OffsetCommits, OffsetCounters
from broker.replication.offset_intake import ROW_BYTES, ROWS_MAX, ProvisionalOffsets
from broker.replication.once import LogView
from broker.replication.open_batch import BatchQueue, OpenBatch, TooLarge
from broker.replication.requests import NO_HOST, Answer, Refused
from broker.replication.waiters import AppliedWaiters, InheritedDuplicates
from trimq.wire.codes import ResponseCode

if TYPE_CHECKING:
    from broker.store.entry import Entry, EntryId
    from trimq.env import Clock

__all__ = ["IntakeConfig", "IntakeStatistics", "TakenBatch", "Term", "Terms", "illegal"]

log = logging.getLogger(__name__)

QUEUED_BYTES_MAX = 16 << 20
"""Closed batches that wait for the replicator; above it requests are refused as busy."""


@dataclass(frozen=True, slots=True)
class IntakeConfig:
    """What an operator can have an opinion on."""

    store_host: bytes = NO_HOST
    """Address and port by which clients reach this replica, 8 or 20 bytes: part of every record's offset id."""
    region: str = "DefaultRegion"
    trace_on: bool = True
    creation: CreationRules = field(default_factory=CreationRules)


@dataclass(slots=True)
class IntakeStatistics:
    """Counted since the process started. Take a copy."""

    stored: int = 0
    duplicates: int = 0
    stale: int = 0
    out_of_sequence: int = 0
    offsets: OffsetCounters = field(default_factory=OffsetCounters)


class Term:
    """One leadership of this replica."""

    __slots__ = ("batches", "commits", "taken", "term", "view")

    def __init__(self, term: int, view: LeaderView, batches: BatchQueue, commits: OffsetCommits) -> None:
        self.term = term
        self.view = view
        self.batches = batches
        self.commits = commits
        self.taken: deque[TakenBatch] = deque()
        """Entries handed to the replicator and not applied yet."""


class TakenBatch:
    """A batch that is an entry now."""

    __slots__ = ("batch", "outcome")

    def __init__(self, batch: OpenBatch) -> None:
        self.batch = batch
        self.outcome: Outcome | None = None


class Terms:
    """The entry source. One per replica; used from the loop only."""

    def __init__(
        self, state: GroupState, log_view: LogView, queues: QueueEnds, clock: Clock, config: IntakeConfig
    ) -> None:
        self.state = state
        self.config = config
        self.provisional = ProvisionalOffsets()
        """Consumer offsets told to this replica while nobody led."""
        self.statistics = IntakeStatistics()
        self._log = log_view
        self._queues = queues
        self._clock = clock
        self._answers = SendAnswers(config.store_host, config.region, trace_on=config.trace_on)
        self._owner: Owner | None = None
        self._scanned: LeaderView | None = None
        self._term: Term | None = None
        self._progressed: trio.Event | None = None
        self._applied_waiters = AppliedWaiters()
        self._inherited = InheritedDuplicates()
        state.on_applied.append(self._on_applied)

    # --- what others may look at

    @property
    def admitting(self) -> bool:
        """Leader, and the view is complete."""
        return self._term is not None

    @property
    def answers(self) -> SendAnswers:
        """Makes answers that say where a message lies, for who answers a repeated request by himself."""
        return self._answers

    @property
    def view(self) -> LeaderView:
        """What the leader decides with. Raises `NotLeader`."""
        return self._leading().view

    @property
    def leader(self) -> LeaderHint:
        return NO_LEADER if self._owner is None else self._owner.leader

    def _leading(self) -> Term:
        term = self._term
        if term is None:
            raise NotLeader(self.leader)
        return term

    # --- EntrySource: called by the replicator

    def attach(self, owner: Owner) -> None:
        self._owner = owner

    async def scan(self, term: int, entries: AsyncIterator[Entry]) -> None:
        """Build the view of a new leader; lets others run every 256 KiB. Cancelled: nothing is left but the view."""
        view = self._scanned = LeaderView(self.state, self._queues)
        async for entry in entries:
            for _ in view.absorb(entry):
                await trio.lowlevel.checkpoint()
        view.forget(self.state.applied_index)
        log.debug("leader view built", extra={"term": term, "applied": self.state.applied_index})

    def begin_term(self, term: int, last: EntryId) -> None:
        view = self._scanned or LeaderView(self.state, self._queues)
        self._scanned = None
        view.catch_up()
        view.forget(self.state.applied_index)
        view.inherited_end = last.end
        commits = OffsetCommits(view, self.statistics.offsets)
        batches = BatchQueue(
            lineage_tag=self._log.lineage,
            segment_bytes=self._log.segment_bytes,
            term=term,
            last=last,
            log_time=self._now,
            on_open=self._opened,
            on_close=commits.fill,
        )
        self._term = Term(term, view, batches, commits)

    def end_term(self) -> None:
        self._scanned = None
        ended, self._term = self._term, None
        if ended is None:
            return
        replies = Replies()
        lost, unknown = Outcome(Verdict.LOST, self.leader), Outcome(Verdict.UNKNOWN, self.leader)
        for batch in ended.batches.waiting:
            self._tell(batch, lost, replies)
        self._keep_provisional(ended, ended.commits.drop(lost, replies))
        for answer in self._abandoned():
            if answer is not None and not answer.oneway:
                replies.add(answer.reply, failure_frame(answer, lost))
        self._inherited.drop(unknown, replies)
        self._progress()
        replies.flush()

    def _abandoned(self) -> list[Answer | None]:
        """Requests that were not judged yet when the term ended: they are surely not stored."""
        return []

    def has_work(self) -> bool:
        term = self._term
        return term is not None and (term.batches.has_work or term.commits.wants_entry)

    @property
    def full(self) -> bool:
        return self._term is not None and self._term.batches.full

    def take(self, prev: EntryId, commit: int) -> Sequence[tuple[Entry, Ticket | None]]:
        term = self._leading()
        batches = term.batches
        if not batches.has_work:
            if not len(term.commits):
                return ()
            batches.reserve(ROW_BYTES * min(len(term.commits), ROWS_MAX), 0)
        entries, batch = batches.take(prev, commit)
        taken = TakenBatch(batch)
        term.taken.append(taken)
        ticket = Ticket()
        ticket.on_settled(partial(self._settled, taken))
        out: list[tuple[Entry, Ticket | None]] = [(entry, None) for entry in entries[:-1]]
        out.append((entries[-1], ticket))
        return out

    def rebase(self, prev: EntryId) -> None:
        term = self._leading()
        term.batches.rebase(prev)
        term.view.inherited_end = max(term.view.inherited_end, prev.end)

    # --- what becomes of entries

    def _settled(self, taken: TakenBatch, outcome: Outcome, replies: Replies) -> None:
        taken.outcome = outcome
        self._tell(taken.batch, outcome, replies)

    def _tell(self, batch: OpenBatch, outcome: Outcome, replies: Replies) -> None:
        answers, batch.answers = batch.answers, []
        settle(answers, outcome, replies)
        for callback in batch.callbacks:
            callback(outcome, replies)
        waiting = batch.when_applied
        if not waiting:
            return
        if outcome.verdict in (Verdict.LOST, Verdict.UNKNOWN):
            for callback in waiting:
                callback(outcome, replies)
        elif batch.index <= self.state.applied_index:
            for callback in waiting:
                callback(OK, replies)
        else:
            self._applied_waiters.add(batch.index, waiting)

    def _on_applied(self, index: int, end: int) -> None:
        term = self._term
        view = self._scanned if term is None else term.view
        if view is not None:
            view.forget(index)
        if term is not None:
            taken = term.taken
            while taken and taken[0].batch.index <= index:
                if taken[0].outcome is None:
                    # Applied before its ticket was settled: the ticket still has the answers, the batch stays known.
                    break
                taken.popleft()
        if len(self._applied_waiters) or len(self._inherited):
            replies = Replies()
            self._applied_waiters.release(index, replies)
            self._inherited.release(end, replies)
            replies.flush()
        self._progress()

    def _opened(self, batch: OpenBatch) -> None:
        term = self._leading()
        term.view.at_entry(batch.index)
        if self._owner is not None:
            self._owner.wake()

    def _now(self) -> int:
        """Log time: the wall clock, never less than what was used before."""
        view = self._leading().view
        now = self._clock.wall_ms()
        if now > view.log_time:
            view.log_time = now
        return view.log_time

    def _reserve(self, term: Term, size: int, count: int) -> OpenBatch:
        """The batch that takes a request of `size` bytes and `count` records. Raises `Refused` or `Busy`."""
        batches = term.batches
        # Asked once a batch, not once a message: what is in flight moves with the batches.
        opens = batches.current is None or batches.full
        if opens and (
            batches.closed_bytes > QUEUED_BYTES_MAX or (self._owner is not None and not self._owner.has_room)
        ):
            if self._owner is not None and self._owner.shortage:
                raise TooFewInSync(self._owner.shortage)
            raise Busy("too much is waiting to be replicated")
        try:
            return batches.reserve(size, count)
        except TooLarge as problem:
            raise illegal(f"too large for one entry: {problem}") from None

    # --- answers that wait for somebody else's entry

    def release_with(self, position: int, answer: Answer, frame: bytes) -> None:
        """Send `frame` as soon as the message at `position` is committed, never earlier."""
        if position < self.state.applied_end:
            answer.reply.send(frame)
            return
        term = self._leading()
        for batch in term.batches.waiting:
            if batch.position <= position < batch.at:
                batch.answers.append((answer, frame))
                return
        for taken in term.taken:
            if taken.batch.position <= position < taken.batch.at:
                if taken.outcome is None:
                    taken.batch.answers.append((answer, frame))
                    return
                if taken.outcome.verdict in (Verdict.OK, Verdict.SHORT):
                    answer.reply.send(frame)
                    return
        # Written by an earlier leader, or given up by its ticket: nobody will say more than that it was applied.
        self._inherited.add(position, answer, frame)

    def _record_now(self, term: Term, position: int) -> bytes | memoryview | None:
        """The record at `position`, when it is in memory."""
        for batch in (*term.batches.waiting, *(each.batch for each in term.taken)):
            if batch.position <= position < batch.at:
                return batch.record_at(position)
        head = self._log.cached_bytes(position, 4)
        return None if head is None else self._log.cached_bytes(position, int.from_bytes(head, "big"))

    # --- waiting

    def _progress(self) -> None:
        if self._progressed is not None:
            self._progressed.set()
            self._progressed = None

    async def _all_applied(self, of: object) -> bool:
        """Wait until everything in flight now is applied; False when the term `of` is over."""
        term = self._term
        if term is None or term is not of:
            return False
        target = term.batches.last_index
        while self._term is term and self.state.applied_index < target:
            if self._progressed is None:
                self._progressed = trio.Event()
            await self._progressed.wait()
        return self._term is term

    def _keep_provisional(self, ended: Term, rows: list[tuple[int, int, int]]) -> None:
        """Offsets that were told to nobody: keep them for the next leader. Lost is at worst a redelivery."""
        tables = ended.view.tables
        for gid, key, offset in rows:
            group, topic = tables.groups.by_id.get(gid), tables.topics.by_id.get(tid_of(key))
            if group is not None and topic is not None:
                self.provisional.put(group.name, topic.name, queue_of(key), offset)


def illegal(remark: str) -> Refused:
    """What is said to a message that cannot be stored as it is."""
    return Refused(ResponseCode.MESSAGE_ILLEGAL, remark)
