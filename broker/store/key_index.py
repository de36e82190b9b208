"""From a message's key to its place: unique ids and business keys, over the whole retention.

An entry is (hash, store time, position): the CRC32 of the key, seeded by the topic's id. Hashes collide; whoever looks
up compares the real keys. What is new lies in three flat arrays in the order of arrival; each snapshot seals it into
one file sorted by hash (`keys/<first>-<last>`, named by the log entries it covers), in which a look-up is a bisection
over a sparse fence kept in memory and one read. No file per topic, nothing per message but 16 bytes.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from .errors import StoreRefused
from .fs import FileSystem, offload, write_whole
from .index_segment import IndexDamaged, IndexSegment

__all__ = ["KEY_DIR", "KeyIndex", "KeySealing", "key_hash", "key_seed"]

KEY_DIR: Final = "keys"
_MAGIC: Final = 0x5451_4B59  # TQKY
_VERSION: Final = 1
_HEAD = struct.Struct(">IIIQQQIII")
"""Magic, version, lineage, first and last entry index, entries, oldest and newest second, CRC of the entries."""
_U32 = struct.Struct(">I")
_ENTRY = struct.Struct(">IIQ")
MERGE_FILES: Final = 8
"""So many neighbours of one size class become one file."""
MERGE_ENTRIES_MAX: Final = 1 << 20
"""But never a larger one than this: merging is work in memory."""
_FENCE_ENTRIES: Final = 512
"""One hash in memory per so many entries: the unit of reading and checking, 8 KiB."""
_BASE: Final = _HEAD.size + 4
_SPREAD: Final = 0x9E3779B1
"""Two to the 32 over the golden ratio."""


def key_seed(tid: int) -> int:
    """What the hash of a topic's keys starts from.

    The id is spread over all bits first: a CRC's seed meets the key's first bytes by exclusive or, so small seeds would
    make one topic's key systematically collide with another's.
    """
    return tid * _SPREAD & 0xFFFFFFFF


def key_hash(tid: int, key: bytes) -> int:
    """What a key of a topic is filed under."""
    return crc32(key, tid * _SPREAD & 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class KeySealing:
    """A flat copy of what a snapshot seals."""

    first: int
    last: int
    hashes: array[int]
    seconds: array[int]
    positions: array[int]


@dataclass(frozen=True, slots=True)
class _Sealed:
    path: str
    first: int
    last: int
    count: int
    oldest_s: int
    newest_s: int
    fence: array[int]
    crcs: array[int]


class KeyIndex:
    """See the module's docstring. The dispatcher is the only writer."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self._hashes, self._seconds, self._positions = array("I"), array("I"), array("Q")
        self._sealing: KeySealing | None = None
        self._sealed: list[_Sealed] = []
        self._sealed_to = 0

    def put(self, tid: int, key: bytes, store_ms: int, position: int) -> None:
        """File one key of one record."""
        self._hashes.append(crc32(key, tid * _SPREAD & 0xFFFFFFFF))
        self._seconds.append(store_ms // 1000 & 0xFFFFFFFF)
        self._positions.append(position)

    def extend(self, hashes: Sequence[int], seconds: Sequence[int], positions: Sequence[int]) -> None:
        """File the keys of one entry, hashed by `key_hash`. Three columns of equal length."""
        self._hashes.extend(hashes)
        self._seconds.extend(seconds)
        self._positions.extend(positions)

    async def lookup(self, tid: int, key: bytes, begin_ms: int, end_ms: int, limit: int) -> list[int]:
        """Log positions of records that may have the key, newest first, stored within [begin, end] (to the second).

        The caller compares the real keys. Raises `IndexDamaged`, `OSError`.
        """
        wanted = key_hash(tid, key)
        begin, end = max(0, begin_ms // 1000), min(max(end_ms, 0) // 1000, 0xFFFFFFFF)
        found = _scan(self._hashes, self._seconds, self._positions, wanted, begin, end)
        if self._sealing is not None:
            s = self._sealing
            found += _scan(s.hashes, s.seconds, s.positions, wanted, begin, end)
        for sealed in reversed(self._sealed):
            if len(found) >= limit:
                break
            if sealed.oldest_s <= end and begin <= sealed.newest_s:
                found += await self._lookup_sealed(sealed, wanted, begin, end)
        return found[:limit]

    async def _lookup_sealed(self, sealed: _Sealed, wanted: int, begin: int, end: int) -> list[int]:
        low = max(0, bisect_left(sealed.fence, wanted) - 1)
        high = bisect_right(sealed.fence, wanted)
        found: list[int] = []
        for block in range(low, high):
            data = await self._read_block(sealed, block)
            found += [p for h, s, p in _ENTRY.iter_unpack(data) if h == wanted and begin <= s <= end]
        found.reverse()
        return found

    # -- sealing, recovery, retention ------------------------------------------------------------------------------

    def freeze(self, last: int) -> KeySealing:
        """Set apart what came since the last sealing; it stays readable while it is being written."""
        before = self._sealing
        hashes, seconds, positions = self._hashes, self._seconds, self._positions
        if before is not None:  # the last sealing failed: take it along
            hashes, seconds = before.hashes + hashes, before.seconds + seconds
            positions = before.positions + positions
        self._sealing = KeySealing(self._sealed_to + 1, last, hashes, seconds, positions)
        self._hashes, self._seconds, self._positions = array("I"), array("I"), array("Q")
        return self._sealing

    async def seal(self, sealing: KeySealing, lineage: int) -> None:
        """Write a frozen copy durably, also when there is nothing in it: the files tile the log without a gap."""
        self._sealed.append(await self._write(sealing, lineage))
        self._sealed_to = sealing.last
        self._sealing = None
        await self._merge(lineage)

    async def _write(self, sealing: KeySealing, lineage: int) -> _Sealed:
        path = f"{KEY_DIR}/{sealing.first:020d}-{sealing.last:020d}"
        parts, fence, crcs = await offload(self._fs, lambda: _pack(sealing, lineage))
        await write_whole(self._fs, path, parts)
        count = len(sealing.hashes)
        oldest, newest = (min(sealing.seconds), max(sealing.seconds)) if count else (0, 0)
        return _Sealed(path, sealing.first, sealing.last, count, oldest, newest, fence, crcs)

    async def _merge(self, lineage: int) -> None:
        """Merge neighbours of one size class while there are enough of them: few files, however often it snapshots."""
        while (at := self._mergeable()) is not None:
            pieces = self._sealed[at : at + MERGE_FILES]
            columns = KeySealing(pieces[0].first, pieces[-1].last, array("I"), array("I"), array("Q"))
            try:
                for piece in pieces:
                    await self._read_into(piece, columns)
            except IndexDamaged:
                return  # found by whoever looks a key up there, and made again then
            merged = await self._write(columns, lineage)
            self._sealed[at : at + MERGE_FILES] = [merged]
            for piece in pieces:
                await self._fs.unlink(piece.path)

    def _mergeable(self) -> int | None:
        classes = [max(sealed.count, 1 << 10).bit_length() // 3 for sealed in self._sealed]
        for at in range(len(classes) - MERGE_FILES, -1, -1):
            some = self._sealed[at : at + MERGE_FILES]
            if len(set(classes[at : at + MERGE_FILES])) == 1 and sum(s.count for s in some) <= MERGE_ENTRIES_MAX:
                return at
        return None

    async def _read_into(self, sealed: _Sealed, columns: KeySealing) -> None:
        for block in range(len(sealed.crcs)):
            for h, second, position in _ENTRY.iter_unpack(await self._read_block(sealed, block)):
                columns.hashes.append(h)
                columns.seconds.append(second)
                columns.positions.append(position)

    async def _read_block(self, sealed: _Sealed, block: int) -> bytes:
        at = block * _FENCE_ENTRIES
        size = min(_FENCE_ENTRIES, sealed.count - at) * _ENTRY.size
        file = await self._fs.open(sealed.path)
        try:
            data = await file.pread(_BASE + at * _ENTRY.size, size)
        finally:
            await file.aclose()
        if len(data) != size or crc32(data) != sealed.crcs[block]:
            raise IndexDamaged(sealed.path, f"bad block {block}")
        return data

    async def restore(self, index: int, lineage: int, *, first_index: int = 1) -> None:
        """Open the sealed files up to a snapshot at `index`, remove those behind it and those merged into wider ones.

        Raises `IndexDamaged`, also when the files do not cover everything from `first_index` on.
        """
        await self.clear(keep_to=index)
        self._sealed_to = index
        ranges = [found for name in await self._fs.listdir(KEY_DIR) if (found := IndexSegment.range_of(name))]
        covered = first_index - 1
        for first, last in sorted(ranges, key=lambda found: (found[0], -found[1])):
            path = f"{KEY_DIR}/{first:020d}-{last:020d}"
            if last <= covered:
                await self._fs.unlink(path)
                continue
            if first > covered + 1:
                break
            self._sealed.append(await self._open(path, first, last, lineage))
            covered = last
        if covered != index:
            raise IndexDamaged(KEY_DIR, f"the keys of entries from {covered + 1} on are missing")

    async def _open(self, path: str, first: int, last: int, lineage: int) -> _Sealed:
        file = await self._fs.open(path)
        try:
            raw = await file.pread(0, _BASE)
            if len(raw) < _BASE or crc32(raw[:-4]) != _U32.unpack(raw[-4:])[0]:
                raise IndexDamaged(path, "bad header")
            magic, version, tag, low, high, count, oldest, newest, crc = _HEAD.unpack(raw[:-4])
            if magic != _MAGIC or (low, high) != (first, last):
                raise IndexDamaged(path, "header of another file")
            if version != _VERSION:
                raise StoreRefused(f"{path} has format {version}, this version reads {_VERSION}: use a newer trimq")
            if tag != lineage:
                raise StoreRefused(f"{path} belongs to another log (lineage {tag:08x}, not {lineage:08x})")
            blocks = -(-count // _FENCE_ENTRIES)
            tail = await file.pread(_BASE + count * _ENTRY.size, blocks * 8)
        finally:
            await file.aclose()
        if len(tail) != blocks * 8 or crc32(tail) != crc:
            raise IndexDamaged(path, "bad fence")
        columns = struct.unpack(f">{blocks * 2}I", tail)
        return _Sealed(
            path, first, last, count, oldest, newest, array("I", columns[:blocks]), array("I", columns[blocks:])
        )

    async def clear(self, *, keep_to: int = 0) -> None:
        """Forget everything, and delete sealed files that reach behind entry `keep_to`."""
        self._hashes, self._seconds, self._positions = array("I"), array("I"), array("Q")
        self._sealing, self._sealed, self._sealed_to = None, [], 0
        await self._fs.mkdir(KEY_DIR)
        await self._fs.sync_dir("")
        for name in await self._fs.listdir(KEY_DIR):
            found = IndexSegment.range_of(name)
            if found is None or found[1] > keep_to:
                await self._fs.unlink(f"{KEY_DIR}/{name}")
        await self._fs.sync_dir(KEY_DIR)

    def finish_rebuilt(self, index: int) -> None:
        """Everything up to entry `index` is in sealed files."""
        self._sealed_to = index

    async def replace(self, path: str, sealing: KeySealing, lineage: int) -> None:
        """Put a file that was damaged in place again."""
        at = next((i for i, sealed in enumerate(self._sealed) if sealed.path == path), None)
        if at is None:
            return
        self._sealed[at] = await self._write(sealing, lineage)

    async def forget_below(self, first_index: int) -> None:
        """Retention: drop files whose entries are all gone."""
        for sealed in [sealed for sealed in self._sealed if sealed.last < first_index]:
            self._sealed.remove(sealed)
            await self._fs.unlink(sealed.path)


def _scan(
    hashes: array[int], seconds: array[int], positions: array[int], wanted: int, begin: int, end: int
) -> list[int]:
    """Matches in unsorted columns, newest first. `array.index` walks at C speed."""
    found: list[int] = []
    at = -1
    while True:
        try:
            at = hashes.index(wanted, at + 1)
        except ValueError:
            found.reverse()
            return found
        if begin <= seconds[at] <= end:
            found.append(positions[at])


def _pack(sealing: KeySealing, lineage: int) -> tuple[list[bytes], array[int], array[int]]:
    """File parts, fence and block checksums. Long: runs in a worker."""
    data = _sorted_entries(sealing)
    count = len(sealing.hashes)
    fence, crcs = array("I"), array("I")
    blocks: list[bytes] = []
    for at in range(0, len(data), _FENCE_ENTRIES * _ENTRY.size):
        block = data[at : at + _FENCE_ENTRIES * _ENTRY.size]
        fence.append(_ENTRY.unpack_from(block)[0])
        crcs.append(crc32(block))
        blocks.append(block)
    tail = struct.pack(f">{2 * len(fence)}I", *fence, *crcs)
    oldest, newest = (min(sealing.seconds), max(sealing.seconds)) if count else (0, 0)
    head = _HEAD.pack(
        _MAGIC, _VERSION, lineage, sealing.first, sealing.last, count, oldest, newest, crc32(tail)
    )  # fmt: skip
    return [head, _U32.pack(crc32(head)), *blocks, tail], fence, crcs


def _sorted_entries(sealing: KeySealing) -> bytes:
    """All entries by hash, then time and position, packed.

    An entry is one integer until it is bytes: nothing sorts and packs faster here. In small portions, since a sort does
    not let go of the interpreter, and others have beats to send meanwhile.
    """
    portions: list[list[int]] = [[] for _ in range(256)]
    for h, second, position in zip(sealing.hashes, sealing.seconds, sealing.positions, strict=True):
        portions[h >> 24].append(h << 96 | second << 64 | position)
    packed: list[bytes] = []
    for portion in portions:
        portion.sort()
        packed.append(b"".join([entry.to_bytes(16, "big") for entry in portion]))
    return b"".join(packed)
