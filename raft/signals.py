"""A wake-up for one owner: set from anywhere, waited for by exactly one task."""

from __future__ import annotations

from collections.abc import Callable

import trio

__all__ = ["Signal"]


class Signal:
    """An event that re-arms itself. Many `set` before the owner runs are one wake-up.

    A group's tasks wait several times for a message that is sent alone, so there is no object for each wait.
    """

    __slots__ = ("_set", "_waiter")

    def __init__(self) -> None:
        self._set = False
        self._waiter: trio.lowlevel.Task | None = None

    def set(self) -> None:
        """Wake the owner, now or when it waits next."""
        self._set = True
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            trio.lowlevel.reschedule(waiter)

    @property
    def is_set(self) -> bool:
        """Would `wait` return at once?"""
        return self._set

    async def wait(self) -> None:
        """Wait for a `set` since the last return. Cancelled: the wake-up is kept."""
        if self._set:
            await trio.lowlevel.checkpoint()
        else:
            assert self._waiter is None, "a signal has one owner"
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._set = False

    def _abort(self, raise_cancel: Callable[[], object]) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED
