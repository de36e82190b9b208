"""How many messages each topic took and each consumer group finished, over a minute, an hour and a day (code 315).

Nothing is counted on the hot path. What a topic took is the growth of its queues' ends, what a consumer group finished
is the growth of its offsets: both are functions of the log, so every replica has them, and a new leader starts no new
count. The spans are those of RocketMQ's StatsItem: samples every 10 s for the minute, 10 minutes for the hour, one hour
for the day; all sums are read every 10 s, in slices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from broker.metadata.ops import key_of, tid_of
from broker.metadata.state import GroupState
from broker.metrics import Counters
from broker.store.queue_index import QueueIndex
from trimq.wire.body.inspect import BrokerStatsData, StatsItem

__all__ = ["GROUP_GET", "SAMPLE_S", "TOPIC_PUT", "Statistics"]

SAMPLE_S = 10.0
TOPIC_PUT = "TOPIC_PUT_NUMS"
GROUP_GET = "GROUP_GET_NUMS"
ITEMS_MAX = 100_000
"""Items with samples; those beyond it have none."""
SLICE = 256
"""Items looked at between two checkpoints."""


@dataclass(slots=True)
class _Item:
    """Samples of (seconds, total), oldest first; totals never fall."""

    minute: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=7))
    hour: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=7))
    day: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=25))

    def sample(self, now: float, total: int) -> None:
        newest = self.day[-1][1] if self.day else total
        total = max(total, self.minute[-1][1] if self.minute else newest)
        self.minute.append((now, total))
        for samples, period in ((self.hour, 600.0), (self.day, 3600.0)):
            if not samples or now - samples[-1][0] >= period:
                samples.append((now, total))

    def data(self) -> BrokerStatsData:
        newest = self.minute[-1]
        return BrokerStatsData(
            statsDay=_grown(self.day, newest),
            statsHour=_grown(self.hour, newest),
            statsMinute=_grown(self.minute, newest),
        )


def _grown(samples: deque[tuple[float, int]], newest: tuple[float, int]) -> StatsItem:
    then, before = samples[0]
    now, total = newest
    grown = total - before
    return StatsItem(avgpt=1.0 if grown else 0.0, sum=grown, tps=grown / (now - then) if now > then else 0.0)


class Statistics:
    """The samples of one replica."""

    def __init__(self, cluster: str, state: GroupState, queues: QueueIndex, counters: Counters) -> None:
        self._cluster = cluster
        self._state = state
        self._queues = queues
        self._counters = counters
        self._items: dict[tuple[str, str], _Item] = {}

    def data(self, name: str, key: str) -> BrokerStatsData | None:
        """What is known of `TOPIC_PUT_NUMS` of a topic, `GROUP_GET_NUMS` of `topic@group`, ...; None if nothing."""
        item = self._items.get((name, key))
        return item.data() if item is not None else None

    def finished_per_s(self, topic: str, group: str) -> float:
        """Messages of a topic that a consumer group finished per second, over the last minute."""
        found = self.data(GROUP_GET, f"{topic}@{group}")
        return found.statsMinute.tps if found is not None else 0.0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sample until cancelled."""
        task_status.started()
        while True:
            await self._sample(trio.current_time())
            await trio.sleep(SAMPLE_S)

    async def _sample(self, now: float) -> None:
        self._put("BROKER_PUT_NUMS", self._cluster, now, self._counters.put_messages)
        self._put("BROKER_GET_NUMS", self._cluster, now, self._counters.get_messages)
        for count, info in enumerate(list(self._state.topics.all())):
            if count % SLICE == 0:
                await trio.lowlevel.checkpoint()
            ends = (
                self._queues.next_offset(key_of(info.tid, queue))
                for queue in range(max(info.read_queues, info.write_queues))
            )
            self._put(TOPIC_PUT, info.name, now, sum(ends))
        for count, group in enumerate(list(self._state.groups.all())):
            if count % SLICE == 0:
                await trio.lowlevel.checkpoint()
            for topic, total in self._finished(self._state.offsets.of_group(group.gid)).items():
                self._put(GROUP_GET, f"{topic}@{group.name}", now, total)
        for gone in [key for key, item in self._items.items() if item.minute[-1][0] != now]:
            del self._items[gone]

    def _finished(self, offsets: Mapping[int, int]) -> dict[str, int]:
        totals: dict[int, int] = {}
        for key, offset in offsets.items():
            totals[tid_of(key)] = totals.get(tid_of(key), 0) + offset
        found = ((self._state.topics.by_id.get(tid), total) for tid, total in totals.items())
        return {info.name: total for info, total in found if info is not None}

    def _put(self, name: str, key: str, now: float, total: int) -> None:
        item = self._items.get((name, key))
        if item is None:
            if len(self._items) >= ITEMS_MAX:
                return
            item = self._items[name, key] = _Item()
        item.sample(now, total)
