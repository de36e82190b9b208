"""A Raft replica's time as a leader: from elected over admitting to ready, and back in the turn that notices.

*Elected*: everything above the dispatched index is shown to the source (`scan`); then it *admits*, and entries form
behind the no-op. *Ready*: the no-op is committed and dispatched. *Over*: in the same turn the source drops its view
and its open batch; whoever waits for something here is woken.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

import trio

from broker.replication.base import Ticket
from broker.replication.store_view import ReplicatedStore
from broker.replication.tail import LogTail
from broker.store.entry import EntryId
from raft.core import RaftCore
from raft.core.types import EntryLike
from raft.group import RaftGroup
from raft.storage import StorageDamaged

if TYPE_CHECKING:
    from broker.replication.base import EntrySource

__all__ = ["Leading", "LeadingHost", "Moved", "end_of"]

log = logging.getLogger(__name__)


class Moved:
    """Wakes all who wait for any progress of a replica; costs nothing while nobody does."""

    def __init__(self) -> None:
        self._event = trio.Event()

    async def wait(self) -> None:
        """Return after the next `note`."""
        await self._event.wait()

    def note(self) -> None:
        """Something moved: commit, roles, room."""
        if self._event.statistics().tasks_waiting:
            self._event.set()
            self._event = trio.Event()


class LeadingHost(Protocol):
    """Whom a leader tells how far it is. Synchronous."""

    def began_admitting(self) -> None:
        """The view is complete: requests are taken."""
        ...

    def became_ready(self, term: int) -> None:
        """The no-op of the term is committed and dispatched."""
        ...


class Leading:
    """See the module's docstring. One object for all terms of a replica."""

    def __init__(self, host: LeadingHost, store: ReplicatedStore, source: EntrySource, moved: Moved) -> None:
        self.term = 0
        """Term of the leadership that is worked for; 0: not leading."""
        self.admitting = False
        self.ready = False
        self._host = host
        self._store = store
        self._source = source
        self._moved = moved
        self._scope = trio.CancelScope()

    def begin(self, nursery: trio.Nursery, group: RaftGroup, term: int, noop_index: int) -> None:
        """This replica was elected."""
        self.term = term
        self._scope = trio.CancelScope()
        nursery.start_soon(self._lead, group, term, noop_index, self._scope)

    async def _lead(self, group: RaftGroup, term: int, noop_index: int, scope: trio.CancelScope) -> None:
        """From elected to ready."""
        core = group.core
        assert core is not None, "a leader has a core"
        with scope:
            began = trio.current_time()
            tail = LogTail(group, self._store, core.last.index)
            try:
                await self._source.scan(term, tail)
            except StorageDamaged:
                return  # the group's loop stops the core before anything else
            if self._superseded(term, scope):
                return
            self._source.begin_term(term, end_of(core))
            self.admitting = True
            self._host.began_admitting()
            group.wake()
            await self._store.wait_dispatched(noop_index)
            if self._superseded(term, scope):
                return
            self.ready = True
            self._host.became_ready(term)
            log.info(
                "leader is ready",
                extra={
                    "group": group.settings.group,
                    "node": group.node_id,
                    "term": term,
                    "scanned": tail.count,
                    "took_ms": round((trio.current_time() - began) * 1000, 1),
                },
            )

    def _superseded(self, term: int, scope: trio.CancelScope) -> bool:
        """Deposed while waiting, the cancellation perhaps not delivered yet."""
        return scope.cancel_called or self.term != term

    def end(self) -> None:
        """Leadership is over: the view and the open batch go, services see it by `ready` and the role."""
        if not self.term:
            return
        self.term = 0
        self.admitting = self.ready = False
        self._scope.cancel()
        self._source.end_term()
        self._moved.note()

    def form_entries(self, group: RaftGroup, *, all_of_it: bool = False) -> list[tuple[Ticket, int, int]]:
        """Propose what is due (or `all_of_it`, since an entry of another kind is to follow).

        Returns the tickets that were given, each with the index and term of its entry.
        """
        given: list[tuple[Ticket, int, int]] = []
        source = self._source
        if not self.admitting:
            return given
        core = group.core
        assert core is not None, "a leader has a core"
        if core.transferring:
            return given  # the core takes nothing now, and what is taken from the source cannot be put back
        while source.has_work() and (all_of_it or group.may_form(full=source.full)):
            # A commit hint is taken for proof that the entry was on a disk: none of what is only written.
            taken = source.take(end_of(core), min(core.commit, self._store.log.durable.index))
            if not taken:
                break
            group.propose(cast("Sequence[EntryLike]", [entry for entry, _ticket in taken]))
            given += [(ticket, entry.index, entry.term) for entry, ticket in taken if ticket is not None]
        return given


def end_of(core: RaftCore) -> EntryId:
    """Where the core's log ends, as the store's kind of id."""
    last = core.last
    return EntryId(last.index, last.term, last.crc, last.end)
