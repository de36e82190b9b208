"""Keeping a Raft replica's log whole: entries for a hole, files for what entries cannot help.

One per replica, beside its group. It answers other replicas' questions, mends this replica's own log when the group
has stopped its core, and installs a peer's files when the leader offers it or when nothing less would help. After an
installation the store must be opened anew: `run` ends with ReopenPlanned, which says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import trio

from broker.replication.base import ReopenPlanned
from broker.replication.install_files import StagedFiles, open_exported_files
from broker.replication.raft_storage import RaftStorage
from broker.replication.store_view import ReplicatedStore
from raft.core.types import EntryId, PeerState
from raft.core.types import Role as CoreRole
from raft.group import RaftGroup
from raft.hard_state import HardStateFile
from raft.installer import INSTALL_CODES, Installer, InstallSource, offer_fields
from raft.repair import ASK, TOLD, RepairDesk, Repairer
from raft.signals import Signal

__all__ = ["Mending"]

log = logging.getLogger(__name__)

OFFER_EVERY_S: Final = 5.0
"""A peer that still needs an installation is offered one again."""
RETRY_S: Final = 1.0
_FROM_TARGET: Final = frozenset({INSTALL_CODES[1], INSTALL_CODES[3], INSTALL_CODES[5]})


class Mending:
    """See the module's docstring."""

    def __init__(
        self,
        group: RaftGroup,
        storage: RaftStorage,
        hard: HardStateFile,
        store: ReplicatedStore,
        commit: Callable[[], int],
        token: int,
    ) -> None:
        self._group = group
        self._storage = storage
        self._hard = hard
        self._store = store
        self._labels = {"group": group.settings.group, "node": group.node_id}
        self._desk = RepairDesk(storage, commit, group.send_bulk)
        self._repairer = Repairer(storage, lambda: group.members.connected_ids, group.send_bulk)
        self._source = InstallSource(lambda: open_exported_files(store), group.send_bulk)
        self._installer = Installer(StagedFiles(store.fs), group.send_bulk, self._wants, self._prepare_switch, token)
        self._wake = Signal()
        self._next_offer = 0.0

    async def run(self) -> None:
        """Work until cancelled. Raises ReopenPlanned when the store has to be opened anew, OSError."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._desk.run)
            nursery.start_soon(self._source.run)
            while True:
                await self._wake.wait()
                if self._storage.damage is not None:
                    await self._mend()
                elif self._installer.offered.is_set():
                    await self._take_offer()

    def log_released(self) -> None:
        """The group's core is stopped and nothing writes: if the log is damaged, this is the work to do."""
        self._wake.set()

    def driver_message(self, node: str, fields: Sequence[Any], body: memoryview) -> None:
        """A driver message from a member. Raises CodecError."""
        code = fields[0]
        if code == ASK:
            self._desk.ask(node, fields)
        elif code == TOLD:
            self._repairer.told(fields, body)
        elif code in _FROM_TARGET:
            self._source.receive(node, fields)
        elif code in INSTALL_CODES:
            self._installer.receive(node, fields, body)
            self._wake.set()
        else:
            log.debug("unknown driver message", extra={"code": code, "peer": node})

    def link_lost(self, node: str) -> None:
        self._source.lost(node)

    def tick(self, now: float) -> None:
        """Leader: offer an installation to whoever needs one."""
        core = self._group.core
        if now < self._next_offer or core is None or core.role is not CoreRole.LEADER:
            return
        self._next_offer = now + OFFER_EVERY_S
        peers = core.status().peers
        healthy = [p.id for p in peers if p.state is PeerState.REPLICATE and p.match >= core.commit]
        behind = [peer.id for peer in peers if peer.state is PeerState.INSTALL]
        for node in [*behind, *self._group.joinable()]:
            self._group.send_bulk(node, offer_fields([*healthy, self._group.node_id]), ())

    def offer_now(self) -> None:
        """A peer was found to need an installation."""
        self._next_offer = 0.0

    async def _mend(self) -> None:
        log.warning("log damaged; asking peers", extra=self._labels)
        suspect_before = self._storage.suspect or self._hard.state.suspect
        held = self._end_in_memory()
        await self._storage.note_suspect()  # first of all: a recovery after this might take rot for a torn write
        if await self._repairer.run():
            if not suspect_before and self._is_what_it_was(held):
                await self._storage.clear_suspect()
            if self._store.failure is not None:
                raise ReopenPlanned("the log was mended; what read it before is opened anew")
            self._group.resume()
            return
        log.error("the log cannot be mended entry by entry; installing it from a peer", extra=self._labels)
        while True:
            if await self._installer.install(self._group.members.connected_ids):
                raise ReopenPlanned("installed from a peer; the store is opened anew")
            await trio.sleep(RETRY_S)

    def _end_in_memory(self) -> EntryId | None:
        """Where the log ended before it was damaged; None when that was found at the start and nobody can know."""
        damage, last = self._storage.damage, self._storage.last
        return EntryId.of(last) if damage is not None and damage.first_index <= last.index else None

    def _is_what_it_was(self, held: EntryId | None) -> bool:
        """Does the mended log hold again all that it ever did? Else a leader has to say so (raft/core/following.py).

        Without an end from memory the chain tells: every hole had a good entry behind it, and nothing was cut off.
        """
        if held is None:
            return self._repairer.all_known and not self._storage.tail_cut
        own = self._storage.entry_id(held.index)
        return own is not None and EntryId.of(own) == held

    async def _take_offer(self) -> None:
        installer = self._installer
        sources = [node for node in installer.sources if node != self._group.node_id]
        if await installer.install(sources):
            raise ReopenPlanned("installed from a peer; the store is opened anew")
        installer.offered = trio.Event()
        if self._group.core is None:
            self._group.resume()

    def _wants(self, last: EntryId) -> bool:
        """Whether a log that ends there is of use: always to a damaged one, else while ours does not hold its end."""
        core = self._group.core
        return core is None or core.may_install(last)

    async def _prepare_switch(self, last: EntryId) -> None:
        """Everything has arrived. From here on the old log promises nothing.

        Whatever this replica may have acknowledged must be in the new log, or it must not count until it has caught
        up with a leader elected without it.
        """
        damaged = self._storage.damage is not None
        joins = not self._storage.formed
        await self._group.hold()
        own = self._storage.last
        state = self._hard.state
        if (damaged or joins or (last.term, last.index) < (own.term, own.index)) and not state.suspect:
            await self._hard.save(replace(state, suspect=True))
