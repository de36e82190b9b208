"""Mending a damaged log with entries from peers.

A damaged replica has no core: it neither votes nor acknowledges. It asks its peers, one after the other, for the
entries of the hole. What they send is believed only because of the chain: each header covers the header CRC of the
entry before, so entries that join the good one before the hole *and* the good one behind it are the ones that were
lost. When nothing good is known behind the hole, only entries that the peer knows to be committed are taken.

    [ASK, id, first index, index, term, crc, end of the entry before, next index or 0]
    [TOLD, id, 1: entries follow, 0: none now, 2: removed]           body: entries, about 1 MiB at most

Nothing is cut and nothing is served meanwhile; a peer that lacks the range or does not answer is left out for a while.
A peer whose retention has *removed* the range will never have it again: when nobody else gives it, only an installation
helps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from raft.codec import DRIVER_CODES, entry_id_fields, take_entry_id, take_int
from raft.core.errors import InvariantBroken
from raft.core.log import check_chain
from raft.core.types import EntryId, EntryIdLike, EntryLike, NodeId
from raft.frames import CodecError
from raft.storage import DamagedRange, LogStorage, StorageDamaged

__all__ = ["ASK", "TOLD", "RepairDesk", "Repairer", "Send"]

log = logging.getLogger(__name__)

ASK: Final = DRIVER_CODES + 1
TOLD: Final = DRIVER_CODES + 2

NONE_NOW: Final = 0
FOLLOW: Final = 1
REMOVED: Final = 2

PIECE_BYTES: Final = 1 << 20
ANSWER_S: Final = 2.0
PAUSE_S: Final = 0.5
"""After a round in which no peer could help."""

Send = Callable[[NodeId, Sequence[Any], Sequence[bytes]], bool]
"""Send a driver message with a body, behind everything urgent; False when there is no link."""


class RepairDesk:
    """Answers other replicas' questions, one at a time."""

    def __init__(self, storage: LogStorage, commit: Callable[[], int], send: Send) -> None:
        self._storage = storage
        self._commit = commit
        self._send = send
        self._questions_in, self._questions = trio.open_memory_channel[tuple[NodeId, int, int, EntryId, int]](16)

    def ask(self, node: NodeId, fields: Sequence[Any]) -> None:
        """A peer asks. Raises CodecError. More than 16 open questions: dropped, they are asked again."""
        if len(fields) != 8:
            raise CodecError("a repair question is malformed")
        number, first, next_index = take_int(fields[1]), take_int(fields[2], 1), take_int(fields[7])
        try:
            self._questions_in.send_nowait((node, number, first, take_entry_id(fields, 3), next_index))
        except trio.WouldBlock:
            log.warning("too many repair questions; one is dropped", extra={"peer": node})

    async def run(self) -> None:
        """Answer until cancelled."""
        async for node, number, first, prev, next_index in self._questions:
            entries = await self._look_up(first, prev, next_index)
            how = FOLLOW if entries else REMOVED if self._has_removed(first) else NONE_NOW
            self._send(node, [TOLD, number, how], [entry.data for entry in entries])

    def _has_removed(self, first: int) -> bool:
        """What was removed had been committed, so this says something only of a whole log."""
        return self._storage.damage is None and first < self._storage.first_index

    async def _look_up(self, first: int, prev: EntryId, next_index: int) -> Sequence[EntryLike]:
        storage = self._storage
        own = storage.entry_id(first - 1)
        if own is None or (own.term, own.crc) != (prev.term, prev.crc):
            return ()
        # Behind a hole whose end is known the chain decides; else only what is committed may be taken.
        last = min(next_index - 1, storage.last.index) if next_index else min(self._commit(), storage.last.index)
        if last < first:
            return ()
        try:
            entries = storage.cached(first, first) or await storage.read(first, last)
        except (OSError, StorageDamaged):
            return ()
        size = 0
        for count, entry in enumerate(entries):
            size += len(entry.data)
            if size > PIECE_BYTES and count:
                return entries[:count]
        return entries


class _Question:
    def __init__(self, number: int) -> None:
        self.number = number
        self.answered = trio.Event()
        self.answer: Sequence[EntryLike] = ()
        self.removed = False


class Repairer:
    """Mends this replica's log. One `run` at a time."""

    def __init__(self, storage: LogStorage, peers: Callable[[], Sequence[NodeId]], send: Send) -> None:
        self._storage = storage
        self._peers = peers
        self._send = send
        self._open = _Question(0)
        self.all_known = True
        """In the last `run`: behind every hole there was a good entry that what was fetched had to join."""

    def told(self, fields: Sequence[Any], body: memoryview) -> None:
        """A peer answers. Raises CodecError."""
        if len(fields) != 3:
            raise CodecError("a repair answer is malformed")
        how = take_int(fields[2])
        entries = self._storage.parse(body) if len(body) else ()
        if take_int(fields[1]) == self._open.number and not self._open.answered.is_set():
            self._open.answer = entries
            self._open.removed = how == REMOVED
            self._open.answered.set()

    async def run(self) -> bool:
        """Mend until the log is whole. False: only an installation helps. Raises OSError when the disk does not."""
        self.all_known = True
        while True:
            damage = self._storage.damage
            if damage is None:
                return True
            if damage.needs_install:
                return False
            self.all_known = self.all_known and damage.next_index > 0
            entries, removed = await self._fetch(damage)
            if not entries:
                if removed:
                    return False
                await trio.sleep(PAUSE_S)
                continue
            try:
                await self._storage.mend(entries)
            except CodecError as error:
                log.error("a peer's entries do not mend the log", extra={"reason": str(error)})
                await trio.sleep(PAUSE_S)
            else:
                log.warning(
                    "damaged entries replaced from peers",
                    extra={"first": entries[0].index, "last": entries[-1].index, "detail": damage.detail},
                )

    async def _fetch(self, damage: DamagedRange) -> tuple[Sequence[EntryLike], bool]:
        """The entries of the hole, complete when its end is known; empty when nobody can help now.

        Besides, whether a peer has removed some that nobody gave.
        """
        entries: list[EntryLike] = []
        removed = False
        prev: EntryIdLike = damage.prev
        for node in self._peers():
            while not (damage.next_index and prev.index + 1 >= damage.next_index):
                question = await self._question(node, EntryId.of(prev), damage.next_index)
                piece = question.answer
                if not piece:
                    removed = removed or question.removed
                    break
                try:
                    check_chain(prev, piece)
                except InvariantBroken as error:
                    log.error("a peer's entries do not continue the log", extra={"peer": node, "reason": str(error)})
                    break
                entries.extend(piece)
                prev = piece[-1]
                if not damage.next_index and len(entries) >= 4096:
                    return entries, False  # mend in steps: nobody knows how long the hole is
        if damage.next_index and prev.index + 1 < damage.next_index:
            return (), removed
        return entries, removed

    async def _question(self, node: NodeId, prev: EntryId, next_index: int) -> _Question:
        question = self._open = _Question(self._open.number + 1)
        fields = [ASK, question.number, prev.index + 1, *entry_id_fields(prev), next_index]
        if self._send(node, fields, ()):
            with trio.move_on_after(ANSWER_S):
                await question.answered.wait()
        return question
