"""What the producers of a master are told, and when: RocketMQ's put statuses.

| | answer |
|---|---|
| acknowledged: own flush policy and, under `sync`, the `required` replicas | OK |
| stored here while too few slaves were in sync at admission | SLAVE_NOT_AVAILABLE |
| stored here, but the slaves did not follow within `slaveTimeout` | FLUSH_SLAVE_TIMEOUT |
| not on the own disk within `syncFlushTimeout` | FLUSH_DISK_TIMEOUT |
| the mastership ended before | UNKNOWN |

Entries wait in order, so one that has to wait holds up those behind it, never longer than its own time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from broker.replication.base import LeaderHint, Outcome, Replies, Shortfall, Ticket, Verdict
from broker.replication.ha.config import HaConfig

__all__ = ["MasterTickets"]


@dataclass(slots=True)
class _Waiting:
    ticket: Ticket
    short: bool
    since: float


class MasterTickets:
    """Tickets of entries proposed under master-slave, until their fate is known."""

    def __init__(self, config: HaConfig) -> None:
        self._config = config
        self._waiting: deque[_Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ticket: Ticket, index: int, term: int, now: float, *, short: bool) -> None:
        """The ticket's entry was proposed; `short`: too few replicas are in sync."""
        ticket.index, ticket.term = index, term
        ticket.deadline = now + self._config.flush_timeout_s
        self._waiting.append(_Waiting(ticket, short, now))

    def settle(self, *, acknowledged: int, durable: int, now: float, leader: LeaderHint, replies: Replies) -> None:
        """Answer whatever can be answered. `durable` is how far this replica's own log counts."""
        waiting = self._waiting
        ok = Outcome(Verdict.OK, leader)
        while waiting:
            head = waiting[0]
            index = head.ticket.index
            if index <= acknowledged:
                outcome = ok
            else:
                shortfall = self._shortfall(head, held=index <= durable, now=now)
                if shortfall is Shortfall.NONE:
                    return
                outcome = Outcome(Verdict.SHORT, leader, shortfall)
            waiting.popleft()
            head.ticket.settle(outcome, replies)

    def _shortfall(self, head: _Waiting, *, held: bool, now: float) -> Shortfall:
        config = self._config
        if held:
            if head.short:
                return Shortfall.SLAVE_NOT_AVAILABLE
            if now - head.since >= config.slave_timeout_s:
                return Shortfall.FLUSH_SLAVE_TIMEOUT
        elif now - head.since >= config.flush_timeout_s:
            return Shortfall.FLUSH_DISK_TIMEOUT
        return Shortfall.NONE

    def settle_all(self, outcome: Outcome, replies: Replies) -> None:
        """The mastership is over."""
        waiting, self._waiting = self._waiting, deque()
        for each in waiting:
            each.ticket.settle(outcome, replies)
