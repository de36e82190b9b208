"""Plain sends by the run: what one read brought is admitted at once, with no object per message but its record.

Most sends are alike: one message, a topic and queue that exist, nothing special about it, not sent before. Where the
compiled module is installed, such neighbours are read, placed, packed and answered together. The run ends before the
first send that is not like that; it takes the way of a single send (`sends`), which judges it in full. Both ways store
and answer the same bytes (tests/intake/test_plain_runs.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from zlib import crc32

from broker.metadata.id_window import id_key
from broker.metadata.ops import ProducerRun
from broker.metadata.producers import RUNS_MAX, Run, Verdict, judge
from broker.metadata.topics import MULTI_TAG
from broker.replication.base import Busy, ReplyTo
from broker.replication.open_batch import CLOSE_RECORDS, RUN_BYTES, OpenBatch
from broker.replication.requests import Refused, RunAnswer
from broker.replication.sends import RECORD_BYTES, Sends
from broker.replication.terms import Term
from trimq.message.sysflag import MULTI_TAGS

if TYPE_CHECKING:
    from broker.replication._plain_sends import Run as SendRun

__all__ = ["PlainRuns"]


class PlainRuns(Sends):
    """Admission of runs."""

    def put_run(self, run: SendRun, reply: ReplyTo, born_host: bytes) -> int:
        """Admit sends from the beginning of a run, as many as are plain; returns how many. The answers go to `reply`.

        Raises `NotLeader`. Never refuses: whatever there is to refuse is left to the way of a single send.
        """
        term = self._leading()
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

    def _new_keys(self, term: Term, run: SendRun) -> list[int | None]:
        """The id keys of the sends before the first that may be a repeat."""
        if run.numbered or not self.state.id_window.enabled:
            return [None] * run.count
        keys = run.keys(id_key)
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

    def _is_next(self, term: Term, sequence: tuple[int, int, int, int]) -> bool:
        pid, epoch, first, floor = sequence
        state = term.view.producers.find(pid)
        verdict, _ = judge(state, epoch, first, 1, floor)
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
        if first == end:
            return
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
