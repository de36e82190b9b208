"""The CommitLog as Raft's log: one log, no second copy to keep in step.

What this adds to the log is small: the entries that the core makes itself, and a note of where membership entries
stand (`members`), so that a start-up does not have to search the log for them. The note is written *before* the entry;
one whose entry never came, or was cut off again, is told by its CRC and ignored. A lost note costs a scan of the log.
"""

from __future__ import annotations

import errno
import logging
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import cbor2

from broker.replication.membership import (
    GroupDetail,
    MembershipDamaged,
    decode_membership,
    encode_membership,
    first_entry,
    seal_chain,
)
from broker.store.commit_log import CommitLog
from broker.store.entry import Entry, EntryId, EntryKind, parse_entries
from broker.store.errors import EntryDamaged, LogMismatch, LogUnusable
from broker.store.fs import FileSystem, read_whole, write_whole
from raft.core.types import EntryId as CoreEntryId
from raft.core.types import EntryIdLike, EntryLike, HardState, Health, Membership, Recovered
from raft.frames import CodecError
from raft.hard_state import StoredState
from raft.storage import DamagedRange, StorageDamaged

__all__ = ["GroupEntryMaker", "RaftStorage", "open_raft_storage"]

log = logging.getLogger(__name__)

MEMBERS_PATH = "members"
NOTES_MAX = 4
READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Note:
    """Where a membership entry stands, and what it says."""

    index: int
    term: int
    crc: int
    payload: bytes


class GroupEntryMaker:
    """Makes the no-op and membership entries (`raft.core.types.EntryMaker`)."""

    def __init__(self, commit_log: CommitLog, wall_ms: Callable[[], int]) -> None:
        self._log = commit_log
        self._wall_ms = wall_ms

    def noop(self, prev: CoreEntryId, term: int, commit: int) -> Sequence[EntryLike]:
        return self._seal(EntryKind.NOOP, prev, term, commit, b"")

    def membership(self, prev: CoreEntryId, term: int, commit: int, membership: Membership) -> Sequence[EntryLike]:
        return self._seal(EntryKind.MEMBERSHIP, prev, term, commit, encode_membership(membership, self._wall_ms()))

    def read_membership(self, entry: EntryLike) -> Membership:
        """Raises MembershipDamaged: written by a newer version, the group stops."""
        return decode_membership(cast("Entry", entry).control)

    def _seal(self, kind: EntryKind, prev: CoreEntryId, term: int, commit: int, control: bytes) -> Sequence[EntryLike]:
        return seal_chain(
            kind=kind,
            prev=EntryId(prev.index, prev.term, prev.crc, prev.end),
            term=term,
            lineage=self._log.lineage,
            commit_hint=min(commit, self._log.durable.index),  # a hint is proof of having been synced
            segment_bytes=self._log.segment_bytes,
            control=control,
        )


class RaftStorage:
    """`raft.storage.LogStorage` over a CommitLog. Made by `open_raft_storage`."""

    def __init__(
        self,
        commit_log: CommitLog,
        fs: FileSystem,
        detail: GroupDetail,
        wall_ms: Callable[[], int],
        committed: Callable[[], int],
        *,
        sync: Callable[[], bool],
    ) -> None:
        self.maker = GroupEntryMaker(commit_log, wall_ms)
        self._log = commit_log
        self._fs = fs
        self._detail = detail
        self._wall_ms = wall_ms
        self._committed = committed
        self._sync = sync
        self._notes: list[_Note] = []

    # the core's view

    @property
    def first_index(self) -> int:
        return self._log.first_index

    @property
    def last(self) -> EntryIdLike:
        return self._log.last

    def entry_id(self, index: int) -> EntryIdLike | None:
        return self._log.entry_id(index)

    def last_index_at_most(self, term: int) -> int:
        return self._log.last_index_of_term(term)

    # beginnings

    @property
    def formed(self) -> bool:
        return self._log.formed

    @property
    def lineage(self) -> int:
        return self._log.lineage

    @property
    def suspect(self) -> bool:
        return self._log.suspect

    @property
    def tail_cut(self) -> bool:
        return self._log.tail_cut

    async def note_suspect(self) -> None:
        await self._log.note_suspect()

    async def clear_suspect(self) -> None:
        await self._log.clear_suspect()

    def recovered(self, state: StoredState) -> Recovered:
        commit_log = self._log
        health = Health.OK
        if commit_log.fault is not None:
            health = Health.DAMAGED if commit_log.fault.damage is not None else Health.IMPAIRED
        elif commit_log.suspect or state.suspect:
            health = Health.SUSPECT
        memberships = [(note.index, decode_membership(note.payload)) for note in self._notes[-2:]]
        return Recovered(
            hard=HardState(state.term, state.vote, state.suspect, state.starts),
            commit=min(max(commit_log.hint, self._committed()), commit_log.last.index),
            memberships=memberships,
            health=health,
        )

    @property
    def strategy(self) -> str:
        """What the newest membership entry says; "" while there is none."""
        detail = decode_membership(self._notes[-1].payload).detail if self._notes else None
        return detail.strategy if isinstance(detail, GroupDetail) else ""

    async def form(self, lineage: int, membership: Membership, first: Sequence[EntryLike] | None) -> None:
        entry = cast("Entry", first[0]) if first else first_entry(lineage, membership, self._detail, self._wall_ms())
        detail = decode_membership(entry.control).detail
        assert isinstance(detail, GroupDetail), "decoding gives a detail"
        await self._log.form(entry.lineage, detail.segment_bytes)
        await self._note([entry])
        await self._log.append([entry], sync=True)

    async def load_notes(self) -> None:
        """Find the newest membership entries. Raises OSError, EntryDamaged."""
        if not self._log.formed:
            return
        try:
            self._notes = [note for note in _parse_notes(await read_whole(self._fs, MEMBERS_PATH)) if self._holds(note)]
        except (FileNotFoundError, ValueError):
            self._notes = []
        if not self._notes:
            log.warning("membership notes are missing; searching the log for them")
            await self._search()

    def _holds(self, note: _Note) -> bool:
        """Does the note's entry stand in the log? An index before the log's beginning is taken on trust (install)."""
        if note.index < self._log.first_index:
            return True
        found = self._log.entry_id(note.index)
        return found is not None and (found.term, found.crc) == (note.term, note.crc)

    async def _search(self) -> None:
        index = self._log.first_index
        notes: list[_Note] = []
        while index <= self._log.last.index:
            try:
                entries = await self._log.read(index, READ_BYTES)
            except EntryDamaged:
                break
            notes += _notes_of(entries)
            index = entries[-1].index + 1
        self._notes = notes[-NOTES_MAX:]
        if self._notes:
            await write_whole(self._fs, MEMBERS_PATH, [_pack_notes(self._notes)])

    async def _note(self, entries: Sequence[Entry]) -> None:
        new = _notes_of(entries)
        if new:
            kept = [note for note in self._notes if note.index < new[0].index]
            self._notes = [*kept, *new][-NOTES_MAX:]
            await write_whole(self._fs, MEMBERS_PATH, [_pack_notes(self._notes)])

    # work

    def parse(self, body: memoryview) -> Sequence[EntryLike]:
        try:
            entries = parse_entries(body)
        except EntryDamaged as error:
            raise CodecError(f"entries from a peer are damaged: {error}") from None
        lineage = self._log.lineage
        for entry in entries:
            if lineage and entry.lineage != lineage:
                raise CodecError(f"entry {entry.index} from a peer is of lineage {entry.lineage:08x}")
            if entry.kind == EntryKind.MEMBERSHIP:
                try:
                    decode_membership(entry.control)
                except (MembershipDamaged, EntryDamaged) as error:
                    raise CodecError(str(error)) from None
        return cast("Sequence[EntryLike]", entries)

    def pack_membership(self, membership: Membership) -> bytes:
        return encode_membership(membership, 0)

    def unpack_membership(self, payload: bytes) -> Membership:
        try:
            return decode_membership(payload)
        except MembershipDamaged as error:
            raise CodecError(str(error)) from None

    async def write(self, entries: Sequence[EntryLike]) -> None:
        mine = cast("Sequence[Entry]", entries)
        # Who belongs to the group is never only written: a replica that forgot it could not even find the others.
        changes_members = any(entry.kind == EntryKind.MEMBERSHIP for entry in mine)
        if changes_members:
            await self._note(mine)
        last = self._log.last.index
        if mine[0].index <= last:  # a try before this one ran out of space half-way
            mine = [entry for entry in mine if entry.index > last]
        try:
            await self._log.append(mine, sync=changes_members or self._sync())
        except LogUnusable as error:
            raise self._unusable(error) from error

    def begin_write(self, entries: Sequence[EntryLike], done: Callable[[OSError | None], None]) -> bool:
        mine = cast("Sequence[Entry]", entries)
        if any(entry.kind == EntryKind.MEMBERSHIP for entry in mine) or not self._sync():
            return False
        return self._log.begin_append(mine, done)

    async def truncate(self, to: CoreEntryId) -> None:
        try:
            await self._log.truncate_after(to.index)
        except LogUnusable as error:
            raise self._unusable(error) from error

    def _unusable(self, error: LogUnusable) -> Exception:
        damage = self.damage
        if damage is not None:
            return StorageDamaged(damage.detail, damage.first_index)
        return OSError(errno.EIO, str(error))

    @property
    def damage(self) -> DamagedRange | None:
        fault = self._log.fault
        damage = fault.damage if fault is not None else None
        if damage is None:
            return None
        prev = damage.prev
        return DamagedRange(
            first_index=damage.first_index,
            prev=CoreEntryId(prev.index, prev.term, prev.crc, prev.end),
            next_index=damage.next_index,
            needs_install=damage.needs_install,
            detail=damage.detail,
        )

    async def mend(self, entries: Sequence[EntryLike]) -> None:
        try:
            await self._log.repair(cast("Sequence[Entry]", entries))
        except LogMismatch as error:
            raise CodecError(f"entries from a peer do not mend the log: {error}") from error
        except LogUnusable as error:
            raise OSError(errno.EIO, str(error)) from error
        if self._log.fault is None:
            await self.load_notes()

    def cached(self, first: int, last: int) -> Sequence[EntryLike] | None:
        found: list[Entry] = []
        at = first
        span = self._span(first, last)
        while at <= last:
            run = self._log.cached(at, span)
            if not run:
                return None
            found.extend(run)
            at = run[-1].index + 1
        if at > last + 1:
            del found[last - first + 1 :]
        return cast("Sequence[EntryLike]", found)

    async def read(self, first: int, last: int) -> Sequence[EntryLike]:
        try:
            entries = await self._log.read(first, min(self._span(first, last), READ_BYTES))
        except EntryDamaged as error:
            raise StorageDamaged(str(error), error.index) from error
        except LookupError:
            return ()
        return cast("Sequence[EntryLike]", entries[: last - first + 1])

    def _span(self, first: int, last: int) -> int:
        """Bytes from the beginning of one entry to the end of another; 1 when that is not known."""
        start, end = self._log.entry_id(first - 1), self._log.entry_id(last)
        return end.end - start.end if start is not None and end is not None else 1


def _notes_of(entries: Sequence[Entry]) -> list[_Note]:
    return [
        _Note(entry.index, entry.term, entry.crc, entry.control)
        for entry in entries
        if entry.kind == EntryKind.MEMBERSHIP
    ]


_CRC = struct.Struct(">I")


def _pack_notes(notes: Sequence[_Note]) -> bytes:
    data = cbor2.dumps([1, [[note.index, note.term, note.crc, note.payload] for note in notes]], canonical=True)
    return data + _CRC.pack(zlib.crc32(data))


def _parse_notes(data: bytes) -> list[_Note]:
    """Raises ValueError when the file is not whole."""
    if len(data) < 4 or _CRC.unpack(data[-4:])[0] != zlib.crc32(data[:-4]):
        raise ValueError("membership notes are damaged")
    version, notes = cbor2.loads(data[:-4])
    if version != 1:
        raise ValueError("membership notes of a newer version")
    return [_Note(*note) for note in notes]


async def open_raft_storage(
    commit_log: CommitLog,
    fs: FileSystem,
    detail: GroupDetail,
    *,
    wall_ms: Callable[[], int],
    committed: Callable[[], int],
    sync: Callable[[], bool] = lambda: True,
) -> RaftStorage:
    """The open log as Raft's. `committed` gives an index that is surely committed (the snapshot's).

    `detail` is what a group formed here would be. `sync` says, write by write, whether entries count only on the disk;
    without it they count as soon as they are written, and whoever says so syncs the log now and then.
    """
    storage = RaftStorage(commit_log, fs, detail, wall_ms, committed, sync=sync)
    await storage.load_notes()
    return storage
