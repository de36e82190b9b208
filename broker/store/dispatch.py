"""From the log to everything that is a function of it: tables, ConsumeQueues, keys.

One task, in log order, the same code on every replica and under every strategy. An entry is fed once it is committed
*and* in this replica's own log (on its disk, where the strategy flushes), so only the CommitLog is ever read. Per
entry: the control payload first, then the records, then `entry_applied`; no await falls in between, so whoever looks
sees an entry whole or not at all.

Feeding an entry again is harmless: queue units are addressed by their offset, and equal ones are skipped. The
opposite, an offset that holds something else, is `StoreBroken`: the replica group stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final, Protocol
from zlib import crc32

import trio

from trimq.message.record import RecordHead, iter_records
from trimq.message.tags import tags_code

from .commit_log import CommitLog
from .entry import CONTROL, Entry, EntryKind
from .errors import EntryDamaged, StoreBroken
from .index_values import TIMER_TOPIC, due_time, index_values
from .key_index import KeyIndex, key_seed
from .queue_index import QueueIndex

__all__ = ["Dispatcher", "StateMachine"]

READ_BYTES: Final = 1024 * 1024
SLICE_BYTES: Final = 256 * 1024
"""After so much the loop gets its turn."""
REPAIR_POLL_S: Final = 0.1
"""How often to look whether damage has been repaired."""

_code_of = lru_cache(maxsize=65_536)(tags_code)


class StateMachine(Protocol):
    """The tables that are functions of the log. Called by the dispatcher only, in log order."""

    def apply_control(self, entry: Entry, payload: bytes) -> None:
        """Apply the control payload of an entry."""
        ...

    def topic_id(self, topic: bytes) -> int:
        """The id of a topic. Raises `KeyError`: the log is broken."""
        ...

    def apply_records(self, entry: Entry, heads: Sequence[RecordHead], ids: Sequence[bytes | None]) -> None:
        """Called once per messages entry, before `entry_applied`. `ids`: the UNIQ_KEY of each record, if it has one."""
        ...

    def entry_applied(self, entry: Entry, touched: Mapping[int, int]) -> None:
        """Everything of the entry can be seen now. `touched`: queue key to its new next offset."""
        ...

    def snapshot(self) -> Callable[[], bytes]:
        """A flat copy now; the returned function encodes it, perhaps in a thread."""
        ...

    def restore(self, data: bytes) -> None:
        """Become what `snapshot` saw."""
        ...


class Dispatcher:
    """Feeds entries up to what is allowed and in the log. `run` is its task."""

    def __init__(self, log: CommitLog, queues: QueueIndex, keys: KeyIndex, machine: StateMachine) -> None:
        self._log = log
        self._queues = queues
        self._keys = keys
        self._machine = machine
        self._allowed = 0
        self._wake = trio.Event()
        self._moved = trio.Event()
        self.index = 0
        """Newest entry that was fed."""
        self.end = 0
        """Position behind it."""
        self.failure: Exception | None = None

    def start_at(self, index: int, end: int) -> None:
        """Everything up to here has been restored."""
        self.index, self.end = index, end

    def allow(self, index: int) -> None:
        """Entries up to `index` are committed. Also the wake-up after a write, which bounds it too."""
        if index > self._allowed:
            self._allowed = index
        if self.index < self._allowed and self.index < self._log.last.index:
            self._wake.set()

    async def wait(self, index: int) -> None:
        """Return when entry `index` has been fed. Raises the failure that ended dispatch."""
        while self.index < index:
            if self.failure is not None:
                raise StoreBroken(f"dispatch has stopped: {self.failure}") from self.failure
            await self._moved.wait()

    async def run(self) -> None:
        """Feed until cancelled. Raises `StoreBroken`, the machine's own errors, `OSError`.

        Damage in the way is waited for: it is repaired from a peer, or the replica is installed anew.
        """
        log = self._log
        try:
            while True:
                limit = min(self._allowed, log.last.index)
                if self.index >= limit:
                    self._wake = trio.Event()
                    await self._wake.wait()
                    continue
                if self.index + 1 < log.first_index:
                    await trio.sleep(REPAIR_POLL_S)  # the log begins later: only an installation helps
                    continue
                try:
                    await self._feed_to(limit)
                except EntryDamaged:
                    await trio.sleep(REPAIR_POLL_S)
        except Exception as error:
            self.failure = error
            raise
        finally:
            self._tell()

    async def _feed_to(self, limit: int) -> None:
        log, fed = self._log, 0
        while self.index < limit:
            entries = log.cached(self.index + 1, READ_BYTES)
            if entries is None:
                entries = await log.read(self.index + 1, READ_BYTES)
            for entry in entries:
                if entry.index > limit:
                    break
                self.feed(entry)
                fed += len(entry.data)
                if fed > SLICE_BYTES:
                    fed = 0
                    self._tell()
                    await trio.lowlevel.checkpoint()
        self._tell()

    def _tell(self) -> None:
        moved, self._moved = self._moved, trio.Event()
        moved.set()

    def feed(self, entry: Entry) -> None:
        """Feed one entry, the next in order."""
        assert entry.index == self.index + 1, f"entry {entry.index} after {self.index}"
        machine = self._machine
        if entry.flags & CONTROL:
            machine.apply_control(entry, entry.control)
        touched: dict[int, int] = {}
        if entry.kind == EntryKind.MESSAGES:
            heads = list(iter_records(entry.records))
            machine.apply_records(entry, heads, self._enter(heads, touched))
        self.index, self.end = entry.index, entry.end
        machine.entry_applied(entry, touched)

    def _enter(self, heads: Sequence[RecordHead], touched: dict[int, int]) -> list[bytes | None]:
        """Into the queues, neighbours at once, and into the key index; returns the UNIQ_KEY of each."""
        topic_id = self._machine.topic_id
        ids: list[bytes | None] = []
        run: list[int] = []
        run_key, run_first, expected = -1, 0, 0
        hashes: list[int] = []
        seconds: list[int] = []
        positions: list[int] = []
        topic, tid, seed = b"", 0, 0
        for head in heads:
            if head.topic != topic:
                topic = head.topic
                try:
                    tid = topic_id(topic)
                except KeyError:
                    raise StoreBroken(
                        f"record at {head.position} is of a topic that nobody created: {topic!r}"
                    ) from None
                seed = key_seed(tid)
            position = head.position
            tag, uniq, words = index_values(head.properties)
            key = tid << 16 | head.queue_id
            if topic == TIMER_TOPIC:
                code = due_time(head.properties)
            else:
                code = _code_of(tag) if tag else 0
            if key != run_key or head.queue_offset != expected:
                if run:
                    touched[run_key] = self._queues.extend(run_key, run_first, run)
                    run = []
                run_key, run_first = key, head.queue_offset
            run += (position, head.size, code)
            expected = head.queue_offset + 1
            ids.append(uniq)
            if uniq:
                hashes.append(crc32(uniq, seed))
                seconds.append(head.store_ms // 1000)
                positions.append(position)
            if words:
                for word in words.split(b" "):
                    if word:
                        hashes.append(crc32(word, seed))
                        seconds.append(head.store_ms // 1000)
                        positions.append(position)
        if run:
            touched[run_key] = self._queues.extend(run_key, run_first, run)
        if hashes:
            self._keys.extend(hashes, seconds, positions)
        return ids
