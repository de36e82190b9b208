"""The store of one replica as the rest of the broker sees it: log, indexes, dispatch, snapshots, retention.

`open_message_store` recovers in one pass: the log with its verdict, the newest snapshot that fits it, then dispatch
goes on from there as far as the log is known to be committed. While the block runs, the store's own tasks dispatch,
write marks each second, snapshot now and then, and remove old segments.

A failure of dispatch (`StoreBroken`, damage, an op of a newer version) is final for this replica of the group and is
told through `on_failure`; reads of what was dispatched go on.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import trio

from trimq.env import Clock
from trimq.message.record import unpack_record

from .commit_log import COLD_BYTES, RECENT_BYTES, CommitLog, Verdict, open_commit_log
from .dispatch import Dispatcher, StateMachine
from .errors import EntryDamaged, StoreBroken, StoreError, StoreRefused
from .fs import FileSystem, offload
from .identity import check_identity
from .index_build import rebuild_index, scan_range
from .index_segment import IndexDamaged, IndexSegment
from .install import finish_install
from .key_index import KEY_DIR, KeyIndex
from .log_files import STRIP_BYTES
from .pulls import Found, NeedDisk, PropertyTest, Pulls
from .queue_index import QueueIndex
from .retention import RetentionConfig, SealedSegment, expired
from .scrub import SCRUB_BYTES_PER_S, scrub
from .snapshot import Snapshot, list_snapshots, read_snapshot, remove_old, write_snapshot

__all__ = ["Found", "MessageStore", "NeedDisk", "StoreConfig", "open_message_store"]

log = logging.getLogger(__name__)

MARKS_EVERY_S: Final = 1.0
SNAPSHOT_EVERY_S: Final = 60.0
SNAPSHOT_EVERY_BYTES: Final = 128 * 1024 * 1024
SNAPSHOT_EVERY_ENTRIES: Final = 1_000
"""A start replays what is behind the newest snapshot, a thousand entries in about a second: until then the replica is
no good leader, and a process that dies again and again before its snapshot would have more to replay each time."""
SNAPSHOT_PAUSE_S: Final = 5.0
"""Entries alone bring the second snapshot of a process no sooner than this after the first. Then the pause doubles, up
to `snapshot_every_s`: a process that has lived for a while pays for its snapshots once a minute."""
RETENTION_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Sizes and periods of one replica's store."""

    recent_bytes: int = RECENT_BYTES
    """Entries kept in memory behind the log's end."""
    cold_bytes: int = COLD_BYTES
    strip_bytes: int = STRIP_BYTES
    snapshot_every_s: float = SNAPSHOT_EVERY_S
    snapshot_every_bytes: int = SNAPSHOT_EVERY_BYTES
    snapshot_every_entries: int = SNAPSHOT_EVERY_ENTRIES
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    cluster: str = ""
    group: str = ""
    """Whose store it has to be; empty: not compared."""
    scrub_bytes_per_s: int = SCRUB_BYTES_PER_S
    """Pace at which old segments are read again to find rot."""
    boot_id: str = ""
    """This life of the machine; empty: not known."""


class MessageStore:
    """See the module's docstring. Made by `open_message_store`."""

    def __init__(
        self, fs: FileSystem, clock: Clock, config: StoreConfig, commit_log: CommitLog, machine: StateMachine
    ) -> None:
        self.fs = fs
        self.clock = clock
        self.config = config
        self.log = commit_log
        self.machine = machine
        self.queues = QueueIndex(fs)
        self.keys = KeyIndex(fs)
        self._dispatcher = Dispatcher(commit_log, self.queues, self.keys, machine)
        self._pulls = Pulls(commit_log, self.queues)
        # Before anything is dispatched: a deleted topic's queues go with it. Machines without topics have no such list.
        getattr(machine, "on_topic_removed", []).append(self.queues.drop_topic)
        self._snapshots: list[int] = []
        self._snapshot_end = 0
        self._snapshot_lock = trio.Lock()
        self._segment_times: dict[int, int] = {}
        self._forgotten_below = 0
        """The indexes name nothing before this entry; behind the log's first one after a failed `forget_removed`."""
        self._forgetting = trio.Lock()
        self.pending: Callable[[], bytes] | None = None
        """Gives what the marks shall keep of consumer offsets that wait for a leader."""
        self.pins: list[int] = []
        """Oldest index that each reader (an export) still needs: retention spares it."""
        self.waiting: list[Callable[[], Awaitable[int | None]]] = []
        """Give the position of the oldest message that is not delivered yet (None: there is none): delayed, timed, half
        messages. Retention spares it, also when the disk is full: refusing writes is better than losing messages."""
        self.on_failure: Callable[[Exception], None] | None = None

    # -- marks -----------------------------------------------------------------------------------------------------

    @property
    def dispatched(self) -> int:
        """Index of the newest entry whose effects can be read."""
        return self._dispatcher.index

    @property
    def dispatched_end(self) -> int:
        """Position at which that entry ends."""
        return self._dispatcher.end

    @property
    def failure(self) -> Exception | None:
        """What ended dispatch, None while it runs."""
        return self._dispatcher.failure

    def allow(self, index: int) -> None:
        """Entries up to `index` are committed: dispatch them as far as they are durable here."""
        self._dispatcher.allow(index)

    async def wait_dispatched(self, index: int) -> None:
        """Return when `dispatched` has reached `index`. Raises `StoreBroken` when dispatch has ended before."""
        await self._dispatcher.wait(index)

    @property
    def snapshots(self) -> list[int]:
        """Indexes of the snapshots on disk, newest first."""
        return list(self._snapshots)

    # -- reads -----------------------------------------------------------------------------------------------------

    def get(
        self,
        key: int,
        offset: int,
        max_count: int,
        max_bytes: int,
        wanted: Container[int] | None,
        test: PropertyTest | None = None,
    ) -> Found | NeedDisk:
        """Messages of a queue from memory; `NeedDisk` when some of it is not there. `wanted`: tags codes, None all;
        `test`: of the properties of each message, in place of `wanted`."""
        try:
            return self._pulls.get(key, offset, max_count, max_bytes, wanted, test)
        except LookupError:
            return NeedDisk()  # retention is just removing it; who looks there waits for the bounds

    async def get_from_disk(
        self,
        key: int,
        offset: int,
        max_count: int,
        max_bytes: int,
        wanted: Container[int] | None,
        test: PropertyTest | None = None,
    ) -> Found:
        """The same from wherever it is. Raises `OSError`; damage is one (EIO), the replica knows of it by then."""
        if self._forgotten_below < self.log.first_index:
            await self.forget_removed()
        try:
            return await self._pulls.get_from_disk(key, offset, max_count, max_bytes, wanted, test)
        except IndexDamaged as error:
            await self._mend_as_os_error(error)
            return await self._pulls.get_from_disk(key, offset, max_count, max_bytes, wanted, test)

    async def read_record(self, position: int) -> bytes:
        """The record that starts at a log position. Raises `StoreError` when none does, `OSError`."""
        try:
            return await self.log.read_record(position)
        except LookupError as error:
            raise StoreError(str(error)) from None

    async def query_key(self, tid: int, key: bytes, begin_ms: int, end_ms: int, limit: int) -> list[int]:
        """Positions of records that may have the key (the caller compares), newest first. Raises `OSError`."""
        try:
            return await self.keys.lookup(tid, key, begin_ms, end_ms, limit)
        except IndexDamaged as error:
            await self._mend_as_os_error(error)
            return await self.keys.lookup(tid, key, begin_ms, end_ms, limit)

    async def _mend_as_os_error(self, error: IndexDamaged) -> None:
        try:
            await self._mend_index(error.path)
        except (StoreError, LookupError) as why:
            raise OSError(errno.EIO, f"{error}; it cannot be built again now: {why}") from why

    def position_of(self, key: int, offset: int) -> int:
        """Log position of a queue offset when it is recent, else 0."""
        return self.queues.position_of(key, offset)

    async def store_time(self, key: int, offset: int) -> int:
        """Store time in ms of the message at a queue offset, 0 when it cannot be read any more."""
        try:
            words = await self.queues.units(key, offset, 1)
            if not words:
                return 0
            return unpack_record(await self.log.read_record(words[0])).store_ms
        except (LookupError, StoreError, OSError):
            return 0

    async def earliest_store_time(self, key: int) -> int:
        """Store time of the oldest message of a queue, -1 when it has none."""
        low = self.queues.first_offset(key)
        return await self.store_time(key, low) or -1 if low < self.queues.next_offset(key) else -1

    async def earliest_time(self) -> int:
        """Store time of the oldest message of the log, -1 when there is none."""
        times = [await self.earliest_store_time(key) for key in list(self.queues.keys())[:64]]
        return min((time for time in times if time > 0), default=-1)

    async def offset_by_time(self, key: int, time_ms: int, *, upper: bool = False) -> int:
        """The first offset stored at or after `time_ms`, the queue's end if none is; `upper`: the last at or before."""
        low, high = self.queues.first_offset(key), self.queues.next_offset(key)
        first, end = low, high
        while low < high:
            middle = (low + high) // 2
            stored = await self.store_time(key, middle)
            if stored < time_ms or (upper and stored <= time_ms):
                low = middle + 1
            else:
                high = middle
        if upper:
            return max(first, low - 1)
        return min(low, end)

    # -- snapshots -------------------------------------------------------------------------------------------------

    async def snapshot(self) -> None:
        """Seal the indexes and write a snapshot of what is dispatched now. Nothing to do: returns at once."""
        async with self._snapshot_lock:
            index = self.dispatched
            at = self.log.entry_id(index)
            if at is None or not index or (self._snapshots and self._snapshots[0] >= index):
                return
            lineage = self.log.lineage
            encode = self.machine.snapshot()
            queues = self.queues.freeze(index)
            keys = self.keys.freeze(index)
            with trio.CancelScope(shield=True):  # waits for the disk only; half a sealing would be written twice
                await self.queues.seal(queues, lineage)
                await self.keys.seal(keys, lineage)
                machine = await offload(self.fs, encode)
                await write_snapshot(self.fs, Snapshot(lineage, at, machine, queues.keys, queues.lows, queues.ends))
                self._snapshots = await remove_old(self.fs)
            self._snapshot_end = at.end

    async def recover(self) -> None:
        """Restore the newest snapshot that fits the log, else begin at its start. Called once, before dispatch."""
        lineage = self.log.lineage
        snapshots = await list_snapshots(self.fs)
        for index in snapshots if self.log.formed else []:
            found = await read_snapshot(self.fs, index)
            if found is None:
                log.warning("snapshot damaged; an older one is used", extra={"index": index})
                continue
            if found.lineage != lineage:
                raise StoreRefused(f"meta/{index:020d} belongs to another log: remove the store, or put its own back")
            if index > self.log.last.index or self.log.entry_id(index) != found.at:
                continue  # of a tail that is gone; recovery has judged that already
            self.machine.restore(found.machine)
            await self._recover_index(found)
            self._dispatcher.start_at(index, found.at.end)
            self._snapshots = await remove_old(self.fs)
            self._snapshot_end = found.at.end
            if self.log.fault is None:
                await self.forget_removed()
            break
        else:
            await self.queues.clear()
            await self.keys.clear()
            if self.log.formed and self.log.first_index > 1:
                self.log.declare_lost(f"the log begins at entry {self.log.first_index} and no snapshot covers the rest")
                return
        self.allow(min(self.log.hint, self.log.last.index))

    async def _recover_index(self, snapshot: Snapshot) -> None:
        """The sealed files up to the snapshot, or, when they are not whole, new ones from the log."""
        index, lineage = snapshot.at.index, snapshot.lineage
        try:
            await self.queues.restore(snapshot.keys, snapshot.lows, snapshot.ends, index, lineage)
            await self.keys.restore(index, lineage, first_index=self.log.first_index)
        except IndexDamaged as error:
            log.warning("index not whole; it is built again", extra={"detail": str(error)})
            try:
                await rebuild_index(self.log, self.queues, self.keys, snapshot, self.machine.topic_id)
            except (EntryDamaged, LookupError) as damage:
                self.log.declare_lost(f"the index cannot be built again: {damage}")

    async def _mend_index(self, path: str) -> None:
        """Make one damaged index file again from the log."""
        covered = IndexSegment.range_of(path.rpartition("/")[2])
        if covered is None:
            raise StoreBroken(f"index: {path} does not have what it must have")
        async with self._snapshot_lock:
            log.warning("index file is built again", extra={"path": path})
            first, last = max(covered[0], self.log.first_index), covered[1]
            found = await scan_range(self.log, first, last, self.machine.topic_id)
            if path.startswith(KEY_DIR):
                sealing = replace(found.keys, first=covered[0], last=last)
                await self.keys.replace(path, sealing, self.log.lineage)
            else:
                await self.queues.replace(path, found.runs, self.log.lineage)

    async def forget_removed(self) -> None:
        """The log begins later now: the indexes follow. When that fails, the next look tries again."""
        async with self._forgetting:
            first = self.log.first_index
            if self._forgotten_below < first:
                try:
                    await self.queues.forget_below(self.log.first_position, first)
                except IndexDamaged as error:
                    await self._mend_index(error.path)
                    await self.queues.forget_below(self.log.first_position, first)
                await self.keys.forget_below(first)
                self._forgotten_below = first

    # -- tasks -----------------------------------------------------------------------------------------------------

    async def run_dispatch(self) -> None:
        """Dispatch until cancelled; a failure is told and ends it."""
        try:
            await self._dispatcher.run()
        except Exception as error:
            log.exception("dispatch stopped", extra={"index": self.dispatched, "error": str(error)})
            if self.on_failure is not None:
                self.on_failure(error)

    async def run_marks(self) -> None:
        """Each second, while something changes: how far dispatch is, and a floor below which nothing may be cut."""
        while True:
            await trio.sleep(MARKS_EVERY_S)
            if self.log.formed and self.log.fault is None:
                try:
                    await self.write_marks()
                except OSError as error:
                    log.warning("marks not written", extra={"error": str(error)})

    async def write_marks(self) -> None:
        """What is dispatched is committed; as far as it is durable too, it is the floor."""
        index = self.dispatched
        at = self.log.entry_id(min(index, self.log.durable.index))
        if at is None:
            return
        changes: dict[str, object] = {"dispatched": index, "floor": at}
        if self.pending is not None:
            changes["pending"] = self.pending()
        await self.log.marks.put(**changes)

    async def run_snapshots(self) -> None:
        """After so many bytes or entries, or so long with changes."""
        config = self.config
        since = rested = trio.current_time()
        pause = SNAPSHOT_PAUSE_S
        while True:
            await trio.sleep(MARKS_EVERY_S)
            grown = self.dispatched_end - self._snapshot_end
            entries = self.dispatched - (self._snapshots[0] if self._snapshots else 0)
            now = trio.current_time()
            due = (
                grown >= config.snapshot_every_bytes
                or (entries >= config.snapshot_every_entries and now >= rested)
                or (grown and now - since >= config.snapshot_every_s)
            )
            if due and self.log.fault is None:
                since = now
                await self._try(self.snapshot, "snapshot not written")
                rested = trio.current_time() + pause
                pause = min(2 * pause, config.snapshot_every_s)

    async def run_retention(self) -> None:
        """Remove what is old, or what the disk has no room for."""
        while True:
            await trio.sleep(RETENTION_EVERY_S)
            if self.log.formed and self.log.fault is None:
                await self._try(self.retain, "retention failed")

    async def retain(self, *, removable: int | None = None) -> int:
        """Look once and remove. Returns the number of segments removed."""
        await self.forget_removed()  # what a look before this one could not finish
        infos = self.log.sealed_segments()
        if not infos:
            return 0
        free, total = await self.fs.space()
        segments = [SealedSegment(info.last_index, await self._newest_ms(info.last_index)) for info in infos]
        if removable is None:
            if len(self._snapshots) < 2:
                await self.snapshot()
            removable = min(self._snapshots[-1] if len(self._snapshots) > 1 else 0, self.dispatched)
        removable = min([removable, *(pin - 1 for pin in self.pins)])
        for oldest in self.waiting:
            position = await oldest()
            if position is not None:
                spared = [info.base_index - 1 for info in infos if info.end_position > position]
                removable = min([removable, *spared])
        count = expired(
            segments,
            self.config.retention,
            now_ms=self.clock.wall_ms(),
            used_share=1 - free / total if total else 0.0,
            removable=removable,
        )
        if count:
            await self.log.drop_first_segments(count)
            await self.forget_removed()
            log.info("segments removed", extra={"count": count, "first_index": self.log.first_index})
        return count

    async def _newest_ms(self, last_index: int) -> int:
        """Store time of the newest message at or before an entry; remembered, since sealed segments do not change."""
        known = self._segment_times.get(last_index)
        if known is not None:
            return known
        found, index = 0, last_index
        while index >= self.log.first_index and not found:
            entry = await self.log.load(index)
            if entry.record_count:
                records = bytes(entry.records)
                at = 0
                while at < len(records):
                    record = unpack_record(records, at)
                    found = max(found, record.store_ms)
                    at += int.from_bytes(records[at : at + 4], "big")
            index -= 1
        self._segment_times[last_index] = found
        return found

    async def _try(self, work: Callable[[], object], phrase: str) -> None:
        try:
            await work()  # type: ignore[misc]  # any coroutine function, whatever it returns
        except (OSError, EntryDamaged, IndexDamaged) as error:
            log.warning(phrase, extra={"error": repr(error)}, exc_info=True)


@asynccontextmanager
async def open_message_store(
    fs: FileSystem, clock: Clock, config: StoreConfig, machine: StateMachine
) -> AsyncIterator[MessageStore]:
    """Recover a replica's store and run its tasks for as long as the block runs.

    Raises `StoreRefused` (another cluster, a newer format), `OSError`. A damaged or unformed log opens, with its
    verdict. Left without an error, a snapshot and the clean mark are written. An installation whose manifest is there
    is put in place first.
    """
    if config.cluster or config.group:
        await check_identity(fs, cluster=config.cluster, group=config.group)
    if await finish_install(fs):
        log.warning("the log was installed from a peer")
    async with open_commit_log(
        fs,
        recent_bytes=config.recent_bytes,
        cold_bytes=config.cold_bytes,
        strip_bytes=config.strip_bytes,
        boot_id=config.boot_id,
    ) as commit_log:
        store = MessageStore(fs, clock, config, commit_log, machine)
        if commit_log.verdict is not Verdict.DAMAGED or commit_log.formed:
            await store.recover()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run_dispatch)
            nursery.start_soon(store.run_marks)
            nursery.start_soon(store.run_snapshots)
            nursery.start_soon(store.run_retention)
            nursery.start_soon(partial(scrub, commit_log, bytes_per_s=config.scrub_bytes_per_s))
            yield store
            nursery.cancel_scope.cancel()
        if commit_log.formed and commit_log.fault is None and store.failure is None:
            with trio.CancelScope(shield=True):  # waits for the disk only
                await store._try(store.snapshot, "snapshot not written")
                await store._try(store.write_marks, "marks not written")
