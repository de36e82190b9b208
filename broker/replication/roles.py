"""The newest role event of a group, for whoever wants to follow it.

Latest wins: a slow subscriber never holds up the group's loop and never sees a stale event after a newer one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from broker.replication.base import NO_LEADER, Role, RoleEvent

__all__ = ["RoleBoard"]


class RoleBoard:
    """Holds the present event and wakes everyone who waits for the next."""

    def __init__(self) -> None:
        self.present = RoleEvent(Role.FOLLOWER, 0, NO_LEADER, False)
        self._serial = 0
        self._changed = trio.Event()

    def publish(self, event: RoleEvent) -> None:
        """Make `event` the present one; nothing happens when it says nothing new."""
        if event == self.present:
            return
        self.present = event
        self._serial += 1
        self._changed.set()
        self._changed = trio.Event()

    async def changed(self) -> None:
        """Return after the next `publish` that says something new."""
        await self._changed.wait()

    def subscribe(self) -> AsyncIterator[RoleEvent]:
        """The present event, then each newer one (some may be skipped)."""
        return _Subscription(self)


class _Subscription:
    def __init__(self, board: RoleBoard) -> None:
        self._board = board
        self._seen = -1

    def __aiter__(self) -> AsyncIterator[RoleEvent]:
        return self

    async def __anext__(self) -> RoleEvent:
        board = self._board
        while self._seen == board._serial:
            await board.changed()
        await trio.lowlevel.checkpoint_if_cancelled()
        self._seen = board._serial
        return board.present
