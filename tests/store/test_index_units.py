"""Units of the queue index: their form on disk, and what a queue costs in memory."""

from __future__ import annotations

import random
import tracemalloc
from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.store.fs_memory import MemoryFileSystem
from broker.store.index_segment import pack_units, unpack_units
from broker.store.queue_index import QueueIndex


def test_ten_thousand_queues_cost_little_memory() -> None:
    tracemalloc.start()
    index = QueueIndex(MemoryFileSystem(random.Random(1)))
    for key in range(10_000):
        index.append(key, 0, key, 100, 0)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / 10_000 < 600


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(91, 2**23), st.integers(-(2**31), 2**31))))
@settings(max_examples=50, deadline=None)
def test_units_survive_the_disk(units: list[tuple[int, int, int]]) -> None:
    words = array("q", [word for unit in units for word in unit])
    assert unpack_units(pack_units(words)) == words
