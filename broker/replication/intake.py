"""The intake: everything that wants to be in the log comes in here, while this replica leads.

It is the `EntrySource` of the replicator. Admission is synchronous; the replicator decides when a batch closes and what
became of it. Five layers, each with a module of its own: `terms.Terms` (leadership, batches, outcomes), `sends.Sends`
(messages, stored once), `plain_runs.PlainRuns` (many of them together), `atomic_sends.AtomicSends` (several topics in
one entry), and here ops and consumer offsets.

Promises:

- Order of admission is order in the log. A refusal (`Refused`, `NotLeader`, `Busy`) leaves nothing behind.
- A repeat of a message that is in the log, or on its way there, is not stored again; its answer never comes before the
  first copy is committed.
- An answer that says OK belongs to a committed entry; consumer offsets and `apply` answer when it is *applied*.
- Log time and store time never go back: max(wall clock, log time before).

`run` is the only task: it forms entries for consumer offsets that would otherwise wait, and does what needs the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

from broker.metadata.groups import GroupInfo
from broker.metadata.ops import GroupDel, GroupPut, Op, Scalar, TopicDel, TopicPut, encode_op, key_of
from broker.metadata.state import GroupState
from broker.metadata.topics import TopicInfo
from broker.replication.answers import plain_ok
from broker.replication.atomic_sends import AtomicSends
from broker.replication.base import NotLeader, Outcome, Replies, Settled, Verdict
from broker.replication.control import check_ops, create_group, create_topic, topic_change
from broker.replication.leader_view import QueueEnds
from broker.replication.offset_commits import tell_all
from broker.replication.once import Ids, KeyLookup, LogView
from broker.replication.open_batch import OWN_BYTES, OpenBatch
from broker.replication.requests import MARK_BYTES, Answer, OutcomeUnknown, ProducerSequence, PutMessage, Refused
from broker.replication.terms import IntakeConfig, IntakeStatistics, Term, illegal
from trimq.message.record import record_size
from trimq.message.sysflag import HOST_MASK
from trimq.wire.codes import ResponseCode

if TYPE_CHECKING:
    from trimq.env import Clock

__all__ = [
    "Answer",
    "Intake",
    "IntakeConfig",
    "IntakeStatistics",
    "OutcomeUnknown",
    "ProducerSequence",
    "PutMessage",
    "Refused",
]

OFFSETS_DELAY_S: Final = 0.2
"""With no entry forming, one is formed for pending consumer offsets after so long."""
SWEEP_S: Final = 1.5
"""Repeats of an inherited message are given up after one to two of these."""


class Intake(AtomicSends):
    """Admits messages, ops and consumer offsets."""

    def __init__(
        self,
        state: GroupState,
        log_view: LogView,
        queues: QueueEnds,
        keys: KeyLookup | None,
        clock: Clock,
        config: IntakeConfig,
        ids: Ids,
    ) -> None:
        super().__init__(state, log_view, queues, keys, clock, config, ids)
        self.on_flush: list[Callable[[], None]] = []
        """Called by `flush`: who puts things into the log only now and then puts them now."""
        self._offsets_wake = trio.Event()

    # --- messages with ops, for the broker's own services

    def put_batch(
        self,
        reqs: Sequence[PutMessage],
        answer: Answer | None = None,
        *,
        ops: Sequence[Op] = (),
        mark: Callable[[int, int, int], Op] | None = None,
        settled: Callable[[Outcome], None] | None = None,
    ) -> None:
        """Messages of any topics and ops in one entry: all or none. Not judged for duplicates.

        `mark` makes one more op from queue, queue offset and position of the first message. `settled` is told the
        outcome of the entry. The topics must exist or be created by `ops`. Raises as `put` does.
        """
        if not reqs:
            self._put_ops(ops, settled=settled, answer=answer)
            return
        term = self._leading()
        if not all(req.own and req.sequence is None for req in reqs):
            raise illegal("only the broker's own messages may be put together")
        check_ops(ops, term.view.tables.settings.feature_level)
        if any(isinstance(op, TopicDel | GroupDel) for op in ops):
            raise illegal("deleting is an entry of its own")
        encoded = [encode_op(op) for op in ops]
        created = {op.name.encode(): op for op in ops if isinstance(op, TopicPut)}
        infos = [self._own_topic(term, created, req.topic) for req in reqs]
        need = sum(map(len, encoded)) + OWN_BYTES + MARK_BYTES
        need += sum(record_size(len(req.topic), len(req.body), len(req.properties), HOST_MASK) for req in reqs)
        batch = self._reserve(term, need, len(reqs))
        records, ends, places = self._pack_own(term, batch, reqs, infos)
        self._add_ops(term, batch, ops, encoded)
        batch.add_own(len(batch.records), len(records))
        for record in records:
            batch.add_record(record)
        term.view.next.update(ends)
        if mark is not None:
            self._add_mark(term, batch, mark(*places[0]))
        self.statistics.stored += len(records)
        if settled is not None:
            batch.callbacks.append(_told(settled))
        if answer is not None and not answer.oneway:
            queue_id, queue_offset, _ = places[0]
            frame = self._answers.stored(answer, queue_id, queue_offset, [place[2] for place in places])
            batch.answers.append((answer, frame))

    # --- time

    def log_time(self) -> int:
        """The wall clock, never less than anything in the log: what is admitted from now on is not before it."""
        return self._now()

    async def settle(self) -> None:
        """Return when everything that was admitted so far is applied here. Raises `NotLeader` when the term ends."""
        if not await self._all_applied(self._leading()):
            raise NotLeader(self.leader)

    # --- ops

    def put_ops(
        self,
        ops: Sequence[Op],
        settled: Callable[[Outcome], None] | None = None,
        *,
        answer: Answer | None = None,
    ) -> None:
        """Ops in one entry, in their order. Raises as `put` does.

        `settled` is told the outcome of the entry; `answer` is answered (its `ok_frame` when that is OK).
        """
        self._put_ops(ops, settled=settled, answer=answer)

    async def apply(self, ops: Sequence[Op]) -> None:
        """Write ops and return when they are applied on this replica.

        Raises `Refused`, `Busy` and `NotLeader` when they surely take no effect, `OutcomeUnknown` when they may.
        Cancelled: they take effect or not, nobody is told.
        """
        done = trio.Event()
        told: list[Outcome] = []

        def tell(outcome: Outcome, _: Replies) -> None:
            told.append(outcome)
            done.set()

        self._put_ops(ops, applied=tell)
        await done.wait()
        outcome = told[0]
        if outcome.verdict is Verdict.LOST:
            raise NotLeader(outcome.leader)
        if outcome.verdict is Verdict.UNKNOWN:
            raise OutcomeUnknown(outcome.leader)

    def _put_ops(
        self,
        ops: Sequence[Op],
        *,
        settled: Callable[[Outcome], None] | None = None,
        applied: Settled | None = None,
        answer: Answer | None = None,
    ) -> None:
        term = self._leading()
        if not ops:
            raise ValueError("an entry without any op")
        check_ops(ops, term.view.tables.settings.feature_level)
        encoded = [encode_op(op) for op in ops]
        if any(isinstance(op, TopicDel) for op in ops) and term.batches.current is not None:
            # The payload is applied before the records of its entry: those of the topic must be in an entry before.
            term.batches.close()
        batch = self._reserve(term, sum(map(len, encoded)), 0)
        self._add_ops(term, batch, ops, encoded)
        if settled is not None:
            batch.callbacks.append(_told(settled))
        if applied is not None:
            batch.when_applied.append(applied)
        if answer is not None and not answer.oneway:
            batch.answers.append((answer, plain_ok(answer)))

    def _add_ops(self, term: Term, batch: OpenBatch, ops: Sequence[Op], encoded: Sequence[bytes]) -> None:
        self._now()
        for op, raw in zip(ops, encoded, strict=True):
            tell_all(term.commits.overtaken_by(op))
            batch.add_op(raw)
            term.view.apply(op)

    # --- topics and consumer groups

    def topic_op(
        self,
        name: str,
        *,
        read_queues: int,
        write_queues: int,
        perm: int = 6,
        filter_type: int = 0,
        sys_flag: int = 0,
        order: bool = False,
        attributes: Mapping[str, str] | None = None,
    ) -> TopicPut:
        """The op that creates a topic or changes it. Put it in the same step: the id is given by the present view."""
        return topic_change(
            self.view.tables,
            name,
            read_queues=read_queues,
            write_queues=write_queues,
            perm=perm,
            filter_type=filter_type,
            sys_flag=sys_flag,
            order=order,
            attributes=attributes,
        )

    def group_ops(
        self, name: str, settings: Mapping[str, Scalar] | None = None, *, retry_queues: int = 1, unit: bool = False
    ) -> list[Op]:
        """The ops that create a consumer group with its retry topic, or change it. Put them in the same step."""
        return create_group(self.view.tables, name, settings, retry_queues=retry_queues, unit=unit)

    def ensure_topic(self, name: bytes, *, default_topic: bytes = b"TBW102", default_queues: int = 4) -> TopicInfo:
        """The topic, created by the rules of auto-creation when it is unknown. Raises `Refused` as a send would."""
        tables = self.view.tables
        known = self.view.topic(name)
        if known is not None:
            return known
        op = create_topic(tables, self.config.creation, name, default_topic, default_queues)
        self._put_ops([op])
        return op

    def ensure_group(self, name: str) -> GroupInfo:
        """The consumer group, created when it is unknown and that is allowed. Raises `Refused`."""
        known = self.view.group(name)
        if known is not None:
            return known
        if not self.config.creation.auto_create_group:
            raise Refused(ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"consumer group {name!r} does not exist")
        ops = self.group_ops(name)
        self._put_ops(ops)
        assert isinstance(ops[0], GroupPut)
        return ops[0]

    # --- consumer offsets

    def commit_offset(
        self,
        group: str,
        topic: str,
        queue: int,
        offset: int,
        *,
        newest_puller: bool = False,
        forced: bool = False,
        answer: Answer | None = None,
    ) -> None:
        """A consumer's progress. An answer goes out when it is applied; an update that is ignored is answered at once.

        `newest_puller`: the update comes over the connection that made the newest pull of this queue for this consumer
        group. `forced`: the client says that it seeks (ext `set=1`). Raises `Refused` for an unknown topic, group or
        queue and for an offset beyond the queue's end.
        """
        term = self._leading()
        info = term.view.topic(topic.encode())
        if info is None:
            raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"topic {topic!r} does not exist")
        if not 0 <= queue < max(info.read_queues, info.write_queues):
            raise Refused(ResponseCode.INVALID_PARAMETER, f"queue {queue} of topic {topic!r} does not exist")
        gid = (term.view.group(group) or self.ensure_group(group)).gid
        taken = term.commits.commit(
            gid,
            key_of(info.tid, queue),
            offset,
            self._now(),
            newest_puller=newest_puller,
            forced=forced,
            answer=answer,
        )
        if taken:
            if term.commits.due and self._owner is not None:
                self._owner.wake()
            self._offsets_wake.set()

    @property
    def fenced(self) -> bool:
        """Is a reset of offsets waiting for its consumer to notice? Then report pulls with `note_pull`."""
        return self._term is not None and self._term.commits.fenced

    def note_pull(self, group: str, topic: str, queue: int, offset: int) -> None:
        """A consumer group pulls; at the place of a reset, its commits count again."""
        term = self._term
        if term is None:
            return
        info, consumers = term.view.topic(topic.encode()), term.view.group(group)
        if info is not None and consumers is not None:
            term.commits.saw_pull(consumers.gid, key_of(info.tid, queue), offset)

    def moved_to(self, group: str, key: int) -> int | None:
        """Where a reset wants this consumer group to read a queue; None when it may read where it does."""
        term = self._term
        consumers = term.view.group(group) if term is not None else None
        if term is None or consumers is None:
            return None
        return term.commits.moved_to(consumers.gid, key, self._clock.wall_ms())

    def flush(self) -> None:
        """Form an entry for all that only waits for company (before a transfer or a clean stop)."""
        for each in self.on_flush:
            each()
        self.flush_offsets()

    def flush_offsets(self) -> None:
        """Form an entry for the offsets that are pending now."""
        if self._term is not None and len(self._term.commits):
            self._term.commits.due = True
            if self._owner is not None:
                self._owner.wake()

    # --- the task

    async def run(
        self, *, task_status: Any = trio.TASK_STATUS_IGNORED
    ) -> None:  # Any: TaskStatus[None] and its default
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lookups.run)
            nursery.start_soon(self._form_for_offsets)
            nursery.start_soon(self._sweep)
            task_status.started()

    async def _form_for_offsets(self) -> None:
        while True:
            self._offsets_wake = trio.Event()
            if self._term is None or not len(self._term.commits):
                await self._offsets_wake.wait()
            await trio.sleep(OFFSETS_DELAY_S)
            self.flush_offsets()

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP_S)
            if len(self._inherited):
                replies = Replies()
                self._inherited.sweep(Outcome(Verdict.UNKNOWN, self.leader), replies)
                replies.flush()


def _told(settled: Callable[[Outcome], None]) -> Settled:
    def tell(outcome: Outcome, _: Replies) -> None:
        settled(outcome)

    return tell
