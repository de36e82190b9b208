"""The queue of storage writes: the one durability rule, made structural.

A promise (acknowledgement, grant, refusal) is not sent and then hoped for: it rides on the write that makes it true and
comes out of `done` when that write is finished, in order. What needs no write of its own but may depend on state that
is still on its way takes an empty place in the queue.

The ABA race. Entry 5 of term 1 is being written; a newer leader replaces it by 5 of term 2 (queued behind); an older
leader's 5 of term 1 returns (queued third). When the first write finishes, memory agrees with what it wrote, yet the
disk is about to change twice. Hence: **a finished write advances `durable` at most to the lowest truncation point among
the writes still queued** (`done`). The counterpart, a truncation lowers `durable` at once, is `RaftLog.truncate_after`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from raft.core.errors import InvariantBroken
from raft.core.messages import AppendReply, Message, VoteReply
from raft.core.ready import AppendBatch
from raft.core.types import EntryId, EntryLike, HardState

__all__ = ["WriteQueue"]


class WriteQueue:
    """Batches that are being formed, waiting to be taken, or taken and not yet reported."""

    __slots__ = ("_open", "_taken", "_waiting", "seq")

    def __init__(self) -> None:
        self.seq = 0
        self._open: AppendBatch | None = None
        self._waiting: list[AppendBatch] = []
        self._taken: deque[AppendBatch] = deque()

    @property
    def idle(self) -> bool:
        """Nothing is on its way: what is true in memory is true on disk."""
        return self._open is None and not self._waiting and not self._taken

    def hard_state(self, state: HardState) -> None:
        self._batch().hard_state = state

    def entries(self, entries: Sequence[EntryLike], truncate_to: EntryId | None) -> None:
        """Queue entries, after cutting the log to `truncate_to` if given."""
        if truncate_to is not None:
            # What the open batch already holds comes before the cut, and its messages speak of those entries.
            if self._open is not None and (self._open.entries or self._open.truncate_to or self._open.release):
                self._seal()
            self._batch().truncate_to = truncate_to
        self._batch().entries.extend(entries)

    def release(self, message: Message) -> None:
        """Send it once everything queued so far is durable."""
        release = self._batch().release
        if release and _same_ack(release[-1], message):
            release.pop()
        release.append(message)

    def take(self) -> list[AppendBatch]:
        """Batches for the writer, oldest first; each is returned once."""
        self._seal()
        taken, self._waiting = self._waiting, []
        self._taken.extend(taken)
        return taken

    def done(self, seq: int) -> tuple[int, list[Message]]:
        """All batches up to `seq` are finished: how far the log is durable by them (0: no change), and what is true
        now."""
        if not self._taken or not self._taken[0].seq <= seq <= self._taken[-1].seq:
            raise InvariantBroken("S11", f"batch {seq} was reported written, but it is not being written")
        reached = 0
        released: list[Message] = []
        while self._taken and self._taken[0].seq <= seq:
            batch = self._taken.popleft()
            if batch.entries:
                reached = batch.entries[-1].index
            released.extend(batch.release)
        return self._capped(reached), released

    def hard_state_done(self, seq: int) -> list[Message]:
        """The hard states up to batch `seq` are durable while entries before it are not: votes for others are true.

        Nothing else leaves: an acknowledgement, a refusal of entries and an own candidacy speak of a log that is not on
        the disk.
        """
        released: list[Message] = []
        for batch in self._taken:
            if batch.seq > seq:
                break
            released += [message for message in batch.release if _is_vote_for_another(message)]
            batch.release[:] = [message for message in batch.release if not _is_vote_for_another(message)]
        return released

    def abandon(self) -> None:
        """Storage failed: nothing that is queued will ever be true."""
        self._open = None
        self._waiting.clear()
        self._taken.clear()

    def _capped(self, reached: int) -> int:
        for batch in (*self._taken, *self._waiting, self._open):
            if batch is not None and batch.truncate_to is not None:
                reached = min(reached, batch.truncate_to.index)
        return reached

    def _batch(self) -> AppendBatch:
        if self._open is None:
            self.seq += 1
            self._open = AppendBatch(self.seq)
        return self._open

    def _seal(self) -> None:
        if self._open is not None:
            self._waiting.append(self._open)
            self._open = None


def _is_vote_for_another(message: Message) -> bool:
    return type(message) is VoteReply and message.to != message.sender


def _same_ack(old: Message, new: Message) -> bool:
    """Whether `new` says all that `old` says: one acknowledgement answers all requests of one turn."""
    return (
        type(old) is AppendReply
        and type(new) is AppendReply
        and old.to == new.to
        and old.term == new.term
        and old.rejected < 0
        and new.rejected < 0
        and old.match <= new.match
    )
