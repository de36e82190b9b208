"""Plain sends by the run: what one read, or one batch, brought is admitted with no object per message but its record.

Most sends are alike: one message, a topic and queue that exist, nothing special about it, not sent before. Where the
compiled module is installed, such neighbours are read, placed, packed and answered together. The run ends before the
first send that is not like that; it takes the way of a single send (`sends`), which judges it in full. Both ways store
and answer the same bytes (tests/intake/test_plain_runs.py). A batch, all or none, is one or is left to `sends` whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from zlib import crc32

from broker.metadata.id_window import id_key
from broker.metadata.ops import ProducerRun, key_of
from broker.metadata.producers import RUNS_MAX, Run, Verdict, judge
from broker.metadata.topics import MULTI_TAG
from broker.replication.base import Busy, ReplyTo
from broker.replication.open_batch import CLOSE_RECORDS, RUN_BYTES, OpenBatch
from broker.replication.requests import Answer, PutMessage, Refused, RunAnswer
from broker.replication.sends import RECORD_BYTES, Sends
from broker.replication.terms import Term
from trimq.message.sysflag import MULTI_TAGS

if TYPE_CHECKING:
    from broker.replication._plain_sends import Batch as SendBatch
    from broker.replication._plain_sends import Run as SendRun

try:
    from broker.replication._plain_sends import Batch as _Batch
    from broker.replication._plain_sends import Run as _Run
except ImportError:  # installed without a compiler
    make_run: type[SendRun] | None = None
    make_batch: type[SendBatch] | None = None
else:
    make_run, make_batch = _Run, _Batch

__all__ = ["PlainRuns", "make_batch", "make_run"]

_V4_BYTES: Final = 8
"""A host with an IPv4 address, as records store it."""


class PlainRuns(Sends):
    """Admission of runs."""

    @property
    def takes_runs(self) -> bool:
        """Is it compiled here, and is this broker's address one that plain records hold?"""
        return make_run is not None and len(self.config.store_host) == _V4_BYTES

    def put_run(self, run: SendRun, reply: ReplyTo, born_host: bytes) -> int:
        """Admit sends from the beginning of a run, as many as are plain; returns how many. The answers go to `reply`.

        Raises `NotLeader`. Never refuses: whatever there is to refuse is left to the way of a single send.
        """
        term = self._leading()
        if len(born_host) != _V4_BYTES:
            return 0
        view = term.view
        infos = [view.topic(topic) for topic in run.topics]
        run.end_at_queues([info.write_queues if info is not None else 0 for info in infos])
        tids = [info.tid if info is not None else -1 for info in infos]
        multi_tags = [info is not None and info.filter_type == MULTI_TAG for info in infos]
        keys = self._new_keys(term, run)
        count = min(run.count, len(keys))
        done = 0
        while done < count:
            if run.numbered and not self._is_next(term, run.sequence(done)):
                break  # before a batch is closed for it
            batch = self._room(term, run, done)
            if batch is None:
                break
            end = min(count, _fitting(run, done, batch))
            after, places = run.place(done, end, batch.at, tids, view.next, self._queues.next_offset)
            if run.numbered:
                judged = self._number(term, batch, run, done, places)
                if judged < end:
                    count = end = judged
                    after, places = run.place(done, end, batch.at, tids, view.next, self._queues.next_offset)
            self._pack(term, batch, run, done, end, multi_tags, reply, born_host)
            view.next.update(after)
            for key, place in zip(keys[done:end], places, strict=True):
                if key is not None:
                    view.add_id(key, place[2])
            done = end
        term.batches.discard_empty()
        return done

    def put_batch_run(self, head: PutMessage, batch: SendBatch, answer: Answer) -> bool:
        """Admit a plain batch, where `takes_runs`; False leaves it to `put_elements`. Raises as that does."""
        term = self._leading()
        view, sequence, count = term.view, head.sequence, batch.count
        info = view.topic(head.topic)
        if not count or info is None or not 0 <= head.queue_id < info.write_queues or head.again:
            return False
        if len(head.born_host) != _V4_BYTES:
            return False
        keys: list[int | None] = [None] * count
        if sequence is not None:
            if not self._is_next(term, sequence, count):
                return False
        elif self.state.id_window.enabled:
            keys = self._not_repeated(term, batch.keys(head.topic, head.reconsume_times, id_key))
            if len(keys) < count:
                return False
        need = RUN_BYTES + count * (RECORD_BYTES + len(head.topic)) + batch.text_bytes
        entry = self._reserve(term, need, count)
        key = key_of(info.tid, head.queue_id)
        offset, ordinal = view.next_offset(key), len(entry.records)
        records, positions = batch.records(
            crc32,
            self._ids.new_ids(batch.without_id),
            head.topic,
            head.queue_id,
            offset,
            entry.at,
            head.sys_flag | MULTI_TAGS if info.filter_type == MULTI_TAG else head.sys_flag & ~MULTI_TAGS,
            head.born_ms,
            head.born_host,
            self._now(),
            self.config.store_host,
            head.reconsume_times,
        )
        entry.add_records(records)
        view.next[key] = offset + count
        self.statistics.stored += count
        if sequence is not None:
            self._add_run(term, entry, sequence, ordinal, head.queue_id, offset, positions)
        for each, position in zip(keys, positions, strict=True):
            if each is not None:
                view.add_id(each, position)
        if not answer.oneway:
            entry.answers.append((answer, self._answers.stored(answer, head.queue_id, offset, positions)))
        return True

    def _new_keys(self, term: Term, run: SendRun) -> list[int | None]:
        """The id keys of the sends before the first that may be a repeat."""
        if run.numbered or not self.state.id_window.enabled:
            return [None] * run.count
        return self._not_repeated(term, run.keys(id_key))

    @staticmethod
    def _not_repeated(term: Term, keys: list[int | None]) -> list[int | None]:
        """The keys before the first that the window knows, or that came before it among these."""
        find = term.view.find_id
        seen: set[int] = set()
        for number, key in enumerate(keys):
            if key is not None:
                if key in seen or find(key) is not None:
                    return keys[:number]
                seen.add(key)
        return keys

    def _room(self, term: Term, run: SendRun, first: int) -> OpenBatch | None:
        """A batch that takes at least the first send; None when that one is to be refused."""
        batch = term.batches.current
        if batch is not None and _fitting(run, first, batch) > first:
            return batch
        try:
            batch = self._reserve(term, run.bytes_wanted(first, RECORD_BYTES + RUN_BYTES), 1)
        except (Refused, Busy):
            return None
        return batch if _fitting(run, first, batch) > first else None

    def _number(
        self, term: Term, batch: OpenBatch, run: SendRun, first: int, places: Sequence[tuple[int, int, int]]
    ) -> int:
        """Enter the sequences of the sends at `places`; returns where the first is that is not its producer's next."""
        view, ordinal = term.view, len(batch.records)
        for number, place in enumerate(places):
            pid, epoch, sequence, floor = run.sequence(first + number)
            if not self._is_next(term, (pid, epoch, sequence, floor)):
                return first + number
            batch.add_run(ProducerRun(pid, epoch, sequence, 1, floor, ordinal + number))
            view.add_run(pid, epoch, Run(sequence, 1, *place), floor)
        return first + len(places)

    def _is_next(self, term: Term, sequence: tuple[int, int, int, int], count: int = 1) -> bool:
        pid, epoch, first, floor = sequence
        state = term.view.producers.find(pid)
        verdict, _ = judge(state, epoch, first, count, floor)
        full = state is not None and len(state.runs) >= RUNS_MAX
        return verdict is Verdict.NEW and not full and not self._lookups.holds(pid)

    def _pack(
        self,
        term: Term,
        batch: OpenBatch,
        run: SendRun,
        first: int,
        end: int,
        multi_tags: list[bool],
        reply: ReplyTo,
        born_host: bytes,
    ) -> None:
        """Put the records of placed sends into the batch, and their answers."""
        ids = self._ids.new_ids(run.without_id(first, end))
        store_host = self.config.store_host
        records = run.records(first, end, crc32, ids, multi_tags, born_host, self._now(), store_host, MULTI_TAGS)
        batch.add_records(records)
        self.statistics.stored += len(records)
        frames, opaques = run.answers(first, end, *self._answers.parts)
        if opaques:
            batch.answers.append((RunAnswer(reply, opaques, ours=run.numbered), frames))


def _fitting(run: SendRun, first: int, batch: OpenBatch) -> int:
    """Behind the last send that the batch takes."""
    return run.fitting(first, batch.cost, batch.limit, CLOSE_RECORDS - len(batch.records), RECORD_BYTES, RUN_BYTES)
