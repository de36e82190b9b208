"""An entry's records as dispatch wants them: columns, filled by one walk, instead of an object per message.

There are two walks. The careful one is in Python and right in every case; it says what is wrong with a record. The fast
one (`trimq.message._fast`) is compiled where the machine that installs trimq has a compiler. It knows ordinary records
only, and gives up without a word (None) on everything else: then the careful one walks. What both give is equal
(`tests/store/test_columns.py`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

from trimq.message.record import Buffer, iter_records
from trimq.message.tags import tags_code

from .index_segment import UNIT_WORDS
from .index_values import TIMER_TOPIC, due_time, index_values
from .key_index import key_seed

try:
    from trimq.message._fast import walk
except ImportError:  # installed without a compiler
    _fast_walk = None
else:
    _fast_walk = walk

__all__ = ["COMPILED", "Columns", "columns_of", "walk_carefully"]

COMPILED = _fast_walk is not None
"""This installation has the fast walk."""

_NONE: array[int] = array("q")
_code_of = lru_cache(maxsize=65_536)(tags_code)


@dataclass(frozen=True, slots=True)
class Columns:
    """What the indexes and the tables take from the records of one entry, in the order of the log."""

    topics: list[bytes]
    queue_ids: array[int]
    queue_offsets: array[int]
    positions: array[int]
    reconsumes: array[int]
    uniques: list[bytes | None]
    """UNIQ_KEY of each record that has one."""
    last_store_ms: int
    """When the last record was stored; 0 when there is none."""
    runs: list[tuple[int, int, array[int]]]
    """Records that follow one another in one queue: queue key, offset of the first, units of the queue index (three
    words each). A record joins the newest run of its queue, or begins one when there is a gap."""
    hashes: array[int]
    seconds: array[int]
    places: array[int]
    """Key index: hash, store time and position of every key of every record."""


def columns_of(records: Buffer, topic_id: Callable[[bytes], int]) -> Columns:
    """Walk the records of an entry. Raises `RecordError`, and what `topic_id` raises for a topic it does not know."""
    if _fast_walk is not None:
        found = _fast_walk(records, topic_id, key_seed, _code_of, TIMER_TOPIC)
        if found is not None:
            return Columns(*found)
    return walk_carefully(records, topic_id)


def walk_carefully(records: Buffer, topic_id: Callable[[bytes], int]) -> Columns:
    """The walk in Python."""
    topics: list[bytes] = []
    queue_ids, queue_offsets = array("i"), array("q")
    positions, reconsumes = array("q"), array("i")
    uniques: list[bytes | None] = []
    runs: list[tuple[int, int, array[int]]] = []
    newest: dict[int, tuple[int, array[int]]] = {}
    hashes, seconds, places = array("I"), array("I"), array("Q")
    topic, tid, seed, store_ms = b"", 0, 0, 0
    for head in iter_records(records):
        if head.topic != topic:
            topic = head.topic
            tid = topic_id(topic)
            seed = key_seed(tid)
        position, store_ms = head.position, head.store_ms
        tag, unique, keys = index_values(head.properties)
        if topic == TIMER_TOPIC:
            code = due_time(head.properties)
        else:
            code = _code_of(tag) if tag else 0
        key = tid << 16 | head.queue_id
        first, words = newest.get(key, (-1, _NONE))
        if first < 0 or head.queue_offset != first + len(words) // UNIT_WORDS:
            first, words = newest[key] = (head.queue_offset, array("q"))
            runs.append((key, first, words))
        words.extend((position, head.size, code))
        topics.append(topic)
        queue_ids.append(head.queue_id)
        queue_offsets.append(head.queue_offset)
        positions.append(position)
        reconsumes.append(head.reconsume_times)
        uniques.append(unique or None)
        for word in (unique, *(keys or b"").split(b" ")):
            if word:
                hashes.append(crc32(word, seed))
                seconds.append(store_ms // 1000 & 0xFFFFFFFF)
                places.append(position)
    return Columns(
        topics, queue_ids, queue_offsets, positions, reconsumes, uniques, store_ms, runs, hashes, seconds, places
    )
