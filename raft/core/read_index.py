"""Barriers: linearizable read points without a log entry.

The commit index at the time of the request is a read point once leadership has been confirmed *after* the request, by a
round of beats that a quorum answered (Raft thesis 6.4, without leases: link hints and transfers bypass stickiness on
purpose). One round is shared by all waiters: who arrives while a round is under way waits for the next one, which
starts when that one ends. A leader that has not committed an entry of its term yet does not know the commit index:
its waiters are held until it does.
"""

from __future__ import annotations

from raft.core.ready import ReadGrant

__all__ = ["ReadIndex"]


class ReadIndex:
    """The waiters of one leader."""

    __slots__ = ("_index", "_round", "_running", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._running: list[int] = []
        self._round = 0
        self._index = 0

    def add(self, token: int) -> None:
        self._waiting.append(token)

    @property
    def wants_round(self) -> bool:
        """Somebody waits and no round is under way."""
        return bool(self._waiting) and not self._running

    @property
    def round(self) -> int:
        """The round under way; 0 if none is."""
        return self._round if self._running else 0

    def start(self, round_number: int, commit: int) -> None:
        """A round of beats with this number leaves now: it serves everybody who is waiting."""
        self._running, self._waiting = self._waiting, []
        self._round = round_number
        self._index = commit

    def confirmed(self) -> list[ReadGrant]:
        """A quorum answered the round under way."""
        grants = [ReadGrant(token, self._index) for token in self._running]
        self._running = []
        return grants

    def lost(self) -> list[ReadGrant]:
        """Leadership is gone."""
        grants = [ReadGrant(token, None) for token in (*self._running, *self._waiting)]
        self._running, self._waiting = [], []
        return grants
