"""A wake-up for one owner: set from anywhere, waited for by exactly one task."""

from __future__ import annotations

import trio

__all__ = ["Signal"]


class Signal:
    """An event that re-arms itself. Many `set` before the owner runs are one wake-up."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """Wake the owner, now or when it waits next."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Would `wait` return at once?"""
        return self._event.is_set()

    async def wait(self) -> None:
        """Wait for a `set` since the last return. Cancelled: the wake-up is kept."""
        await self._event.wait()
        self._event = trio.Event()
