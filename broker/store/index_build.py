"""Making index files again from the log: after an installation (they are not shipped), and when one of them is damaged.

A scan has no history of topics, only what is known now: records of a topic that was deleted are passed over. Of a topic
that was deleted and created again, the queue begins anew at offset 0 in the midst of the log; what came before that
belongs to the deleted one and is dropped.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from trimq.message.record import iter_records
from trimq.message.tags import tags_code

from .commit_log import CommitLog
from .entry import EntryKind
from .index_segment import UNIT_WORDS, Run
from .index_values import TIMER_TOPIC, due_time, index_values
from .key_index import KeyIndex, KeySealing, key_hash
from .queue_index import QueueIndex
from .snapshot import Snapshot

__all__ = ["RangeScan", "rebuild_index", "scan_range"]

READ_BYTES: Final = 1024 * 1024
RANGE_UNITS: Final = 1 << 17
"""Units in one file that a rebuild makes."""


@dataclass(slots=True)
class RangeScan:
    """What a range of entries puts into the indexes."""

    first: int
    last: int
    """Entries covered, both included."""
    starts: dict[int, int] = field(default_factory=dict)
    words: dict[int, array[int]] = field(default_factory=dict)
    restarted: set[int] = field(default_factory=set)
    """Queues that began anew in this range."""
    units: int = 0
    hashes: array[int] = field(default_factory=lambda: array("I"))
    seconds: array[int] = field(default_factory=lambda: array("I"))
    positions: array[int] = field(default_factory=lambda: array("Q"))

    def unit(self, key: int, offset: int, position: int, size: int, tags: int) -> None:
        words = self.words.get(key)
        if words is None:
            words = self.words[key] = array("q")
            self.starts[key] = offset
        elif offset != self.starts[key] + len(words) // UNIT_WORDS:
            del words[:]
            self.starts[key] = offset
            self.restarted.add(key)
        words.extend((position, size, tags))
        self.units += 1

    def key(self, tid: int, key: bytes, store_ms: int, position: int) -> None:
        self.hashes.append(key_hash(tid, key))
        self.seconds.append(store_ms // 1000 & 0xFFFFFFFF)
        self.positions.append(position)

    @property
    def runs(self) -> list[Run]:
        return [Run(key, self.starts[key], self.words[key]) for key in sorted(self.words)]

    @property
    def keys(self) -> KeySealing:
        return KeySealing(self.first, self.last, self.hashes, self.seconds, self.positions)


async def scan_range(
    log: CommitLog, first: int, last: int, topic_id: Callable[[bytes], int], *, units_max: int = 1 << 60
) -> RangeScan:
    """Scan entries from `first` on, to `last` or until there are `units_max` units. Raises like `CommitLog.read`."""
    found = RangeScan(first, first - 1)
    while found.last < last and found.units < units_max:
        for entry in await log.read(found.last + 1, READ_BYTES):
            if entry.index > last:
                break
            if entry.kind == EntryKind.MESSAGES:
                _scan_records(entry.records, found, topic_id)
            found.last = entry.index
            await trio.lowlevel.checkpoint()
    return found


def _scan_records(records: memoryview, found: RangeScan, topic_id: Callable[[bytes], int]) -> None:
    for head in iter_records(records):
        try:
            tid = topic_id(head.topic)
        except KeyError:
            continue
        tag, uniq, words = index_values(head.properties)
        code = due_time(head.properties) if head.topic == TIMER_TOPIC else tags_code(tag) if tag else 0
        found.unit(tid << 16 | head.queue_id, head.queue_offset, head.position, head.size, code)
        if uniq:
            found.key(tid, uniq, head.store_ms, head.position)
        for word in (words or b"").split(b" "):
            if word:
                found.key(tid, word, head.store_ms, head.position)


async def rebuild_index(
    log: CommitLog, queues: QueueIndex, keys: KeyIndex, snapshot: Snapshot, topic_id: Callable[[bytes], int]
) -> None:
    """Both indexes up to a snapshot, from the log's first entry on. Whatever was there is dropped.

    Raises `StoreBroken` when log and snapshot do not agree, and like `CommitLog.read`.
    """
    await queues.clear()
    await keys.clear()
    firsts: dict[int, int] = {}
    index = log.first_index
    while index <= snapshot.at.index:
        found = await scan_range(log, index, snapshot.at.index, topic_id, units_max=RANGE_UNITS)
        for key, start in found.starts.items():
            end = firsts.get(key)
            if end is None or key in found.restarted or start == 0:
                firsts[key] = start
        await queues.add_rebuilt(found.runs, found.first, found.last, log.lineage)
        await keys.seal(found.keys, log.lineage)
        index = found.last + 1
    queues.finish_rebuilt(snapshot.keys, snapshot.lows, snapshot.ends, snapshot.at.index, firsts)
    keys.finish_rebuilt(snapshot.at.index)
