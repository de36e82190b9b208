"""From the log to everything that is a function of it: tables, ConsumeQueues, keys.

One task, in log order, the same code on every replica and under every strategy. An entry is fed once it is committed
*and* in this replica's own log (on its disk, where the strategy flushes), so only the CommitLog is ever read. Per
entry: the control payload first, then the records, then `entry_applied`; no await falls in between, so whoever looks
sees an entry whole or not at all.

Feeding an entry again is harmless: queue units are addressed by their offset, and equal ones are skipped. The
opposite, an offset that holds something else, is `StoreBroken`: the replica group stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import trio

from .columns import Columns, columns_of
from .commit_log import CommitLog
from .entry import CONTROL, Entry, EntryKind
from .errors import EntryDamaged, StoreBroken
from .key_index import KeyIndex
from .queue_index import QueueIndex

__all__ = ["Dispatcher", "StateMachine"]

READ_BYTES: Final = 1024 * 1024
SLICE_BYTES: Final = 256 * 1024
"""After so much the loop gets its turn."""
REPAIR_POLL_S: Final = 0.1
"""How often to look whether damage has been repaired."""


class StateMachine(Protocol):
    """The tables that are functions of the log. Called by the dispatcher only, in log order."""

    def apply_control(self, entry: Entry, payload: bytes) -> None:
        """Apply the control payload of an entry."""
        ...

    def topic_id(self, topic: bytes) -> int:
        """The id of a topic. Raises `KeyError`: the log is broken."""
        ...

    def apply_records(self, entry: Entry, found: Columns) -> None:
        """Called once per messages entry, before `entry_applied`."""
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
            machine.apply_records(entry, self._enter(entry, touched))
        self.index, self.end = entry.index, entry.end
        machine.entry_applied(entry, touched)

    def _enter(self, entry: Entry, touched: dict[int, int]) -> Columns:
        """Into the queues, neighbours at once, and into the key index."""
        try:
            found = columns_of(entry.records, self._machine.topic_id)
        except KeyError as error:
            raise StoreBroken(f"entry {entry.index} holds a record of a topic that nobody created: {error}") from None
        extend = self._queues.extend
        for key, first, units in found.runs:
            touched[key] = extend(key, first, units)
        if found.hashes:
            self._keys.extend(found.hashes, found.seconds, found.places)
        return found
