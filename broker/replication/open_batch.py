"""The open batch: where requests become the next entry.

The leader is the only appender, so a batch knows its index, its position and with it the position of every record while
it grows: records are packed once, here, and never touched again. `BatchQueue` opens, closes and seals batches in order:

- A batch closes at 1 MiB or 1,024 records. One request may make a larger one, alone: up to 8 MiB and 65,535 records.
- The replicator decides when a batch is taken. What arrives meanwhile opens the next batch behind a closed one: with
  the control payload fixed, its end is known, so the following positions are too.
- An entry never spans segments. A batch that might not fit the rest of a segment begins behind a filler, which is
  decided when its first item arrives. Sizes of control payloads are counted by upper bounds until the batch closes.

Nothing here waits or knows what a record means.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from broker.metadata.ops import OwnRecords, ProducerRun, Producers, assemble, encode_op
from broker.store.entry import (
    ENTRY_MAX_BYTES,
    HEADER_BYTES,
    RECORDS_MAX_COUNT,
    Entry,
    EntryId,
    EntryKind,
    fits,
    seal_entry,
    seal_filler,
)

if TYPE_CHECKING:
    from broker.replication.base import Settled
    from broker.replication.requests import Answer, RunAnswer

__all__ = ["CLOSE_BYTES", "CLOSE_RECORDS", "OWN_BYTES", "RUN_BYTES", "BatchQueue", "OpenBatch", "TooLarge"]

CLOSE_BYTES: Final = 1 << 20
CLOSE_RECORDS: Final = 1024

_PAYLOAD_BYTES: Final = 64
"""Upper bound of what surrounds the ops of a payload, and the heads of the two ops below."""
RUN_BYTES: Final = 48
"""Upper bound of one producer run in op 7: six numbers of at most nine bytes, mostly far less."""
OWN_BYTES: Final = 12
"""Upper bound of one range in op 8."""


class TooLarge(Exception):
    """One request needs more than an entry, or than a segment, can hold."""


class OpenBatch:
    """One entry in the making, and who waits for it."""

    __slots__ = (
        "answers",
        "at",
        "callbacks",
        "capacity",
        "control",
        "cost",
        "filler",
        "index",
        "limit",
        "ops",
        "own",
        "position",
        "records",
        "runs",
        "when_applied",
    )

    def __init__(self, index: int, position: int, capacity: int, *, filler: bool) -> None:
        self.index = index
        self.position = position
        self.capacity = capacity
        """The most that header, records and payload may take here."""
        self.limit = min(capacity, CLOSE_BYTES)
        """Nothing that would make it larger is added to what is there already."""
        self.filler = filler
        """Whether a filler goes before it."""
        self.cost = HEADER_BYTES + _PAYLOAD_BYTES
        """Upper bound of the entry's size as it stands."""
        self.records: list[bytes] = []
        self.at = position + HEADER_BYTES
        """Position of the next record."""
        self.ops: list[bytes] = []
        self.runs: list[ProducerRun] = []
        self.own: list[tuple[int, int]] = []
        self.control: bytes | None = None
        """The payload, once closed."""
        self.answers: list[tuple[Answer | RunAnswer, bytes]] = []
        """Answers that go out when the entry is acknowledged, ready made for success; a run's frames back to back."""
        self.callbacks: list[Settled] = []
        """Told the outcome when it is settled."""
        self.when_applied: list[Settled] = []
        """Told OK when the entry is applied on this replica, anything else when it is settled."""

    @property
    def end(self) -> int:
        """First position behind the entry. Known once it is closed."""
        assert self.control is not None
        return self.at + len(self.control)

    def add_record(self, record: bytes) -> None:
        """The record was packed for position `at`."""
        self.records.append(record)
        size = len(record)
        self.at += size
        self.cost += size

    def add_records(self, records: Sequence[bytes]) -> None:
        """The records were packed for positions back to back from `at` on."""
        self.records += records
        size = sum(map(len, records))
        self.at += size
        self.cost += size

    def add_op(self, encoded: bytes) -> None:
        self.ops.append(encoded)
        self.cost += len(encoded)

    def add_run(self, run: ProducerRun) -> None:
        """The producer sequences of records that were, or are about to be, added."""
        self.runs.append(run)
        self.cost += RUN_BYTES

    def add_own(self, ordinal: int, count: int) -> None:
        """Mark records as the broker's own; neighbouring ranges become one."""
        if self.own and sum(self.own[-1]) == ordinal:
            first, length = self.own[-1]
            self.own[-1] = (first, length + count)
        else:
            self.own.append((ordinal, count))
            self.cost += OWN_BYTES

    def record_at(self, position: int) -> bytes | None:
        """The record that begins at `position`, when it is one of this batch's."""
        at = self.position + HEADER_BYTES
        for record in self.records:
            if at == position:
                return record
            at += len(record)
        return None


class BatchQueue:
    """Batches in log order: closed ones waiting to be taken, then the one that grows.

    `on_open` is called with every new batch; `on_close` with a batch about to close and the bytes of ops that may still
    be added to it; `log_time` gives the log time of a payload.
    """

    def __init__(
        self,
        *,
        lineage_tag: int,
        segment_bytes: int,
        term: int,
        last: EntryId,
        log_time: Callable[[], int],
        on_open: Callable[[OpenBatch], None],
        on_close: Callable[[OpenBatch, int], None],
    ) -> None:
        self._lineage_tag = lineage_tag
        self._segment_bytes = segment_bytes
        self._term = term
        self._log_time = log_time
        self._on_open = on_open
        self._on_close = on_close
        self._index = last.index
        self._end = last.end
        self._closed: deque[OpenBatch] = deque()
        self.current: OpenBatch | None = None
        self.closed_bytes = 0
        """What waits in closed batches."""

    @property
    def last_index(self) -> int:
        """Index of the newest entry that exists or is being formed."""
        return self.current.index if self.current is not None else self._index

    @property
    def waiting(self) -> list[OpenBatch]:
        """Everything not taken yet, in order."""
        return [*self._closed, *([self.current] if self.current is not None else [])]

    @property
    def has_work(self) -> bool:
        return self.current is not None or bool(self._closed)

    def discard_empty(self) -> None:
        """The request for which a batch was opened turned out to be none."""
        batch = self.current
        if batch is not None and not batch.records and not batch.ops:
            self.current = None

    @property
    def full(self) -> bool:
        """Is there a batch that will not grow any more?"""
        if self._closed:
            return True
        batch = self.current
        return batch is not None and (len(batch.records) >= CLOSE_RECORDS or batch.cost >= CLOSE_BYTES)

    def reserve(self, size: int, count: int) -> OpenBatch:
        """The batch that takes `count` records and everything of one request, `size` bytes at most.

        Raises `TooLarge` before anything is changed.
        """
        batch = self.current
        if batch is not None and batch.cost + size <= batch.limit and len(batch.records) + count <= CLOSE_RECORDS:
            return batch
        size += _PAYLOAD_BYTES
        if count > RECORDS_MAX_COUNT or size + HEADER_BYTES > min(ENTRY_MAX_BYTES, self._segment_bytes - HEADER_BYTES):
            raise TooLarge(f"{count} records of {size} bytes in one request")
        if batch is not None:
            self.close()
        return self._open(size)

    def _open(self, size: int) -> OpenBatch:
        index, position = self._index + 1, self._end
        # The bound may exceed what the entry will really take, and an entry that is shorter than planned must not
        # leave a rest in which no filler fits: so the exact fit that `fits` would allow is not used.
        room = self._segment_bytes - position % self._segment_bytes - HEADER_BYTES
        filler = size + HEADER_BYTES > room
        if filler:
            index += 1
            position += room + HEADER_BYTES
            room = self._segment_bytes - HEADER_BYTES
        batch = self.current = OpenBatch(index, position, min(room, ENTRY_MAX_BYTES), filler=filler)
        self._on_open(batch)
        return batch

    def close(self) -> None:
        """Fix the payload of the batch that grows: from now on its end is known."""
        batch = self.current
        assert batch is not None
        self._on_close(batch, batch.capacity - batch.cost)
        ops = batch.ops
        if batch.runs:
            ops.append(encode_op(Producers(batch.runs)))
        if batch.own:
            ops.append(encode_op(OwnRecords(batch.own)))
        batch.control = assemble(self._log_time(), ops)
        assert batch.end - batch.position <= batch.capacity, (batch.index, batch.end - batch.position, batch.capacity)
        self._index, self._end = batch.index, batch.end
        self.current = None
        self._closed.append(batch)
        self.closed_bytes += batch.end - batch.position

    def take(self, prev: EntryId, commit: int) -> tuple[list[Entry], OpenBatch]:
        """Seal the oldest batch onto `prev`: its entry, after a filler where one is needed."""
        if not self._closed:
            self.close()
        batch = self._closed.popleft()
        self.closed_bytes -= batch.end - batch.position
        entries: list[Entry] = []
        if batch.filler:
            filler = seal_filler(
                prev=prev,
                term=self._term,
                lineage=self._lineage_tag,
                commit_hint=commit,
                segment_bytes=self._segment_bytes,
            )
            entries.append(filler)
            prev = filler.id
        assert batch.control is not None
        entry = seal_entry(
            kind=EntryKind.MESSAGES if batch.records else EntryKind.METADATA,
            prev=prev,
            term=self._term,
            lineage=self._lineage_tag,
            commit_hint=commit,
            records=batch.records,
            control=batch.control,
            record_count=len(batch.records),
        )
        # Positions are inside the records already: a batch sealed anywhere else would be a broken log.
        assert (entry.index, entry.position, entry.end) == (batch.index, batch.position, batch.end), (entry.id, prev)
        assert fits(entry.position, entry.size, self._segment_bytes)
        entries.append(entry)
        return entries, batch

    def rebase(self, last: EntryId) -> None:
        """An entry of somebody else's went behind the last one taken; nothing may be waiting here."""
        assert not self.has_work, "records of the open batch carry their positions: it cannot move"
        self._index, self._end = last.index, last.end
