"""Who is held is looked at again: when a queue got messages, when something is visible again, when its time is over.

News only takes a note of a (consumer group, topic) pair; one task serves what was noted, the oldest wait first, so a
burst of news costs one look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import trio

from broker.metadata.ops import key_of, tid_of
from broker.replication.intake import Intake
from broker.service.holding import SLOT_S
from broker.service.pop_waits import Pair, PopWait, PopWaits
from trimq.message.pop import pop_retry_topic

__all__ = ["PopWaking"]


class Attempt(Protocol):
    """Answers a wait if there is something, else holds it (or says that there is nothing). True: it is answered."""

    def __call__(self, wait: PopWait, *, may_hold: bool) -> bool: ...


class PopWaking:
    """One per replica."""

    def __init__(self, waits: PopWaits, intake: Intake, attempt: Attempt) -> None:
        self._waits = waits
        self._intake = intake
        self._attempt = attempt
        self._runnable: dict[Pair, None] = {}
        self._wake = trio.Event()

    def touched(self, touched: Mapping[int, int]) -> None:
        """Queues got messages. Called by the dispatcher, so it only takes a note."""
        if len(self._waits):
            for pair in self._waits.interested(touched):
                self.run_soon(pair)

    def topics_changed(self) -> None:
        """A queue may have been added to what somebody waits for: a retry topic, above all."""
        if len(self._waits) and self._intake.admitting:
            for pair in self._waits.pairs():
                self.watch(self._waits.waiting(pair)[0])
                self.run_soon(pair)

    def wake(self, group: str, topic: str) -> None:
        """Something of this topic is visible again for this consumer group."""
        if (group, topic) in self._waits:
            self.run_soon((group, topic))

    def visible_again(self, gid: int, key: int) -> None:
        """The same by id and queue (`PopRevive`)."""
        tables = self._intake.view.tables
        group, topic = tables.groups.by_id.get(gid), tables.topics.by_id.get(tid_of(key))
        if group is not None and topic is not None:
            self.wake(group.name, topic.name)

    def run_soon(self, pair: Pair) -> None:
        """Look again for those who wait for this pair."""
        self._runnable[pair] = None
        self._wake.set()

    def watch(self, wait: PopWait) -> None:
        """Note the queues of what somebody waits for."""
        view = self._intake.view
        names = (wait.topic, pop_retry_topic(wait.topic, wait.group))
        topics = [topic for name in names if (topic := view.topic(name.encode())) is not None]
        self._waits.watch(
            wait.pair, [key_of(topic.tid, queue) for topic in topics for queue in range(topic.read_queues)]
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve held pops until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            task_status.started()
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                runnable, self._runnable = self._runnable, {}
                for pair in runnable:
                    self._serve(pair)
                    await trio.lowlevel.checkpoint()

    def _serve(self, pair: Pair) -> None:
        """Give what there is to those who wait, the oldest first, until nothing is left for anybody."""
        vain: set[object] = set()  # membership only
        for wait in self._waits.waiting(pair):
            if wait.active and wait.alike not in vain and not self._attempt(wait, may_hold=True):
                vain.add(wait.alike)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SLOT_S)
            for wait in self._waits.due(trio.current_time()):
                self._attempt(wait, may_hold=False)
