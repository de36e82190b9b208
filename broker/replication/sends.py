"""Sends: messages and batches become records of the open batch, each message once.

In one step, with nothing awaited, a send is judged (stored once, topic, queue), gets its queue offset and position from
the leader view, is packed, and its success answer is made. A message costs no task, no future, no event.

Cost (`python -m bench.intake_put`; CPython 3.11, one of two cores): 4.3 to 5.1 µs for one message, answer included, 1.1
to 2.6 µs for an element of a batch.

The order of judging: producer sequence, or unique id; topic (created by the same entry where that is allowed); queue;
size. A refusal leaves nothing behind. The plain case, one new message, has a path of its own (`_put_new`); everything
else goes through `_put_all`.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from broker.metadata.id_window import id_key
from broker.metadata.ops import Op, ProducerRun, encode_op, key_of
from broker.metadata.producers import (
    RUNS_MAX,
    ProducerState,
    Run,
    Verdict,
    find_run,
    judge,
    pack_positions,
    unpack_positions,
)
from broker.metadata.state import GroupState
from broker.metadata.topics import MULTI_TAG, TopicInfo
from broker.replication.answers import failure_frame, refusal_frame
from broker.replication.base import Busy, NotLeader, Outcome
from broker.replication.base import Verdict as Fate
from broker.replication.control import create_topic
from broker.replication.leader_view import QueueEnds
from broker.replication.lookups import Held, Job, Lookups
from broker.replication.once import (
    UNIQ_KEY,
    Ids,
    KeyLookup,
    LogView,
    Place,
    identified,
    place_of,
    resembles,
)
from broker.replication.open_batch import CLOSE_RECORDS, RUN_BYTES, OpenBatch
from broker.replication.requests import MARK_BYTES, Answer, PutMessage, Refused
from broker.replication.terms import IntakeConfig, Term, Terms, illegal
from trimq.errors import BadRequest
from trimq.message.batch import BatchElement, RunHead, pack_run
from trimq.message.properties import get as get_property
from trimq.message.record import pack_record
from trimq.message.sysflag import MULTI_TAGS
from trimq.wire.codes import ResponseCode

if TYPE_CHECKING:
    from trimq.env import Clock

__all__ = ["RECORD_BYTES", "Sends"]

log = logging.getLogger(__name__)

RECORD_BYTES: Final = 88 + 24 + 4
"""A record beside topic, body and properties, with IPv6 hosts."""
_PROPERTIES_MAX: Final = 32_767
_TOLD_GROUPS_MAX: Final = 4096


class Sends(Terms):
    """Admission of messages."""

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
        super().__init__(state, log_view, queues, clock, config)
        self._ids = ids
        self._told_groups: set[str] = set()  # membership only, never iterated
        self._rotation = 0
        self._lookups = Lookups(
            log_view,
            keys,
            wall_ms=clock.wall_ms,
            all_applied=self._all_applied,
            finish=self._looked_up,
            readmit=self._readmit,
        )

    # --- sends

    def put(self, req: PutMessage, answer: Answer | None) -> None:
        """Admit one message. Its answer goes out when the entry is acknowledged.

        Raises `Refused` (with the code for the client), `NotLeader` or `Busy`; then nothing is stored.
        """
        term = self._leading()
        view = term.view
        sequence = req.sequence
        key_hash = -1
        if sequence is not None:
            pid, epoch, first, floor = sequence
            if self._lookups.holds(pid):
                self._lookups.hold(pid, Held(req, (_element(req),), answer, batch=False))
                return
            state = view.producers.find(pid)
            verdict, expected = judge(state, epoch, first, 1, floor)
            if verdict is not Verdict.NEW:
                self._not_new(term, verdict, state, expected, req, 1, answer)
                return
            if req.again or (state is not None and len(state.runs) >= RUNS_MAX):
                self._numbered(term, req, (_element(req),), answer, state, batch=False)
                return
        elif not req.own:
            uniq = get_property(req.properties, UNIQ_KEY)
            if uniq is None:  # the new id is nobody else's: there is nothing to look up
                req.properties = identified(req.properties, self._ids.new_id())
            elif self.state.id_window.enabled:
                key_hash = id_key(req.topic, uniq, req.reconsume_times)
                if view.find_id(key_hash) is not None:
                    self._foreign(term, Held(req, (_element(req),), answer, batch=False), {})
                    return
        self._put_new(term, req, answer, key_hash)

    def _put_new(self, term: Term, req: PutMessage, answer: Answer | None, key_hash: int) -> None:
        """Store one message that was found to be new. `key_hash` −1: it stays out of the id window."""
        view = term.view
        topic, body, properties = req.topic, req.body, req.properties
        info = view.topic(topic)
        creation: bytes = b""
        if info is None:
            info = create_topic(
                view.tables, self.config.creation, topic, req.default_topic, req.default_queues, unit=req.unit
            )
            creation = encode_op(info)
        queue_id = req.queue_id
        if not 0 <= queue_id < info.write_queues:
            queue_id = self._queue(info, queue_id)
        if len(properties) > _PROPERTIES_MAX:
            raise illegal(f"properties of {len(properties)} bytes; at most {_PROPERTIES_MAX}")
        need = len(topic) + len(body) + len(properties) + len(creation) + (RECORD_BYTES + RUN_BYTES)
        if req.mark is not None:
            need += MARK_BYTES
        batch = term.batches.current
        if batch is None or batch.cost + need > batch.limit or len(batch.records) >= CLOSE_RECORDS:
            batch = self._reserve(term, need, 1)
        key = key_of(info.tid, queue_id)
        queue_offset = view.next.get(key)
        if queue_offset is None:
            queue_offset = self._queues.next_offset(key)
        store_ms = self._clock.wall_ms()
        if store_ms > view.log_time:
            view.log_time = store_ms
        else:
            store_ms = view.log_time
        position = batch.at
        try:
            record = pack_record(
                topic=topic,
                queue_id=queue_id,
                queue_offset=queue_offset,
                position=position,
                flag=req.flag,
                sys_flag=req.sys_flag | MULTI_TAGS if info.filter_type == MULTI_TAG else req.sys_flag & ~MULTI_TAGS,
                born_ms=req.born_ms,
                born_host=req.born_host,
                store_ms=store_ms,
                store_host=self.config.store_host,
                reconsume_times=req.reconsume_times,
                prepared_offset=req.prepared_offset,
                body=body,
                properties=properties,
            )
        except (BadRequest, struct.error) as problem:
            term.batches.discard_empty()
            raise illegal(f"the message fits no record: {problem}") from None
        if creation:
            batch.add_op(creation)
            view.apply(info)
        ordinal = len(batch.records)
        batch.add_record(record)
        view.next[key] = queue_offset + 1
        if req.mark is not None:
            self._add_mark(term, batch, req.mark(queue_id, queue_offset, position))
        sequence = req.sequence
        if sequence is not None:
            pid, epoch, first, floor = sequence
            batch.add_run(ProducerRun(pid, epoch, first, 1, floor, ordinal))
            view.add_run(pid, epoch, Run(first, 1, queue_id, queue_offset, position), floor)
        elif key_hash >= 0:
            view.add_id(key_hash, position)
        elif req.own:
            batch.add_own(ordinal, 1)
        self.statistics.stored += 1
        if answer is not None and not answer.oneway:
            if req.answer_queue is not None:
                frame = self._answers.stored(
                    answer,
                    req.answer_queue,
                    queue_offset,
                    (position,),
                    req.transaction_id,
                    recall_handle=req.recall_handle,
                )
            else:
                frame = self._answers.stored_one(answer, queue_id, queue_offset, position)
            batch.answers.append((answer, frame))

    def _add_mark(self, term: Term, batch: OpenBatch, op: Op) -> None:
        encoded = encode_op(op)
        assert len(encoded) <= MARK_BYTES, op
        batch.add_op(encoded)
        term.view.apply(op)

    def put_elements(self, head: PutMessage, elements: Sequence[BatchElement], answer: Answer | None) -> None:
        """Admit a client's batch: all elements in one entry and one queue, or none. Raises as `put` does."""
        term = self._leading()
        sequence = head.sequence
        if not elements:
            raise illegal("a batch without an element")
        if sequence is not None:
            pid, epoch, first, floor = sequence
            if self._lookups.holds(pid):
                self._lookups.hold(pid, Held(head, elements, answer, batch=True))
                return
            state = term.view.producers.find(pid)
            verdict, expected = judge(state, epoch, first, len(elements), floor)
            if verdict is not Verdict.NEW:
                self._not_new(term, verdict, state, expected, head, len(elements), answer)
                return
            self._numbered(term, head, elements, answer, state, batch=True)
        elif head.own:
            self._put_all(term, head, elements, answer, [-1] * len(elements), {})
        else:
            self._foreign(term, Held(head, elements, answer, batch=True), {})

    def _numbered(
        self,
        term: Term,
        head: PutMessage,
        elements: Sequence[BatchElement],
        answer: Answer | None,
        state: ProducerState | None,
        *,
        batch: bool,
    ) -> None:
        """A new numbered send that is not the plain case: a batch, or one that is sent `again`."""
        assert head.sequence is not None
        floor = head.sequence[3]
        if state is not None and sum(run.first + run.size > floor for run in state.runs) >= RUNS_MAX:
            raise illegal(f"this producer has {RUNS_MAX} unsettled sends: raise the floor (pf)")
        if head.again:
            info = term.view.topic(head.topic)
            if info is not None:
                ids = [get_property(each.properties, UNIQ_KEY) for each in elements]
                self._lookups.add(Job(Held(head, elements, answer, batch), term, ids, info.tid))
                return
        self._put_all(term, head, elements, answer, [-1] * len(elements), {})

    def _foreign(self, term: Term, send: Held, known: Mapping[int, bytes | None]) -> None:
        """Judge a send by unique ids, element by element. `known`: records that were read from disk for it."""
        head = send.head
        enabled = self.state.id_window.enabled
        elements: list[BatchElement] = []
        hashes: list[int] = []
        places: dict[int, Place] = {}
        unread: list[int] = []
        ids: list[bytes | None] = []
        find_id = term.view.find_id
        for number, element in enumerate(send.elements):
            uniq = get_property(element.properties, UNIQ_KEY)
            if uniq is None:
                element = BatchElement(element.body, identified(element.properties, self._ids.new_id()), element.flag)
            elements.append(element)
            ids.append(uniq)
            if uniq is None or not enabled:  # a new id is nobody else's: there is nothing to look up
                hashes.append(-1)
                continue
            key_hash = id_key(head.topic, uniq, head.reconsume_times)
            hashes.append(key_hash)
            suspect = find_id(key_hash)
            if suspect is None:
                continue
            place = self._repeated(term, suspect, head, element, known)
            if place is not None:
                places[number] = place
            elif suspect not in known and self._record_now(term, suspect) is None:
                unread.append(suspect)
        if unread:
            held = Held(head, elements, send.answer, send.batch)
            self._lookups.add(Job(held, term, ids, 0, suspects=unread, records=dict(known)))
            return
        self._put_all(term, head, elements, send.answer, hashes, places)

    def _repeated(
        self, term: Term, suspect: int, head: PutMessage, element: BatchElement, known: Mapping[int, bytes | None]
    ) -> Place | None:
        """Where this very message is stored already; None when the suspect is another one, or cannot be read here."""
        if suspect < self._log.first_position:
            return Place(max(head.queue_id, 0), -1, suspect)
        raw = known[suspect] if suspect in known else self._record_now(term, suspect)
        if raw is None:
            return Place(max(head.queue_id, 0), -1, suspect) if suspect in known else None
        same = resembles(
            raw,
            topic=head.topic,
            body=element.body,
            properties=element.properties,
            flag=element.flag,
            reconsume_times=head.reconsume_times,
        )
        return place_of(raw) if same else None

    def _put_all(
        self,
        term: Term,
        head: PutMessage,
        elements: Sequence[BatchElement],
        answer: Answer | None,
        hashes: Sequence[int],
        places: Mapping[int, Place],
    ) -> None:
        """Store the elements that have no place yet, in one entry, and answer for all of them."""
        fresh = [number for number in range(len(elements)) if number not in places] if places else range(len(elements))
        if places:
            self._note_duplicate(head, len(places))
        if not fresh:
            self._answer_stored(term, head, [places[number] for number in range(len(elements))], answer)
            return
        view, topic = term.view, head.topic
        info = view.topic(topic)
        creation: list[bytes] = []
        if info is None:
            info = create_topic(
                view.tables, self.config.creation, topic, head.default_topic, head.default_queues, unit=head.unit
            )
            creation = [encode_op(info)]
        queue_id = head.queue_id
        if not 0 <= queue_id < info.write_queues:
            queue_id = self._queue(info, queue_id)
        need = sum(map(len, creation)) + RUN_BYTES + len(fresh) * (RECORD_BYTES + len(topic))
        if head.mark is not None:
            need += MARK_BYTES
        for number in fresh:
            properties = len(elements[number].properties)
            if properties > _PROPERTIES_MAX:
                raise illegal(f"properties of {properties} bytes; at most {_PROPERTIES_MAX}")
            need += len(elements[number].body) + properties
        batch = self._reserve(term, need, len(fresh))
        key = key_of(info.tid, queue_id)
        first_offset = view.next_offset(key)
        store_ms = self._now()
        sys_flag = head.sys_flag | MULTI_TAGS if info.filter_type == MULTI_TAG else head.sys_flag & ~MULTI_TAGS
        run = RunHead(
            topic=topic,
            queue_id=queue_id,
            queue_offset=first_offset,
            position=batch.at,
            sys_flag=sys_flag,
            born_ms=head.born_ms,
            born_host=head.born_host,
            store_ms=store_ms,
            store_host=self.config.store_host,
            reconsume_times=head.reconsume_times,
            prepared_offset=head.prepared_offset,
        )
        try:
            records = pack_run(run, [elements[number] for number in fresh] if places else elements)
        except (BadRequest, struct.error) as problem:
            term.batches.discard_empty()
            raise illegal(f"an element fits no record: {problem}") from None
        for op in creation:
            batch.add_op(op)
            view.apply(info)
        ordinal = len(batch.records)
        batch.add_records(records)
        view.next[key] = first_offset + len(records)
        positions = list(accumulate(map(len, records[:-1]), initial=run.position))
        if head.mark is not None:
            assert len(elements) == 1, "a mark belongs to one message"
            self._add_mark(term, batch, head.mark(queue_id, first_offset, positions[0]))
        self.statistics.stored += len(records)
        if head.sequence is not None and not places:
            self._add_run(term, batch, head.sequence, ordinal, queue_id, first_offset, positions)
        elif head.own:
            batch.add_own(ordinal, len(records))
        else:
            add_id = view.add_id
            for number, position in zip(fresh, positions, strict=True):
                key_hash = hashes[number]
                if key_hash >= 0:
                    add_id(key_hash, position)
        if answer is None or answer.oneway:
            return
        if places:
            news = dict(zip(fresh, positions, strict=True))
            positions = [news[n] if n in news else places[n].position for n in range(len(elements))]
            if 0 in places:
                queue_id, first_offset = places[0].queue_id, places[0].queue_offset
        if head.answer_queue is not None:
            queue_id = head.answer_queue
        frame = self._answers.stored(
            answer, queue_id, first_offset, positions, head.transaction_id, recall_handle=head.recall_handle
        )
        batch.answers.append((answer, frame))

    def _add_run(
        self,
        term: Term,
        batch: OpenBatch,
        sequence: tuple[int, int, int, int],
        ordinal: int,
        queue_id: int,
        queue_offset: int,
        positions: list[int],
    ) -> None:
        """Neighbours in one queue are numbered from this sequence on: a repeat will find them by that."""
        pid, epoch, first, floor = sequence
        size, more = len(positions), pack_positions(positions[1:])
        batch.add_run(ProducerRun(pid, epoch, first, size, floor, ordinal))
        term.view.add_run(pid, epoch, Run(first, size, queue_id, queue_offset, positions[0], more), floor)

    # --- repeats

    def _not_new(
        self,
        term: Term,
        verdict: Verdict,
        state: ProducerState | None,
        expected: int,
        req: PutMessage,
        count: int,
        answer: Answer | None,
    ) -> None:
        """A numbered send that is not the next one: answer as the first time, or refuse."""
        assert req.sequence is not None
        first = req.sequence[2]
        ext = {"next": str(expected)}
        if verdict is Verdict.STALE:
            self.statistics.stale += 1
            raise Refused(
                ResponseCode.STALE_SEQUENCE,
                f"sequence {first} was declared settled; next is {expected}: not stored",
                ext,
            )
        if verdict is Verdict.EARLY:
            self.statistics.out_of_sequence += 1
            raise Refused(
                ResponseCode.OUT_OF_SEQUENCE,
                f"sequence {first} came before {expected}: not stored, resend in order",
                ext,
            )
        run = None if state is None else find_run(state, first, count)
        assert run is not None
        self._note_duplicate(req, 1)
        self._answer_stored(term, req, self._places_of(run), answer)

    def _places_of(self, run: Run) -> list[Place]:
        """Where the messages of a run are."""
        expired = run.position < self._log.first_position
        return [
            Place(run.queue_id, -1 if expired else run.queue_offset + number, position)
            for number, position in enumerate(unpack_positions(run))
        ]

    def _answer_stored(self, term: Term, req: PutMessage, places: Sequence[Place], answer: Answer | None) -> None:
        """The answer to a send all of whose messages are stored already: the first one's, when that is committed."""
        if answer is None or answer.oneway:
            return
        frame = self._answers.stored(
            answer,
            places[0].queue_id if req.answer_queue is None else req.answer_queue,
            places[0].queue_offset,
            [place.position for place in places],
            req.transaction_id,
            duplicate=True,
            recall_handle=req.recall_handle,
        )
        self.release_with(max(place.position for place in places), answer, frame)

    def _note_duplicate(self, req: PutMessage, count: int) -> None:
        self.statistics.duplicates += count
        group = req.producer_group
        if req.sequence is None and group not in self._told_groups and len(self._told_groups) < _TOLD_GROUPS_MAX:
            self._told_groups.add(group)
            log.info(
                "a repeated message was not stored again (same unique id, same content); said once per producer group",
                extra={"producer_group": group, "topic": req.topic.decode(errors="replace")},
            )

    # --- what comes back from the disk

    def _looked_up(self, job: Job) -> None:
        send, term = job.send, self._term
        if term is None or term is not job.term:
            self._answer_late(send, None)
        elif job.failed:
            self._answer_late(send, Busy("the log could not be read"))
        else:
            self._late(send, lambda: self._finish_lookup(term, job))

    def _finish_lookup(self, term: Term, job: Job) -> None:
        send = job.send
        if job.suspects:
            self._foreign(term, send, job.records)
            return
        head = send.head
        assert head.sequence is not None
        # Found in part (a batch): the rest is stored as a foreign client's would be, known by its ids.
        part = 0 < len(job.places) < len(send.elements)
        hashes = [
            id_key(head.topic, uniq, head.reconsume_times) if part and uniq and self.state.id_window.enabled else -1
            for uniq in job.ids
        ]
        self._put_all(term, head, send.elements, send.answer, hashes, job.places)

    def _readmit(self, send: Held) -> None:
        def admit() -> None:
            if send.batch:
                self.put_elements(send.head, send.elements, send.answer)
            else:
                self.put(send.head, send.answer)

        self._late(send, admit)

    def _late(self, send: Held, admit: Callable[[], None]) -> None:
        """Admit a send whose caller is gone: what would have been raised becomes its answer."""
        try:
            admit()
        except (Refused, Busy) as problem:
            self._answer_late(send, problem)
        except NotLeader:
            self._answer_late(send, None)

    def _answer_late(self, send: Held, problem: Refused | Busy | None) -> None:
        answer = send.answer
        if answer is None or answer.oneway:
            return
        if problem is None:
            frame = failure_frame(answer, Outcome(Fate.LOST, self.leader))
        elif isinstance(problem, Busy):
            frame = refusal_frame(answer, Refused(ResponseCode.SYSTEM_BUSY, str(problem)))
        else:
            frame = refusal_frame(answer, problem)
        answer.reply.send(frame)

    def _abandoned(self) -> list[Answer | None]:
        return [send.answer for send in self._lookups.drop()]

    # --- small things

    def _queue(self, info: TopicInfo, queue_id: int) -> int:
        """A queue for a request that names none, or none to write to. Raises `Refused`."""
        if queue_id < 0:
            self._rotation += 1
            return self._rotation % max(1, info.write_queues)
        if queue_id >= max(info.read_queues, info.write_queues):
            raise Refused(
                ResponseCode.INVALID_PARAMETER,
                f"queue {queue_id} of topic {info.name!r} does not exist: it has {info.write_queues} queues",
            )
        return queue_id


def _element(req: PutMessage) -> BatchElement:
    return BatchElement(bytes(req.body), req.properties, req.flag)
