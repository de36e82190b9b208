"""Tickets of proposed entries, until their fate is known.

Keyed by (index, term): after a change of leader another entry may stand at the same index, and only the very entry
that was proposed makes its client's request OK. Tickets of one term are settled in the order of their entries.
Deadlines are looked at in sweeps, not per ticket by a timer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from broker.replication.base import Outcome, Replies, Ticket, Verdict

__all__ = ["TicketTable"]


class TicketTable:
    """All unsettled tickets of a group."""

    def __init__(self) -> None:
        self._terms: dict[int, deque[Ticket]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._terms.values()))

    def add(self, ticket: Ticket, index: int, term: int, deadline: float) -> None:
        """The ticket's entry was proposed. Within a term indexes and deadlines only grow."""
        ticket.index, ticket.term, ticket.deadline = index, term, deadline
        tickets = self._terms.get(term)
        if tickets is None:
            tickets = self._terms[term] = deque()
        assert not tickets or tickets[-1].index < index, "tickets of a term come in the order of their entries"
        tickets.append(ticket)

    def committed(self, last: int, term_at: Callable[[int], int], ok: Outcome, replies: Replies) -> None:
        """Entries up to `last` are committed: those of the right term are OK, the others are surely not stored."""
        for term in self._known_terms():
            tickets = self._terms[term]
            while tickets and tickets[0].index <= last:
                ticket = tickets.popleft()
                if term_at(ticket.index) == term:
                    ticket.settle(ok, replies)
                else:
                    ticket.settle(Outcome(Verdict.LOST, ok.leader), replies)
            if not tickets:
                del self._terms[term]

    def expire(self, now: float, unknown: Outcome, replies: Replies) -> None:
        """Settle what is overdue as `unknown`."""
        for term in self._known_terms():
            tickets = self._terms[term]
            while tickets and tickets[0].deadline <= now:
                tickets.popleft().settle(unknown, replies)
            if not tickets:
                del self._terms[term]

    def settle_all(self, outcome: Outcome, replies: Replies) -> None:
        """The end: everything that is left has this outcome."""
        for term in self._known_terms():
            tickets = self._terms.pop(term)
            while tickets:
                tickets.popleft().settle(outcome, replies)

    def _known_terms(self) -> list[int]:
        terms = self._terms
        return list(terms) if len(terms) < 2 else sorted(terms)
