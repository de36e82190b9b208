"""The writer of a group: carries out the core's storage writes, strictly in order, many in one sync.

Everything queued when the disk becomes free goes into one write, up to `WRITE_MAX_BYTES`: that is group commit, and it
needs no timer. A batch with a hard state or a truncation begins a new write, because each of the two must be durable
before what follows it.

Plain entries that nothing stands before are begun by whoever queues them, and their end is told from where the disk's
answer came in: `run`, the writer's task, sees only what has to wait for something.

Disk trouble, as the core hears it: no space (the log is intact; the same write is tried again until it succeeds, and
nothing behind it is reported meanwhile but hard states: their file needs no space, so a full replica goes on voting),
slow, stalled, failed (final: this writer never writes again).
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import trio

from raft.core.ready import AppendBatch
from raft.core.types import EntryLike, HardState, StorageFault
from raft.hard_state import HardStateDamaged, HardStateFile
from raft.signals import Signal
from raft.storage import LogStorage, StorageDamaged

__all__ = ["WRITE_MAX_BYTES", "LogWriter"]

log = logging.getLogger(__name__)

WRITE_MAX_BYTES = 8 << 20
"""One write and sync; recovery's proof rule counts on it."""
SPACE_RETRY_S = 0.5


class LogWriter:
    """Queue in, finished sequence numbers out.

    `progress` is called after each write of the task and each change of `fault`, from where not much may be done;
    `landed` after each other write, from the loop itself.
    """

    def __init__(
        self, storage: LogStorage, hard: HardStateFile, progress: Callable[[], None], landed: Callable[[], None]
    ) -> None:
        self.done_seq = 0
        """All batches up to here are durable and visible in the storage's view."""
        self.hard_seq = 0
        """The hard states up to this batch are durable, although entries before it may have found no room yet."""
        self.fault: StorageFault | None = None
        """FULL or FAILED; slowness is judged by `busy_for_s`."""
        self.reason = ""
        self._storage = storage
        self._hard = hard
        self._progress = progress
        self._landed = landed
        self._queue: deque[AppendBatch] = deque()
        self._busy_since: float | None = None
        self._begun = False
        """The present write is on its way without the task."""
        self._leaving = False
        """The task is over, or waits for a write that has begun."""
        self._wake = Signal()
        self.ended = trio.Event()
        """Set when `run` is over: nothing of this writer reaches the disk any more."""

    @property
    def idle(self) -> bool:
        """Nothing queued and nothing under way."""
        return not self._queue and self._busy_since is None

    def busy_for_s(self, now: float) -> float:
        """How long the present write has been under way."""
        return 0.0 if self._busy_since is None else now - self._busy_since

    def put(self, batches: Sequence[AppendBatch]) -> None:
        """Queue batches behind everything that was queued before."""
        self._queue.extend(batches)
        if self._busy_since is None:
            self._begin()
        elif not self._begun:
            self._wake.set()

    async def run(self) -> None:
        """Write until cancelled, or until the disk failed for good or the log is damaged."""
        try:
            while self.fault is not StorageFault.FAILED:
                await self._wake.wait()
                while self._queue and self._busy_since is None:
                    if not await self._write_next():
                        return
        finally:
            self._leaving = True
            with trio.CancelScope(shield=True):  # waits for the disk only
                while self._begun:
                    await self._wake.wait()
            self.ended.set()

    def _begin(self) -> None:
        """Begin the next write from here, or leave it to the task."""
        while self._queue:
            first = self._queue[0]
            if self.fault is not None or self._leaving or first.hard_state is not None or first.truncate_to is not None:
                self._wake.set()
                return
            _, entries, seq = self._next()
            if entries:
                if self._storage.begin_write(entries, partial(self._ended, seq)):
                    self._busy_since = trio.current_time()
                    self._begun = True
                else:
                    self._queue.appendleft(replace(first, seq=seq, entries=entries))
                    self._wake.set()
                return
            self.done_seq = seq
            self._progress()

    def _ended(self, seq: int, error: OSError | None) -> None:
        self._busy_since = None
        self._begun = False
        if self._leaving:
            self._wake.set()
        if error is not None:
            self._fail(error)
            self._wake.set()
            self._progress()
            return
        self.done_seq = seq
        self._begin()
        self._landed()

    def _fail(self, error: Exception) -> None:
        self.fault = StorageFault.FAILED
        self.reason = str(error)
        self._queue.clear()
        log.error("the log cannot be written any more", extra={"error": str(error)})

    def _next(self) -> tuple[AppendBatch, list[EntryLike], int]:
        """The first batch, all entries that go with it in one write, and the sequence number that is then done."""
        first = self._queue.popleft()
        entries = first.entries
        seq = first.seq
        queue = self._queue
        if not queue:
            return first, entries, seq
        entries = list(entries)
        size = sum(len(entry.data) for entry in entries)
        while queue:
            batch = queue[0]
            size += sum(len(entry.data) for entry in batch.entries)
            too_much = size > WRITE_MAX_BYTES and len(entries) > 0
            if batch.hard_state is not None or batch.truncate_to is not None or too_much:
                break
            queue.popleft()
            entries.extend(batch.entries)
            seq = batch.seq
        return first, entries, seq

    async def _write_next(self) -> bool:
        """False when the disk failed for good."""
        first, entries, seq = self._next()
        self._busy_since = trio.current_time()
        try:
            if first.hard_state is not None and first.seq > self.hard_seq:
                await self._save(first.hard_state)
                self.hard_seq = first.seq
            if first.truncate_to is not None:
                await self._storage.truncate(first.truncate_to)
            if entries:
                await self._append(entries)
        except (OSError, HardStateDamaged) as error:
            self._fail(error)
            return False
        except StorageDamaged as error:
            # Not the disk's refusal: the group stops this core and mends the log first.
            self.reason = str(error)
            self._queue.clear()
            return False
        else:
            self.done_seq = seq
            return True
        finally:
            self._busy_since = None
            self._progress()

    async def _save(self, hard: HardState) -> None:
        state = replace(self._hard.state, term=hard.term, vote=hard.vote, suspect=hard.suspect, starts=hard.starts)
        await self._hard.save(state)
        if self._storage.suspect and not hard.suspect:
            await self._storage.clear_suspect()

    async def _save_ahead(self) -> None:
        """Entries wait for room: the hard states behind them do not. Term and vote only ever move on."""
        if not self._queue or self._queue[-1].seq <= self.hard_seq:
            return
        newest = self._queue[-1].seq
        waiting = [b for b in self._queue if b.hard_state is not None and b.seq > self.hard_seq]
        if waiting:
            state = waiting[-1].hard_state
            assert state is not None, "chosen for it"
            await self._save(state)
        self.hard_seq = newest
        self._progress()

    async def _append(self, entries: Sequence[EntryLike]) -> None:
        while True:
            try:
                await self._storage.write(entries)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                if self.fault is None:
                    self.fault, self.reason = StorageFault.FULL, str(error)
                    log.error("disk is full; nothing is acknowledged until there is space")
                    self._progress()
                deadline = trio.current_time() + SPACE_RETRY_S
                while trio.current_time() < deadline:
                    await self._save_ahead()
                    with trio.move_on_at(deadline):
                        await self._wake.wait()
            else:
                if self.fault is StorageFault.FULL:
                    self.fault, self.reason = None, ""
                    log.info("disk has space again")
                return
