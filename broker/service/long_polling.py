"""Wakes held pulls: when their queue is touched, when their time is up, when the replica's role changes.

Java's PullRequestHoldService scans all held requests every 5 s and on every message; here the dispatcher says which
queues an entry touched, and only the pulls of those queues are looked at, once per batch of entries. Two tasks per
replica, whatever the number of pulls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from broker.service.hold import HeldPull, HoldTable
from broker.service.holding import SLOT_S

__all__ = ["LongPolling", "Rerun"]

Rerun = Callable[[HeldPull, bool], None]
"""Look at a pull again; the flag says that it may be held once more."""

SLICE = 256
"""Pulls looked at between two checkpoints."""


class LongPolling:
    """Owner of the hold table's wake-ups."""

    def __init__(self, table: HoldTable, rerun: Rerun) -> None:
        self._table = table
        self._rerun = rerun
        self._touched: dict[int, None] = {}
        self._everyone = False
        self._wake = trio.Event()

    def touched(self, touched: Mapping[int, int]) -> None:
        """Queues (by key) got messages that may be read now. Called by the dispatcher, so it only takes a note."""
        table = self._table
        if not len(table):
            return
        before = len(self._touched)
        for key in touched:
            if key in table:
                self._touched[key] = None
        if len(self._touched) > before:
            self._wake.set()

    def role_changed(self) -> None:
        """What a pull outside the queue's bounds is answered depends on the role: look at all of them again."""
        self._everyone = True
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            task_status.started()
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                touched, self._touched = self._touched, {}
                everyone, self._everyone = self._everyone, False
                await self._look(self._table.take_all() if everyone else self._table.take(touched), True)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SLOT_S)
            due = self._table.due(trio.current_time())
            if due:
                await self._look(due, False)

    async def _look(self, pulls: list[HeldPull], may_hold: bool) -> None:
        for at, pull in enumerate(pulls, start=1):
            self._rerun(pull, may_hold)
            if at % SLICE == 0:
                await trio.lowlevel.checkpoint()
