"""Who is in sync, and what producers are told: pure, with time as a number."""

from __future__ import annotations

from broker.replication.base import NO_LEADER, Outcome, Replies, Shortfall, Ticket, Verdict
from broker.replication.ha.config import HaConfig
from broker.replication.ha.in_sync import InSync, SlaveView
from broker.replication.ha.tickets import MasterTickets


def slave(node: str = "n1", **changes: object) -> SlaveView:
    fields = {"connected": True, "healthy": True, "match": 100, "lag_bytes": 0, "silent_s": 0.0, **changes}
    return SlaveView(node, **fields)  # type: ignore[arg-type]  # keywords of the caller


def update(found: InSync, now: float, *slaves: SlaveView) -> tuple[str, ...]:
    found.update(slaves, confirmed=100, gap_bytes=1000, now=now)
    return found.members


def test_a_slave_enters_with_what_consumers_have_seen_and_leaves_when_it_lags() -> None:
    found = InSync("n0", [], 0.0)
    assert update(found, 0.1, slave(match=99)) == ("n0",)
    assert update(found, 0.2, slave(match=100)) == ("n0", "n1")
    assert update(found, 0.3, slave(match=90, lag_bytes=1000)) == ("n0", "n1"), "a gap within the limit"
    assert update(found, 0.4, slave(match=90, lag_bytes=1001)) == ("n0",)


def test_a_broken_link_has_a_moment_to_come_back() -> None:
    found = InSync("n0", [slave()], 0.0)
    assert update(found, 0.4, slave(connected=False)) == ("n0", "n1")
    assert update(found, 0.45, slave()) == ("n0", "n1")
    assert update(found, 0.9, slave(connected=False)) == ("n0", "n1")
    assert update(found, 1.0, slave(connected=False)) == ("n0",)


def test_silence_bad_health_and_removal_end_it() -> None:
    for gone in ((slave(silent_s=3.0),), (slave(healthy=False),), ()):
        found = InSync("n0", [slave()], 0.0)
        assert update(found, 0.1, *gone) == ("n0",)


class Told:
    """Tickets with the outcomes they got, in order."""

    def __init__(self, **config: object) -> None:
        self.tickets = MasterTickets(HaConfig(**config))  # type: ignore[arg-type]  # keywords of the caller
        self.outcomes: list[tuple[int, Verdict, Shortfall]] = []

    def add(self, index: int, now: float, *, short: bool = False) -> None:
        ticket = Ticket()

        def settled(outcome: Outcome, replies: Replies) -> None:
            self.outcomes.append((index, outcome.verdict, outcome.shortfall))

        ticket.on_settled(settled)
        self.tickets.add(ticket, index, 256, now, short=short)

    def settle(self, acknowledged: int, durable: int, now: float) -> list[tuple[int, Verdict, Shortfall]]:
        self.outcomes = []
        self.tickets.settle(acknowledged=acknowledged, durable=durable, now=now, leader=NO_LEADER, replies=Replies())
        return self.outcomes


def test_entries_are_answered_in_order_as_they_are_acknowledged() -> None:
    told = Told()
    for index in (1, 2, 3):
        told.add(index, 0.0)
    assert told.settle(2, 3, 0.1) == [(1, Verdict.OK, Shortfall.NONE), (2, Verdict.OK, Shortfall.NONE)]
    assert told.settle(3, 3, 0.2) == [(3, Verdict.OK, Shortfall.NONE)]
    assert not told.tickets


def test_without_a_slave_an_entry_is_answered_when_it_is_held_here() -> None:
    told = Told()
    told.add(1, 0.0, short=True)
    assert told.settle(0, 0, 0.1) == []
    assert told.settle(0, 1, 0.2) == [(1, Verdict.SHORT, Shortfall.SLAVE_NOT_AVAILABLE)]


def test_a_slave_that_comes_in_time_makes_a_short_entry_whole() -> None:
    told = Told()
    told.add(1, 0.0, short=True)
    assert told.settle(1, 1, 0.1) == [(1, Verdict.OK, Shortfall.NONE)]


def test_timeouts_are_of_the_slave_or_of_the_disk() -> None:
    told = Told(slave_timeout_s=3.0, flush_timeout_s=5.0)
    told.add(1, 0.0)
    told.add(2, 0.0)
    assert told.settle(0, 1, 2.9) == []
    assert told.settle(0, 1, 3.0) == [(1, Verdict.SHORT, Shortfall.FLUSH_SLAVE_TIMEOUT)]
    assert told.settle(0, 1, 4.9) == []
    assert told.settle(0, 1, 5.0) == [(2, Verdict.SHORT, Shortfall.FLUSH_DISK_TIMEOUT)]


def test_the_end_of_a_mastership_leaves_every_fate_unknown() -> None:
    told = Told()
    told.add(1, 0.0)
    told.tickets.settle_all(Outcome(Verdict.UNKNOWN), Replies())
    assert told.outcomes == [(1, Verdict.UNKNOWN, Shortfall.NONE)]
    assert not told.tickets
