"""How far a replica's entries have come: commit and durable in; dispatch, and answers to producers, out.

Tickets settle in the turn in which commit passes their entry (under master-slave: in which it is acknowledged); what is
overdue after 3 s is UNKNOWN. What is uncommitted or undispatched is bounded: admission pauses beyond it, so that what a
new leader has to scan stays small.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from broker.replication.base import LeaderHint, Outcome, Replies, Ticket, Verdict
from broker.replication.ha.master import Master
from broker.replication.ha.rules import GroupRules
from broker.replication.leading import Moved
from broker.replication.limits import (
    BEHIND_ENTRIES,
    TICKET_DEADLINE_S,
    UNCOMMITTED_MAX_BYTES,
    UNDISPATCHED_MAX_BYTES,
)
from broker.replication.store_view import ReplicatedStore
from broker.replication.tickets import TicketTable
from raft.core import RaftCore

__all__ = ["Settling"]


class Settling:
    """One per replica, for all its terms. `hint`: the leader that an answer names."""

    def __init__(self, store: ReplicatedStore, rules: GroupRules, master: Master, moved: Moved) -> None:
        self.commit = 0
        """Index of the newest entry that is known to be committed."""
        self._commit_end = 0
        self._store = store
        self._rules = rules
        self._master = master
        self._moved = moved
        self._tickets = TicketTable()

    @property
    def visible(self) -> int:
        """Position up to which consumers may see."""
        return min(self._commit_end, self._store.dispatched_end)

    @property
    def unsettled(self) -> bool:
        """Does a producer wait for an answer?"""
        return bool(self._tickets or self._master.tickets)

    @property
    def behind(self) -> bool:
        """Is much committed that is not dispatched yet?"""
        return self.commit - self._store.dispatched > BEHIND_ENTRIES

    def has_room(self, core: RaftCore) -> bool:
        """Is little enough uncommitted and undispatched to take more?"""
        return (
            core.last.end - self._commit_end <= UNCOMMITTED_MAX_BYTES
            and self._commit_end - self._store.dispatched_end <= UNDISPATCHED_MAX_BYTES
        )

    def proposed(self, core: RaftCore, taken: Sequence[tuple[Ticket, int, int]]) -> None:
        """These tickets' entries (index, term) were proposed."""
        now = trio.current_time()
        if self._rules.raft_only(core):
            for ticket, index, term in taken:
                self._tickets.add(ticket, index, term, now + TICKET_DEADLINE_S)
            return
        short = self._rules.short(core)
        for ticket, index, term in taken:
            self._master.tickets.add(ticket, index, term, now, short=short)

    def committed(self, core: RaftCore, last: int, hint: LeaderHint) -> None:
        """Commit moved up to `last`."""
        self.note_commit(core, last)
        if self._tickets:

            def term_at(index: int) -> int:
                entry = core.entry_id(index)
                return entry.term if entry is not None else 0

            replies = Replies()
            self._tickets.committed(last, term_at, Outcome(Verdict.OK, hint), replies)
            replies.flush()
        self._moved.note()

    def note_commit(self, core: RaftCore, last: int) -> None:
        """Commit stands at `last`: nobody has to be told, dispatch may follow."""
        entry = core.entry_id(last)
        assert entry is not None, "what is committed is in the log"
        self.commit, self._commit_end = last, entry.end
        self.allow_dispatch(core)

    def allow_dispatch(self, core: RaftCore) -> None:
        """Up to min(commit, durable) *as the core sees it*: the file may show a tail that a queued cut is to remove."""
        allowed = min(self.commit, core.durable)
        if self._store.dispatched < allowed:
            self._store.allow(allowed)

    def settle_master(self, core: RaftCore | None, hint: LeaderHint) -> None:
        """Master-slave: what is acknowledged, or has waited long enough, may have moved."""
        if core is not None and self._master.tickets:
            self._master.settle(core, trio.current_time(), hint)
            self._moved.note()

    def expire(self, now: float, hint: LeaderHint) -> None:
        """Nobody knows in time what became of these."""
        if self._tickets:
            replies = Replies()
            self._tickets.expire(now, Outcome(Verdict.UNKNOWN, hint), replies)
            replies.flush()

    def stop(self, verdict: Verdict) -> None:
        """The group is over in this process."""
        replies = Replies()
        self._tickets.settle_all(Outcome(verdict), replies)
        replies.flush()
