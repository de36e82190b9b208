"""A new leader knows what other members were told while nobody led, before it answers its first offset query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.metadata.ops import key_of
from broker.replication.base import NO_LEADER, LeaderHint, NotLeader, Replicas, Replicator, Role, RoleEvent
from broker.replication.forward import Forwarder
from broker.replication.pending_offsets import ASK, COLLECT_S, PIECE_ROWS, ROWS, PendingCollector
from raft.frames import CodecError
from tests.support.intake_bench import Replica

pytestmark = pytest.mark.trio

QUEUE = key_of(1, 0)


class Member:
    """One replica: its intake, its side of the links, its collector."""

    def __init__(self, name: str) -> None:
        self.node_id = name
        self.replica = Replica()
        self.intake = self.replica.intake
        self.role = RoleEvent(Role.FOLLOWER, 0, NO_LEADER, False)
        self.links: dict[str, Member] = {}
        self.deaf = False
        self.leads = self.admitting = self.gone = False
        self.leader = NO_LEADER
        self.frames: list[Sequence[Any]] = []
        self.forwarder = Forwarder(self)
        self.collector = PendingCollector(self.intake, cast(Replicator, self), self.forwarder)

    @property
    def replicas(self) -> Replicas:
        return Replicas(tuple((name, "") for name in ("n0", "n1", "n2")))

    def reachable(self, node_id: str) -> bool:
        return node_id in self.links

    def send_app(self, node_id: str, fields: Sequence[Any], body: Sequence[bytes | memoryview]) -> bool:
        target = self.links.get(node_id)
        if target is None:
            return False
        self.frames.append(fields)
        if not target.deaf:
            target.forwarder.on_frame(self.node_id, list(fields), memoryview(b"".join(body)))
        return True

    def lead(self, term: int = 1) -> None:
        self.replica.elect(scan=False)
        self.replica.apply()
        for number in range(10):
            self.replica.put(uniq=b"%d" % number)
        self.intake.ensure_group("billing")
        self.replica.flush()
        self.leads = self.admitting = True
        self.leader = LeaderHint(self.node_id, "", term)
        self.role = RoleEvent(Role.LEADER, term, self.leader, True)

    def stored(self) -> int | None:
        return self.replica.state.offsets.get(1, QUEUE)

    async def work(self) -> None:
        """The replicator's loop: whatever the intake has becomes an entry, committed and applied."""
        while True:
            await wait_all_tasks_blocked()
            if self.intake.has_work():
                self.replica.flush()
            else:
                await trio.sleep(0.01)


def group() -> list[Member]:
    members = [Member(f"n{number}") for number in range(3)]
    for one in members:
        one.links = {other.node_id: other for other in members if other is not one}
    return members


async def test_the_first_answer_waits_for_what_members_kept(autojump_clock: MockClock) -> None:
    leader, one, two = group()
    leader.lead()
    one.intake.provisional.put("billing", "orders", 0, 4)
    two.intake.provisional.put("billing", "orders", 0, 7)
    leader.intake.provisional.put("billing", "orders", 0, 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leader.work)
        told: list[int | None] = []

        async def ask() -> None:
            await leader.collector.complete()
            told.append(leader.stored())

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        assert told == []
        await leader.collector.run_term()
        await wait_all_tasks_blocked()
        assert told == [7]
        assert trio.current_time() < COLLECT_S, "nobody was silent"
        await leader.collector.complete()
        nursery.cancel_scope.cancel()


async def test_a_silent_member_costs_half_a_second_and_its_late_answer_counts(autojump_clock: MockClock) -> None:
    leader, one, two = group()
    leader.lead()
    one.deaf = True
    one.intake.provisional.put("billing", "orders", 0, 9)
    two.intake.provisional.put("billing", "orders", 0, 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leader.work)
        began = trio.current_time()
        await leader.collector.run_term()
        assert COLLECT_S <= trio.current_time() - began < COLLECT_S + 0.1
        await leader.collector.complete()
        assert leader.stored() == 3
        one.forwarder.on_frame("n0", [ASK, 1], memoryview(b""))
        leader.intake.flush_offsets()
        await trio.sleep(0.05)
        assert leader.stored() == 9
        nursery.cancel_scope.cancel()


async def test_members_out_of_reach_are_not_waited_for(autojump_clock: MockClock) -> None:
    leader, _, two = group()
    leader.lead()
    leader.links.pop("n1")
    await leader.collector.run_term()
    assert trio.current_time() < 0.1
    assert leader.frames == [[ASK, 1]]
    await leader.collector.complete()
    assert two.intake.provisional.rows() == []


async def test_unknown_topics_and_ends_that_were_lost_hold_nothing_up(autojump_clock: MockClock) -> None:
    leader, one, _ = group()
    leader.lead()
    one.intake.provisional.put("billing", "gone", 0, 4)
    one.intake.provisional.put("billing", "orders", 0, 11)
    await leader.collector.run_term()
    await leader.collector.complete()
    assert leader.stored() is None


async def test_many_rows_come_in_pieces(autojump_clock: MockClock) -> None:
    leader, one, _ = group()
    leader.lead()
    for number in range(PIECE_ROWS + 1):
        one.intake.provisional.put(f"g{number}", "gone", 0, 1)
    await leader.collector.run_term()
    assert [fields for fields in one.frames if fields[0] == ROWS] == [[ROWS, 1, False], [ROWS, 1, True]]


async def test_the_end_of_a_term_tells_those_who_wait(autojump_clock: MockClock) -> None:
    leader, one, two = group()
    leader.lead()
    one.deaf = two.deaf = True

    async def ask() -> None:
        with pytest.raises(NotLeader):
            await leader.collector.complete()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        with trio.move_on_after(0.1):
            await leader.collector.run_term()
        leader.role = RoleEvent(Role.FOLLOWER, 2, NO_LEADER, False)
        leader.collector.end_term()


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ([ASK], b""),
        ([ASK, "1"], b""),
        ([ASK, 1], b"x"),
        ([ROWS, 1], b"\x80"),
        ([ROWS, 1, 1], b"\x80"),
        ([ROWS, 1, True], b"\xff"),
        ([ROWS, 1, True], b"\x81\x01"),
        ([ROWS, 1, True], b"\x81\x84\x01\x01\x01\x01"),
        ([7, 1], b""),
    ],
)
async def test_malformed_frames_end_the_link(fields: list[Any], body: bytes) -> None:
    with pytest.raises(CodecError):
        group()[0].forwarder.on_frame("n1", fields, memoryview(body))
