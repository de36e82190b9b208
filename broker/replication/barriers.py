"""Barriers: all callers that arrive before the question leaves share one round of beats."""

from __future__ import annotations

import trio

from raft.group import RaftGroup

__all__ = ["Barriers"]


class _Round:
    def __init__(self) -> None:
        self.answered = trio.Event()
        self.index: int | None = None

    def done(self, index: int | None) -> None:
        self.index = index
        self.answered.set()


class Barriers:
    """The rounds of one group."""

    def __init__(self) -> None:
        self._open: _Round | None = None

    async def wait(self, group: RaftGroup) -> int | None:
        """The index that has to be dispatched to see everything acknowledged before; None: leadership was lost."""
        waiting = self._open
        if waiting is None:
            waiting = self._open = _Round()
            group.barrier(waiting.done, asked=self._left)
        await waiting.answered.wait()
        return waiting.index

    def _left(self) -> None:
        """The question is on its way: who comes now needs the next one."""
        self._open = None

    def lost(self) -> None:
        """There is nobody to ask any more."""
        if self._open is not None:
            self._open.done(None)
            self._open = None
