"""The ConsumeQueues of a replica group: which record stands at which offset of which queue.

A ConsumeQueue is *logical*. What is new lives in one flat array per queue (three words a unit); at each snapshot the
units since the one before are sealed into one file shared by all queues (`index_segment.py`), and of the arrays only
the hot end stays in memory. No file, task, timer or memory map per queue: 50,000 queues are 50,000 small arrays.

The dispatcher is the only writer. Appending is idempotent by offset: a unit that is there already must be equal.
Queue key = `topic id << 16 | queue id`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from .errors import StoreBroken
from .fs import FileSystem, offload
from .index_segment import INDEX_DIR, UNIT_WORDS, IndexDamaged, IndexSegment, Run, pack_segment

__all__ = ["QueueIndex", "Sealing"]

HOT_UNITS: Final = 1_000_000
"""Units kept in memory over all queues once they are sealed (24 bytes each)."""
HOT_UNITS_MIN: Final = 32
"""Of each queue at least so many stay in memory."""
MERGE_FILES: Final = 8
"""So many neighbours of one size class become one file."""
MERGE_UNITS_MAX: Final = 1 << 20
"""But never a larger one than this: merging is work in memory."""


class _Queue:
    """One queue: the units in memory and its bounds."""

    __slots__ = ("base", "low", "sealed", "words")

    def __init__(self, first: int) -> None:
        self.low = first
        """Oldest offset still in the log."""
        self.base = first
        """Offset of the first unit in `words`."""
        self.sealed = first
        """Offsets below this one are in sealed files."""
        self.words: array[int] = array("q")

    @property
    def end(self) -> int:
        return self.base + len(self.words) // UNIT_WORDS


@dataclass(frozen=True, slots=True)
class Sealing:
    """A flat copy of what a snapshot seals: taken between two entries, written afterwards."""

    first: int
    last: int
    """Log entries covered, both ends included."""
    runs: list[Run]
    keys: array[int]
    lows: array[int]
    ends: array[int]


class QueueIndex:
    """See the module's docstring."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self._queues: dict[int, _Queue] = {}
        self._segments: list[IndexSegment] = []
        self._sealed_to = 0
        """Log index up to which units are in sealed files."""

    # -- what readers ask ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._queues)

    def keys(self) -> Iterator[int]:
        """Every known queue, in order of creation."""
        return iter(self._queues)

    def first_offset(self, key: int) -> int:
        """The oldest offset that can be read; 0 for an unknown queue."""
        queue = self._queues.get(key)
        return queue.low if queue is not None else 0

    def next_offset(self, key: int) -> int:
        """One past the newest offset; 0 for an unknown queue."""
        queue = self._queues.get(key)
        return queue.base + len(queue.words) // UNIT_WORDS if queue is not None else 0

    def hot(self, key: int, offset: int, count: int) -> array[int] | None:
        """Words of up to `count` units from `offset` on if they are in memory, else None. Empty at the end."""
        queue = self._queues.get(key)
        if queue is None:
            return array("q")
        if offset < queue.base:
            return None
        at = (offset - queue.base) * UNIT_WORDS
        return queue.words[at : at + count * UNIT_WORDS]

    async def units(self, key: int, offset: int, count: int) -> array[int]:
        """Like `hot`, from sealed files where need be.

        Raises `IndexDamaged`, `OSError`, and `LookupError` below the first offset.
        """
        found = self.hot(key, offset, count)
        if found is not None:
            return found
        if offset < self.first_offset(key):
            raise LookupError(f"offset {offset} of queue {key:x} is no longer kept")
        words: array[int] = array("q")
        while (missing := count - len(words) // UNIT_WORDS) > 0:
            at = offset + len(words) // UNIT_WORDS
            more = self.hot(key, at, missing)
            if more is None:
                more = await self._sealed_units(key, at, missing)
            if not more:
                break
            words += more
        return words

    async def _sealed_units(self, key: int, offset: int, count: int) -> array[int]:
        for segment in reversed(self._segments):
            row = segment.find(key, offset)
            if row is not None:
                return await segment.read(row, offset, count)
        raise IndexDamaged(INDEX_DIR, f"no sealed file has offset {offset} of queue {key:x}")

    def position_of(self, key: int, offset: int) -> int:
        """Log position of an offset if its unit is in memory, else 0 (it is old)."""
        words = self.hot(key, offset, 1)
        return words[0] if words else 0

    # -- the dispatcher ------------------------------------------------------------------------------------------------

    def extend(self, key: int, first: int, units: Sequence[int]) -> int:
        """Enter records with offsets from `first` on, three words each; returns the queue's end."""
        queue = self._queues.get(key)
        if queue is not None and first == queue.end:
            queue.words.extend(units)
            return queue.end
        end = first
        for at in range(0, len(units), UNIT_WORDS):
            position, size, tags_code = units[at : at + UNIT_WORDS]
            end = self.append(key, first + at // UNIT_WORDS, position, size, tags_code)
        return end

    def append(self, key: int, offset: int, position: int, size: int, tags_code: int) -> int:
        """Enter one record; returns the queue's end. Raises `StoreBroken` when the log contradicts itself."""
        queue = self._queues.get(key)
        if queue is None:
            if offset:
                raise StoreBroken(f"queue {key:x} begins at offset {offset}: an earlier message is missing")
            queue = self._queues[key] = _Queue(0)
        words = queue.words
        end = queue.base + len(words) // UNIT_WORDS
        if offset == end:
            words.extend((position, size, tags_code))
            return end + 1
        if offset > end:
            raise StoreBroken(f"queue {key:x} has a gap: offset {offset} after {end - 1}")
        if offset >= queue.base:
            at = (offset - queue.base) * UNIT_WORDS
            if tuple(words[at : at + UNIT_WORDS]) == (position, size, tags_code):
                return end
        raise StoreBroken(f"offset {offset} of queue {key:x} is taken: the record at position {position} is another")

    def drop_topic(self, tid: int) -> None:
        """Forget all queues of a topic; what sealed files hold of them goes with the files."""
        for key in [key for key in self._queues if key >> 16 == tid]:
            del self._queues[key]

    # -- sealing and merging -------------------------------------------------------------------------------------------

    def freeze(self, last: int) -> Sealing:
        """A flat copy of what entries up to `last` (the newest dispatched) added since the last sealing."""
        runs: list[Run] = []
        keys, lows, ends = array("Q"), array("Q"), array("Q")
        for key in sorted(self._queues):
            queue = self._queues[key]
            keys.append(key)
            lows.append(queue.low)
            ends.append(queue.end)
            if queue.sealed < queue.end:
                runs.append(Run(key, queue.sealed, queue.words[(queue.sealed - queue.base) * UNIT_WORDS :]))
        return Sealing(self._sealed_to + 1, last, runs, keys, lows, ends)

    async def seal(self, sealing: Sealing, lineage: int) -> None:
        """Write a frozen copy durably, then let go of what need not stay in memory. Raises `OSError`."""
        if sealing.runs:
            self._segments.append(await self._write(sealing.runs, sealing.first, sealing.last, lineage))
        self._sealed_to = sealing.last
        for run in sealing.runs:
            queue = self._queues.get(run.key)
            if queue is not None:
                queue.sealed = max(queue.sealed, run.first + len(run.words) // UNIT_WORDS)
        self._cool()
        await self._merge(lineage)

    async def _write(self, runs: list[Run], first: int, last: int, lineage: int) -> IndexSegment:
        parts = await offload(self._fs, partial(pack_segment, runs, lineage=lineage, first=first, last=last))
        return await IndexSegment.write(self._fs, parts, first=first, last=last)

    def _cool(self) -> None:
        keep = max(HOT_UNITS_MIN, HOT_UNITS // max(1, len(self._queues)))
        for queue in self._queues.values():
            cut = min(queue.sealed, queue.end - keep)
            if cut > queue.base:
                del queue.words[: (cut - queue.base) * UNIT_WORDS]
                queue.base = cut

    async def _merge(self, lineage: int) -> None:
        """Merge neighbours of one size class, newest first, while there are enough of them."""
        while (at := self._mergeable()) is not None:
            pieces = self._segments[at : at + MERGE_FILES]
            by_key: dict[int, Run] = {}
            try:
                for piece in pieces:
                    for run in await piece.runs():
                        before = by_key.setdefault(run.key, run)
                        if before is not run:
                            _join(by_key, before, run)
            except IndexDamaged:
                return  # found by whoever reads there, and made again then
            runs = [by_key[key] for key in sorted(by_key)]
            merged = await self._write(runs, pieces[0].first, pieces[-1].last, lineage)
            self._segments[at : at + MERGE_FILES] = [merged]
            for piece in pieces:
                await self._fs.unlink(piece.path)

    def _mergeable(self) -> int | None:
        classes = [max(segment.unit_count, 1 << 10).bit_length() // 3 for segment in self._segments]
        for at in range(len(classes) - MERGE_FILES, -1, -1):
            some = self._segments[at : at + MERGE_FILES]
            if len(set(classes[at : at + MERGE_FILES])) == 1 and sum(s.unit_count for s in some) <= MERGE_UNITS_MAX:
                return at
        return None

    # -- recovery and retention ----------------------------------------------------------------------------------------

    async def restore(self, keys: array[int], lows: array[int], ends: array[int], index: int, lineage: int) -> None:
        """Become what a snapshot at `index` saw: bounds from it, units from sealed files.

        Files behind the snapshot are removed: their entries are dispatched again. Raises `IndexDamaged`.
        """
        await self.clear(keep_to=index)
        names = await self._fs.listdir(INDEX_DIR)
        ranges = [found for name in names if (found := IndexSegment.range_of(name)) is not None]
        covered = 0
        for first, last in sorted(ranges, key=lambda found: (found[0], -found[1])):
            if last <= covered:
                await self._fs.unlink(IndexSegment.path_of(first, last))  # merged into a wider one
                continue
            self._segments.append(await IndexSegment.open(self._fs, first, last, lineage))
            covered = last
        self._set_bounds(keys, lows, ends, index)
        self._check_cover()

    def _set_bounds(self, keys: array[int], lows: array[int], ends: array[int], index: int) -> None:
        self._sealed_to = index
        self._queues.clear()
        for key, low, end in zip(keys, lows, ends, strict=True):
            queue = self._queues[key] = _Queue(end)
            queue.low = low

    def _check_cover(self) -> None:
        """Every unit from a queue's first offset to its end is in some file. Raises `IndexDamaged`."""
        reached: dict[int, int] = {}
        for segment in reversed(self._segments):
            for row in range(len(segment.keys) - 1, -1, -1):
                key, first = segment.keys[row], segment.firsts[row]
                queue = self._queues.get(key)
                if queue is not None and first + segment.counts[row] == reached.get(key, queue.end):
                    reached[key] = first
        for key, queue in self._queues.items():
            if reached.get(key, queue.end) > queue.low:
                raise IndexDamaged(
                    INDEX_DIR, f"units of queue {key:x} before offset {reached.get(key, queue.end)} are missing"
                )

    async def add_rebuilt(self, runs: list[Run], first: int, last: int, lineage: int) -> None:
        """Units of entries first..last, found by scanning the log; in order, after `clear`."""
        if runs:
            self._segments.append(await self._write(runs, first, last, lineage))

    def finish_rebuilt(
        self, keys: array[int], lows: array[int], ends: array[int], index: int, firsts: Mapping[int, int]
    ) -> None:
        """Take the bounds from a snapshot at `index`; `firsts`: the first offset found of each queue.

        Raises `StoreBroken` when the log and the snapshot do not agree.
        """
        self._set_bounds(keys, lows, ends, index)
        for key, queue in self._queues.items():
            queue.low = max(queue.low, min(firsts.get(key, queue.end), queue.end))
        try:
            self._check_cover()
        except IndexDamaged as error:
            raise StoreBroken(f"the log does not have what the snapshot at {index} says: {error}") from error

    async def replace(self, path: str, runs: list[Run], lineage: int) -> None:
        """Put a file that was damaged in place again."""
        for at, segment in enumerate(self._segments):
            if segment.path == path:
                self._segments[at] = await self._write(runs, segment.first, segment.last, lineage)

    async def clear(self, *, keep_to: int = 0) -> None:
        """Forget everything, and delete sealed files that reach behind entry `keep_to`."""
        self._queues.clear()
        self._segments.clear()
        self._sealed_to = 0
        await self._fs.mkdir(INDEX_DIR)
        await self._fs.sync_dir("")
        for name in await self._fs.listdir(INDEX_DIR):
            found = IndexSegment.range_of(name)
            if found is None or found[1] > keep_to:
                await self._fs.unlink(f"{INDEX_DIR}/{name}")
        await self._fs.sync_dir(INDEX_DIR)

    async def forget_below(self, position: int, first_index: int) -> None:
        """Retention removed the log below `position` (its first entry is `first_index` now): first offsets follow.

        Raises `IndexDamaged`, `OSError`.
        """
        for segment in list(self._segments):
            if segment.first >= first_index:
                break
            await self._raise_lows(segment, position, first_index)
            if segment.last < first_index:
                self._segments.remove(segment)
                await self._fs.unlink(segment.path)
        for queue in self._queues.values():
            if queue.low >= queue.base and queue.words:
                queue.low = max(queue.low, queue.base + _count_below(queue.words, position))

    async def _raise_lows(self, segment: IndexSegment, position: int, first_index: int) -> None:
        for row, key in enumerate(segment.keys):
            queue = self._queues.get(key)
            first, end = segment.firsts[row], segment.firsts[row] + segment.counts[row]
            if queue is None or queue.low >= end:
                continue
            if segment.last < first_index:
                queue.low = end
            else:
                words = await segment.read(row, first, segment.counts[row])
                queue.low = max(queue.low, first + _count_below(words, position))


def _join(by_key: dict[int, Run], before: Run, run: Run) -> None:
    if before.first + len(before.words) // UNIT_WORDS == run.first:
        before.words.extend(run.words)
    else:
        by_key[run.key] = run  # the topic was deleted and made again in between: what came before is of no use


def _count_below(words: array[int], position: int) -> int:
    """The number of leading units whose record lies below a log position."""
    low, high = 0, len(words) // UNIT_WORDS
    while low < high:
        middle = (low + high) // 2
        if words[middle * UNIT_WORDS] < position:
            low = middle + 1
        else:
            high = middle
    return low
