"""Messages of several topics in one entry: all or none, and stored once like any other send.

The log of a replica group holds all its topics, so what a broker with a log for each topic needs a transaction
coordinator for is one entry here. The messages take consecutive sequences of their producer; neighbours in one queue
are one run in the producer table, so a repeated request is recognised run by run. Its first run decides: an entry is
there or it is not.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace

from broker.metadata.ops import TopicPut, encode_op, key_of
from broker.metadata.producers import (
    RUNS_MAX,
    ProducerState,
    Verdict,
    find_run,
    judge,
)
from broker.metadata.topics import MULTI_TAG, TopicInfo
from broker.replication.base import Busy
from broker.replication.control import create_topic
from broker.replication.once import Place
from broker.replication.open_batch import RUN_BYTES, OpenBatch
from broker.replication.plain_runs import PlainRuns
from broker.replication.requests import Answer, PutMessage, Refused
from broker.replication.terms import Term, illegal
from trimq.errors import BadRequest
from trimq.message.ids import offset_message_id
from trimq.message.record import pack_record, record_size
from trimq.message.sysflag import HOST_MASK, MULTI_TAGS
from trimq.wire.body.atomic import encode_places
from trimq.wire.codes import ResponseCode
from trimq.wire.command import encode_response

__all__ = ["AtomicSends"]


class AtomicSends(PlainRuns):
    """Admission of several messages at once, whatever their topics."""

    def put_atomic(
        self, reqs: Sequence[PutMessage], sequence: tuple[int, int, int, int] | None, answer: Answer | None
    ) -> None:
        """Messages of any topics, each with a queue of its own choice, in one entry. Raises as `put` does."""
        term = self._leading()
        sizes = _run_sizes(reqs)
        if sequence is not None:
            pid, epoch, first, floor = sequence
            if self._lookups.holds(pid):
                raise Busy("an earlier message of this producer is being looked up")
            state = term.view.producers.find(pid)
            verdict, expected = judge(state, epoch, first, sizes[0], floor)
            if verdict is Verdict.DUPLICATE:
                self._answer_atomic_again(term, state, reqs, sizes, first, answer)
                return
            if verdict is not Verdict.NEW:
                self._not_new(term, verdict, state, expected, replace(reqs[0], sequence=sequence), sizes[0], answer)
                return
            if state is not None and len(state.runs) + len(sizes) > RUNS_MAX:
                raise illegal(f"this producer has {len(state.runs)} unsettled sends: raise the floor (pf)")
        created = self._creations(term, reqs)
        infos = [self._own_topic(term, created, req.topic) for req in reqs]
        ops = [encode_op(op) for op in created.values()]
        need = sum(map(len, ops)) + RUN_BYTES * len(sizes)
        need += sum(record_size(len(req.topic), len(req.body), len(req.properties), HOST_MASK) for req in reqs)
        batch = self._reserve(term, need, len(reqs))
        records, ends, places = self._pack_own(term, batch, reqs, infos)
        for op, raw in zip(created.values(), ops, strict=True):
            batch.add_op(raw)
            term.view.apply(op)
        ordinal = len(batch.records)
        for record in records:
            batch.add_record(record)
        term.view.next.update(ends)
        self.statistics.stored += len(records)
        if sequence is not None:
            self._add_runs(term, batch, sequence, sizes, places, ordinal)
        if answer is not None and not answer.oneway:
            batch.answers.append((answer, self._places_frame(answer, places)))

    def _creations(self, term: Term, reqs: Sequence[PutMessage]) -> dict[bytes, TopicPut]:
        """The topics that have to be created. Raises `Refused` where that is not allowed."""
        created: dict[bytes, TopicPut] = {}
        for req in reqs:
            if req.topic not in created and term.view.topic(req.topic) is None:
                op = create_topic(
                    term.view.tables, self.config.creation, req.topic, req.default_topic, req.default_queues
                )
                created[req.topic] = replace(op, tid=op.tid + len(created))
        return created

    def _add_runs(
        self,
        term: Term,
        batch: OpenBatch,
        sequence: tuple[int, int, int, int],
        sizes: Sequence[int],
        places: Sequence[Place],
        ordinal: int,
    ) -> None:
        pid, epoch, first, floor = sequence
        at = 0
        for size in sizes:
            run = places[at : at + size]
            self._add_run(
                term,
                batch,
                (pid, epoch, first + at, floor),
                ordinal + at,
                run[0].queue_id,
                run[0].queue_offset,
                [place.position for place in run],
            )
            at += size

    def _answer_atomic_again(
        self,
        term: Term,
        state: ProducerState | None,
        reqs: Sequence[PutMessage],
        sizes: Sequence[int],
        first: int,
        answer: Answer | None,
    ) -> None:
        """They are stored, or on their way: the first answer again, when that is committed."""
        places: list[Place] = []
        for size in sizes:
            run = None if state is None else find_run(state, first + len(places), size)
            if run is None:
                raise Refused(
                    ResponseCode.STALE_SEQUENCE,
                    "other messages were stored under these sequences",
                    {"next": str(first)},
                )
            places += self._places_of(run)
        self._note_duplicate(reqs[0], 1)
        if answer is not None and not answer.oneway:
            self.release_with(places[-1].position, answer, self._places_frame(answer, places, duplicate=True))

    def _places_frame(self, answer: Answer, places: Sequence[Place], *, duplicate: bool = False) -> bytes:
        host = self.config.store_host
        body = encode_places([(queue, offset, offset_message_id(host, at)) for queue, offset, at in places])
        return encode_response(answer.opaque, answer.serialize, 0, {"dup": "1"} if duplicate else {}, "", body)

    def _own_topic(self, term: Term, created: Mapping[bytes, TopicInfo], name: bytes) -> TopicInfo:
        info = created.get(name) or term.view.topic(name)
        if info is None:
            raise Refused(ResponseCode.TOPIC_NOT_EXIST, f"topic {name.decode(errors='replace')!r} does not exist")
        return info

    def _pack_own(
        self, term: Term, batch: OpenBatch, reqs: Sequence[PutMessage], infos: Sequence[TopicInfo]
    ) -> tuple[list[bytes], dict[int, int], list[Place]]:
        """Records, the new ends of their queues, and the place of each. Changes nothing."""
        at, store_ms = batch.at, self._now()
        records: list[bytes] = []
        ends: dict[int, int] = {}
        places: list[Place] = []
        try:
            for req, info in zip(reqs, infos, strict=True):
                queue_id = req.queue_id
                if not 0 <= queue_id < info.write_queues:
                    queue_id = self._queue(info, queue_id)
                key = key_of(info.tid, queue_id)
                queue_offset = ends[key] if key in ends else term.view.next_offset(key)
                multi = MULTI_TAGS if info.filter_type == MULTI_TAG else 0
                record = pack_record(
                    topic=req.topic,
                    queue_id=queue_id,
                    queue_offset=queue_offset,
                    position=at,
                    flag=req.flag,
                    sys_flag=req.sys_flag & ~MULTI_TAGS | multi,
                    born_ms=req.born_ms,
                    born_host=req.born_host,
                    store_ms=store_ms,
                    store_host=self.config.store_host,
                    reconsume_times=req.reconsume_times,
                    prepared_offset=req.prepared_offset,
                    body=req.body,
                    properties=req.properties,
                )
                records.append(record)
                places.append(Place(queue_id, queue_offset, at))
                ends[key] = queue_offset + 1
                at += len(record)
        except (BadRequest, Refused, struct.error) as problem:
            term.batches.discard_empty()
            raise problem if isinstance(problem, Refused) else illegal(f"a message fits no record: {problem}") from None
        return records, ends, places


def _run_sizes(reqs: Sequence[PutMessage]) -> list[int]:
    """How many neighbours lie in one queue, from the first message on."""
    sizes: list[int] = []
    last: tuple[bytes, int] | None = None
    for req in reqs:
        place = (req.topic, req.queue_id)
        if place == last:
            sizes[-1] += 1
        else:
            sizes.append(1)
            last = place
    return sizes
