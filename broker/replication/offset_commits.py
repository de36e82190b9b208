"""Consumer offsets in the leader: judges updates, keeps the pending ones, says when an entry is due for them.

Part of the intake, which owns one of these per term of leadership.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.metadata.offsets import FENCE_MS
from broker.metadata.ops import GroupDel, OffsetsPut, Op, Reset, TopicDel, encode_op, key_of, tid_of
from broker.replication.answers import failure_frame, plain_ok
from broker.replication.base import OK, Outcome, Replies, Settled
from broker.replication.base import Verdict as Fate
from broker.replication.offset_intake import OffsetVerdict, PendingOffsets, judge_offset
from broker.replication.requests import Answer, Refused
from trimq.wire.codes import ResponseCode

if TYPE_CHECKING:
    from broker.replication.leader_view import LeaderView
    from broker.replication.open_batch import OpenBatch

__all__ = ["OffsetCommits", "OffsetCounters", "tell_all"]


@dataclass(slots=True)
class OffsetCounters:
    """What became of updates, since the process started."""

    taken: int = 0
    ignored_negative: int = 0
    ignored_lower: int = 0
    """Late commits of consumers that lost the queue."""
    ignored_fenced: int = 0
    """Commits of the old place after a reset."""
    refused_beyond: int = 0


class OffsetCommits:
    """Pending offsets of one term."""

    def __init__(self, view: LeaderView, counters: OffsetCounters) -> None:
        self._view = view
        self._counters = counters
        self._pending = PendingOffsets()
        self._lifted: set[tuple[int, int]] = set()  # membership only, never iterated
        """(gid, key) of fences that a pull at or below the new place has ended; a new reset puts its fence up again."""
        self.due = False
        """An entry shall be formed for the pending offsets, even when nothing else needs one."""

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def wants_entry(self) -> bool:
        return self.due and len(self._pending) > 0

    # --- updates

    def commit(
        self, gid: int, key: int, offset: int, now_ms: int, *, newest_puller: bool, forced: bool, answer: Answer | None
    ) -> bool:
        """Judge one update. True when it became pending. Raises `Refused` for an offset beyond the queue's end."""
        view, pending, counters = self._view, self._pending, self._counters
        stored = pending.get(gid, key)
        if stored is None:
            stored = view.offset(gid, key)
        end = view.next_offset(key)
        verdict = judge_offset(
            offset,
            stored=stored,
            end=end,
            newest_puller=newest_puller,
            forced=forced,
            fence=self._fence(gid, key),
            now_ms=now_ms,
        )
        wanted = answer is not None and not answer.oneway
        if verdict is OffsetVerdict.SAME and wanted and self._view.state.offsets.get(gid, key) != offset:
            # On its way: the answer may only come when it is applied, so it travels once more with that answer.
            verdict = OffsetVerdict.TAKE
        if verdict is OffsetVerdict.TAKE:
            counters.taken += 1
            pending.put(gid, key, offset, _when_applied(answer) if answer is not None and wanted else None)
            self.due = self.due or wanted
            return True
        if verdict is OffsetVerdict.BEYOND:
            counters.refused_beyond += 1
            raise Refused(ResponseCode.SYSTEM_ERROR, f"offset {offset} is beyond the queue's end {end}: not stored")
        if verdict is OffsetVerdict.NEGATIVE:
            counters.ignored_negative += 1
        elif verdict is OffsetVerdict.LOWER:
            counters.ignored_lower += 1
        elif verdict is OffsetVerdict.FENCED:
            counters.ignored_fenced += 1
        if answer is not None and wanted:
            answer.reply.send(plain_ok(answer))
        return False

    # --- resets

    @property
    def fenced(self) -> bool:
        """Is any reset waiting for a pull? Then tell `saw_pull` of pulls."""
        return self._view.tables.offsets.any_fence

    def saw_pull(self, gid: int, key: int, offset: int) -> None:
        """A consumer pulled; at the place of a reset it has noticed it.

        At that very place: after a reset forward (a backlog is skipped) late pulls of the old place are lower.
        """
        fence = self._view.tables.offsets.fence(gid, key)
        if fence is not None and offset == fence[0]:
            self._lifted.add((gid, key))

    def moved_to(self, gid: int, key: int, now_ms: int) -> int | None:
        """Where a reset wants this consumer group to read, until it was seen there."""
        fence = self._fence(gid, key)
        return None if fence is None or now_ms - fence[1] >= FENCE_MS else fence[0]

    def _fence(self, gid: int, key: int) -> tuple[int, int] | None:
        fence = self._view.tables.offsets.fence(gid, key)
        return None if fence is None or (gid, key) in self._lifted else fence

    # --- into entries

    def overtaken_by(self, op: Op) -> list[Settled]:
        """An op is about to be written that makes pending rows moot. Returns who waited for them."""
        match op:
            case Reset(gid=gid, offsets=rows):
                keys = [key_of(tid, queue) for tid, queue, _ in rows]
                self._lifted.difference_update((gid, key) for key in keys)
                return [waiter for key in keys for waiter in self._pending.drop(gid, key)]
            case TopicDel(tid=deleted):
                return self._pending.drop_where(lambda _, key: tid_of(key) == deleted)
            case GroupDel(gid=deleted):
                return self._pending.drop_where(lambda gid, _: gid == deleted)
            case _:
                return []

    def fill(self, batch: OpenBatch, room_bytes: int) -> None:
        """Let a batch that is about to close take pending rows along."""
        rows, waiting = self._pending.take(room_bytes)
        if rows:
            op = OffsetsPut(rows)
            batch.add_op(encode_op(op))
            batch.when_applied += waiting
            self._view.apply(op)
        if not len(self._pending):
            self.due = False

    def drop(self, outcome: Outcome, replies: Replies) -> list[tuple[int, int, int]]:
        """The term is over. Answers who waits; returns the rows that were told to nobody (gid, key, offset)."""
        rows = self._pending.rows()
        for waiter in self._pending.waiters():
            waiter(outcome, replies)
        self._pending = PendingOffsets()
        return rows


def _when_applied(answer: Answer) -> Settled:
    def tell(outcome: Outcome, replies: Replies) -> None:
        replies.add(answer.reply, plain_ok(answer) if outcome.verdict is Fate.OK else failure_frame(answer, outcome))

    return tell


def tell_all(waiting: list[Settled]) -> None:
    """Rows that a reset or a deletion overtook: their updates took effect and are gone."""
    replies = Replies()
    for waiter in waiting:
        waiter(OK, replies)
    replies.flush()
