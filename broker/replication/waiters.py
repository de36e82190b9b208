"""Who waits for something that has no ticket: for an entry to be applied, for an inherited entry to be committed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from broker.replication.answers import failure_frame
from broker.replication.base import OK, Outcome, Replies, Settled
from broker.replication.requests import Answer

__all__ = ["AppliedWaiters", "InheritedDuplicates"]


class AppliedWaiters:
    """Committed entries that are not applied here yet, and whom to tell. Entries come in ascending order."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Sequence[Settled]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, index: int, callbacks: Sequence[Settled]) -> None:
        self._waiting.append((index, callbacks))

    def release(self, applied: int, replies: Replies) -> None:
        """Entries up to `applied` are applied."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= applied:
            for callback in waiting.popleft()[1]:
                callback(OK, replies)


class InheritedDuplicates:
    """Repeats of messages whose first copy stands in an uncommitted entry that another leader wrote.

    Nobody here has a ticket for such an entry. The repeat is answered when the entry is applied, never earlier; when
    that takes longer than one to two sweeps, or when this leadership ends first, its outcome is unknown.
    """

    __slots__ = ("_fresh", "_old")

    def __init__(self) -> None:
        self._fresh: list[tuple[int, Answer, bytes]] = []
        self._old: list[tuple[int, Answer, bytes]] = []

    def __len__(self) -> int:
        return len(self._fresh) + len(self._old)

    def add(self, position: int, answer: Answer, frame: bytes) -> None:
        self._fresh.append((position, answer, frame))

    def release(self, applied_end: int, replies: Replies) -> None:
        """Everything before `applied_end` is applied."""
        if not self._fresh and not self._old:
            return
        for waiting in (self._old, self._fresh):
            for position, answer, frame in waiting:
                if position < applied_end:
                    replies.add(answer.reply, frame)
        self._old = [each for each in self._old if each[0] >= applied_end]
        self._fresh = [each for each in self._fresh if each[0] >= applied_end]

    def sweep(self, outcome: Outcome, replies: Replies) -> None:
        """Give up those that were here at the sweep before."""
        for _, answer, _ in self._old:
            replies.add(answer.reply, failure_frame(answer, outcome))
        self._old, self._fresh = self._fresh, []

    def drop(self, outcome: Outcome, replies: Replies) -> None:
        """This leadership is over."""
        self.sweep(outcome, replies)
        self.sweep(outcome, replies)
