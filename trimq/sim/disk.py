"""A machine's disk in the simulation: the in-memory file system on the simulation's clock, and what is really on it.

The oracle never believes a replica that says "durable": it compares with the synced content (S3, S11).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from broker.store.fs_memory import MemoryFileSystem
from broker.store.segment import HEADER_BLOCK_BYTES, LOG_DIR, segment_path
from raft.hard_state import BLOCK_BYTES, FILE_BYTES, StoredState, _decode
from trimq.sim.deterministic import VirtualClock, wait_s

__all__ = ["SimDisk"]

HARD_STATE = "hard-state"
_CRC_AT = 60
"""Where a log entry's header keeps its CRC (docs/protocol.md)."""


class SimDisk(MemoryFileSystem):
    """A disk whose calls last on the simulation's clock."""

    def __init__(
        self, clock: VirtualClock, rng: random.Random, *, latency_s: float, jitter_s: float, segment_bytes: int
    ) -> None:
        super().__init__(rng, latency_s=latency_s, jitter_s=jitter_s)
        self.rotted = False
        """Bits were flipped: what is on it may differ from what was acknowledged, until it is mended."""
        self._clock = clock
        self._segment_bytes = segment_bytes

    async def _take(self, seconds: float, *, shielded: bool) -> None:
        if shielded and seconds:
            await wait_s(self._clock, seconds)
        else:
            await super()._take(seconds, shielded=shielded)

    # -- what a power cut would leave ---------------------------------------------------------------------------------

    def _durable(self, path: str) -> bytearray | None:
        inode = self._durable_names.get(path)
        return None if inode is None else inode.synced

    def hard_state(self) -> StoredState:
        """Term and vote as they would be found after a power cut now."""
        content = self._durable(HARD_STATE)
        if content is None:
            return StoredState()
        found = [_decode(bytes(content[at : at + BLOCK_BYTES])) for at in range(0, FILE_BYTES, BLOCK_BYTES)]
        newest = max((each for each in found if each is not None), key=lambda each: each[0], default=None)
        return StoredState() if newest is None else newest[1]

    def holds(self, start: int, end: int, crc: int) -> bool:
        """Whether the entry of that header CRC would be found at [start, end) of the log."""
        for at, content, inside in self._pieces(start, end):
            header = content[inside + _CRC_AT : inside + _CRC_AT + 4]
            return at == start and int.from_bytes(header, "big") == crc and self.holds_bytes(start, end)
        return False

    def holds_bytes(self, start: int, end: int) -> bool:
        """Whether what a reader sees of [start, end) of the log would survive a power cut."""
        for at, content, inside in self._pieces(start, end):
            size = min(end, at + self._segment_bytes - at % self._segment_bytes) - at
            now = self._names.get(segment_path(at - at % self._segment_bytes))
            if now is None or now.now[inside : inside + size] != content[inside : inside + size]:
                return False
        return True

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, bytearray, int]]:
        at = start
        while at < end:
            base = at - at % self._segment_bytes
            content = self._durable(segment_path(base))
            inside = HEADER_BLOCK_BYTES + at - base
            yield at, bytearray() if content is None else content, inside
            at = base + self._segment_bytes

    # -- damage -------------------------------------------------------------------------------------------------------

    def rot(self, rng: random.Random) -> str:
        """Flip a bit of a file, more often than not of the log's written part; returns where, "" when nowhere."""
        files = [path for path in self.paths() if self._names[path].now]
        logs = [path for path in files if path.startswith(LOG_DIR + "/") and not path.endswith(".new")]
        path = rng.choice(logs if logs and rng.random() < 0.7 else files or [""])
        if not path:
            return ""
        content = self._names[path].now
        written = len(content.rstrip(b"\0")) or 1
        at = rng.randrange(written)
        self.flip(path, at, 1 << rng.randrange(8))
        self.rotted = True
        return f"{path}@{at}"

    def wipe(self) -> None:
        """A new, empty disk."""
        for path in self.paths():
            self.remove(path)
        self._dirs = {""}
        self._durable_dirs = {""}
        self._pending_names = []
