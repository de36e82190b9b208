"""Membership of a running group: replicas come, are replaced and go, and nothing acknowledged is lost."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from broker.replication.base import (
    ChangeKind,
    ChangeRefused,
    Health,
    MembershipChange,
    NotLeader,
    Role,
    TransferFailed,
    Verdict,
)
from tests.replication.raft_cluster import Cluster, Machine, Replica, cluster
from tests.replication.test_install import fill, retain
from tests.replication.test_raft_group import applied, put_all

pytestmark = pytest.mark.trio


async def change(c: Cluster, wanted: MembershipChange) -> None:
    """At whoever leads, again while only time is missing."""
    with trio.fail_after(20):
        while True:
            leader = await c.ready("g")
            try:
                await leader.replicator.change(wanted)
            except (NotLeader, ChangeRefused) as error:
                if isinstance(error, ChangeRefused) and not error.later:
                    raise
            else:
                return
            await trio.sleep(0.05)


def joining(machine: Machine) -> MembershipChange:
    status = machine.replicas["g"].replicator.status()
    return MembershipChange(
        kind=ChangeKind.ADD,
        node_id=machine.name,
        address=status.peer_address,
        client_address=f"{machine.name}:10911",
        uuid=status.store_uuid,
    )


def promotion(name: str) -> MembershipChange:
    return MembershipChange(kind=ChangeKind.PROMOTE, node_id=name)


def removal(name: str, *, maintenance: bool = False) -> MembershipChange:
    return MembershipChange(kind=ChangeKind.REMOVE, node_id=name, maintenance=maintenance)


def voters(replica: Replica) -> list[str]:
    return [node for node, _ in replica.replicator.replicas.voters]


def learners(replica: Replica) -> list[str]:
    return [node for node, _ in replica.replicator.replicas.learners]


async def test_a_new_replica_is_added_as_a_learner_catches_up_and_becomes_a_voter(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        await put_all(leader, [b"%d" % number for number in range(200)])
        new = await c.grow("n3")
        await trio.sleep(2)
        assert new.replicas["g"].replicator.status().health is Health.UNFORMED
        await change(c, joining(new))
        assert learners(leader) == ["n3"]
        await c.settled("g")
        learner = new.replicas["g"].replicator
        assert learner.role.role is Role.LEARNER
        assert learner.leader.leader_id == leader.replicator.node_id
        await change(c, promotion("n3"))
        await put_all(leader, [b"after"])
        await c.settled("g")
        assert all(voters(replica) == ["n0", "n1", "n2", "n3"] for replica in c.replicas("g"))
        assert applied(new.replicas["g"]) == [*(b"%d" % number for number in range(200)), b"after"]
        # Three of four are the majority now, the new one among them.
        others = [m for m in c.machines.values() if m.name not in ("n3", leader.replicator.node_id)]
        await others[0].kill()
        await put_all(await c.ready("g"), [b"three of four"])


async def test_a_wiped_replica_may_not_take_part_until_it_is_removed_and_added_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        await put_all(leader, [b"before"])
        victim = next(m for m in c.machines.values() if m.name != leader.replicator.node_id)
        await victim.kill()
        victim.wipe()
        await victim.start()
        await trio.sleep(3)
        wiped = victim.replicas["g"].replicator
        assert wiped.status().health is Health.UNFORMED
        assert any("disk of" in str(getattr(r, "detail", "")) for r in caplog.records)
        with pytest.raises(ChangeRefused, match="its disk was replaced; remove it first"):
            await change(c, joining(victim))
        with pytest.raises(ChangeRefused, match="--maintenance"):
            await change(c, removal(victim.name))
        await change(c, removal(victim.name, maintenance=True))
        assert voters(leader) == sorted(set(c.names) - {victim.name})
        await change(c, joining(victim))
        await change(c, promotion(victim.name))
        await put_all(await c.ready("g"), [b"after"])
        await c.settled("g")
        assert all(voters(replica) == ["n0", "n1", "n2"] for replica in c.replicas("g"))
        assert applied(victim.replicas["g"]) == [b"before", b"after"]
        # It counts: with one of the others gone, two go on.
        other = next(m for m in c.machines.values() if m.name not in (leader.replicator.node_id, victim.name))
        await other.kill()
        await put_all(await c.ready("g"), [b"again"])
        # And it remembers who it is.
        await victim.kill()
        await victim.start()
        await put_all(await c.ready("g"), [b"still"])


async def test_each_of_three_replicas_is_replaced_in_turn_by_an_empty_one(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        sent: list[bytes] = []
        for name in ("n0", "n1", "n2", "n0"):
            leader = await c.ready("g")
            more = [b"%s-%d-%d" % (name.encode(), len(sent), number) for number in range(50)]
            await put_all(leader, more)
            sent += more
            machine = c.machines[name]
            await machine.kill()
            machine.wipe()
            await change(c, removal(name, maintenance=True))
            await machine.start()
            await change(c, joining(machine))
            await change(c, promotion(name))
            await c.settled("g")
        for replica in c.replicas("g"):
            assert applied(replica) == sent
            assert voters(replica) == ["n0", "n1", "n2"]


async def test_three_become_five_and_three_again_without_the_first(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        await put_all(leader, [b"one"])
        for name in ("n3", "n4"):
            new = await c.grow(name)
            await change(c, joining(new))
            await change(c, promotion(name))
        await put_all(await c.ready("g"), [b"two"])
        for name in ("n0", "n1"):
            await change(c, removal(name))
            await c.machines[name].kill()
        leader = await c.ready("g")
        await put_all(leader, [b"three"])
        await c.settled("g")
        for replica in c.replicas("g"):
            assert applied(replica) == [b"one", b"two", b"three"]
            assert voters(replica) == ["n2", "n3", "n4"]


async def test_a_removed_leader_hands_over_and_is_told_to_be_silent(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        new = await c.grow("n3")
        leader = await c.ready("g")
        await change(c, joining(new))
        await change(c, promotion("n3"))
        leader = await c.ready("g")
        name = leader.replicator.node_id
        await put_all(leader, [b"before"])
        began = trio.current_time()
        await leader.replicator.change(removal(name))
        successor = await c.ready("g", besides=name)
        assert trio.current_time() - began < 0.3
        await put_all(successor, [b"after"])
        await trio.sleep(3)
        term = successor.replicator.role.term
        assert successor.replicator.is_ready
        removed = c.machines[name].replicas["g"].replicator
        assert not removed.leads
        assert removed.status().detail.startswith("removed from the group")
        await trio.sleep(10)
        assert successor.replicator.role.term == term


async def test_a_removed_leader_leaves_nobody_waiting(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        new = await c.grow("n3")
        await c.ready("g")
        await change(c, joining(new))
        await change(c, promotion("n3"))
        leader = await c.ready("g")
        name = leader.replicator.node_id
        taken: list[bytes] = []

        async def load() -> None:
            while leader.source.put(payload := b"%d" % len(taken)):
                taken.append(payload)
                await trio.sleep(0.0001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            await leader.replicator.change(removal(name))
        successor = await c.ready("g", besides=name)
        await trio.sleep(0.1)
        outcomes = [leader.source.outcomes.get(payload) for payload in taken]
        assert all(outcome is not None and outcome.verdict is not Verdict.UNKNOWN for outcome in outcomes)
        assert any(outcome is not None and outcome.verdict is Verdict.OK for outcome in outcomes)
        removed = leader.replicator
        assert removed.gone
        assert removed.leader.leader_id == successor.replicator.node_id


async def test_a_replica_that_was_removed_while_it_was_away_learns_it_and_does_not_campaign(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        victim = next(m for m in c.machines.values() if m.name != leader.replicator.node_id)
        await victim.kill()
        await change(c, removal(victim.name, maintenance=True))
        await victim.start()
        await trio.sleep(5)
        removed = victim.replicas["g"].replicator
        assert removed.status().detail.startswith("removed from the group")
        assert removed.role.role is Role.FOLLOWER
        assert (await c.ready("g")) is leader
        # The same store may come back: it is the same replica.
        await change(c, joining(victim))
        await change(c, promotion(victim.name))
        await put_all(leader, [b"after"])
        await c.settled("g")
        assert applied(victim.replicas["g"]) == [b"after"]


async def test_a_replica_that_was_away_while_the_others_were_replaced_finds_the_new_ones(
    autojump_clock: MockClock,
) -> None:
    async with cluster(names=("n0", "n1", "n2", "n3", "n4")) as c:
        await put_all(await c.ready("g"), [b"before"])
        away = c.machines["n4"]
        await away.kill()
        for name in ("n0", "n1", "n2", "n3"):
            machine = c.machines[name]
            await machine.kill()
            machine.wipe()
            await change(c, removal(name))
            await machine.start()
            await change(c, joining(machine))
            await change(c, promotion(name))
        await put_all(await c.ready("g"), [b"after"])
        await away.start()
        await c.settled("g", 10)
        assert applied(away.replicas["g"]) == [b"before", b"after"]


async def test_an_empty_replica_that_comes_after_retention_is_installed(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        c.reopens = True
        leader = await c.ready("g")
        await fill(leader, 60)
        await c.settled("g")
        for replica in c.replicas("g"):
            await retain(replica)
        new = await c.grow("n3")
        await change(c, joining(new))
        await c.until(lambda: "g" in new.replicas and new.replicas["g"].store.log.first_index > 1, 20)
        await change(c, promotion("n3"))
        await put_all(await c.ready("g"), [b"after"])
        await c.settled("g", 20)
        assert applied(new.replicas["g"])[-1] == b"after"
        assert new.replicas["g"].replicator.status().health is Health.OK


async def test_changes_that_make_no_sense_are_refused_with_the_reason(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        follower = next(r for r in c.replicas("g") if r is not leader)
        with pytest.raises(NotLeader):
            await follower.replicator.change(removal("n1"))
        for wanted, reason in (
            (promotion("n9"), "n9 is no learner"),
            (promotion("n1"), "n1 is a voter of this group already"),
            (removal("n9"), "n9 is no member"),
            (MembershipChange(kind=ChangeKind.ADD, node_id="n9", address="n9:1"), "uuid of its store"),
            (MembershipChange(kind=ChangeKind.ADD, node_id="n9", address="nowhere", uuid="u"), "peer address"),
            (
                MembershipChange(kind=ChangeKind.ADD, node_id="n9", address="n1:40911", uuid="u"),
                "n1 listens for its peers at n1:40911 already",
            ),
        ):
            with pytest.raises(ChangeRefused, match=reason):
                await leader.replicator.change(wanted)
        gone = MembershipChange(kind=ChangeKind.ADD, node_id="n9", address="n9:40911", uuid="u")
        await leader.replicator.change(gone)
        with pytest.raises(ChangeRefused, match="has not caught up yet") as refused:
            await leader.replicator.change(promotion("n9"))
        assert refused.value.later
        await leader.replicator.change(removal("n9"))
        assert learners(leader) == []


async def test_a_removal_that_would_leave_no_majority_is_refused(autojump_clock: MockClock) -> None:
    async with cluster(names=("n0", "n1", "n2", "n3")) as c:
        leader = await c.ready("g")
        others = [m for m in c.machines.values() if m.name != leader.replicator.node_id]
        await others[0].kill()
        await trio.sleep(1)
        await change(c, removal(others[0].name))  # the dead one may go
        await others[1].kill()
        await trio.sleep(1)
        leader = c.leader("g") or leader
        with pytest.raises(ChangeRefused, match="only 1 of 2 voters answer"):
            await leader.replicator.change(removal(others[2].name, maintenance=True))


async def test_a_change_during_a_transfer_leaves_the_open_batch_alone(autojump_clock: MockClock) -> None:
    """It is refused; what was waiting then is stored when the transfer has failed."""
    async with cluster() as c:
        leader = await c.ready("g")
        target, other = (m for m in c.machines.values() if m.name != leader.replicator.node_id)
        c.net.cut(target.name, [m.name for m in c.machines.values() if m is not target])
        async with trio.open_nursery() as nursery:

            async def hand_over() -> None:
                with pytest.raises(TransferFailed):
                    await leader.replicator.transfer(target.name)

            nursery.start_soon(hand_over)
            await trio.sleep(0.01)
            assert not leader.replicator.admitting
            assert leader.source.put(b"waits")
            with pytest.raises(ChangeRefused, match="leadership is going"):
                await leader.replicator.change(removal(other.name, maintenance=True))
        c.net.heal()
        await c.until(lambda: b"waits" in leader.source.outcomes)
        assert leader.source.outcomes[b"waits"].ok
        assert not any(machine.failures for machine in c.machines.values())


async def test_requests_in_flight_survive_a_change(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        new = await c.grow("n3")
        sent: list[bytes] = []
        stop = trio.Event()

        async def load() -> None:
            while not stop.is_set():
                payload = b"%d" % len(sent)
                if leader.source.put(payload):
                    sent.append(payload)
                await trio.sleep(0.0005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            await trio.sleep(0.2)
            await change(c, joining(new))
            await change(c, promotion("n3"))
            await trio.sleep(0.2)
            stop.set()
        await c.until(lambda: all(payload in leader.source.outcomes for payload in sent))
        assert len(sent) > 500
        assert all(outcome.ok for outcome in leader.source.outcomes.values())
        await c.settled("g")
        assert applied(new.replicas["g"]) == sent
