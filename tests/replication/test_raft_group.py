"""Three replicas: formation, replication, leader change, partitions, restarts, damage to the hard state."""

from __future__ import annotations

import random
from contextlib import suppress
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from broker.replication.base import Health, NotLeader, Role, TransferFailed, Verdict
from raft.core import RaftCore
from raft.group import WrongStore
from tests.replication.raft_cluster import Replica, cluster, until
from tests.replication.small import memory_fs

pytestmark = pytest.mark.trio


def ok(replica: Replica) -> list[bytes]:
    return [payload for payload, outcome in replica.source.outcomes.items() if outcome.ok]


def applied(replica: Replica) -> list[bytes]:
    return [payload for _index, payload in replica.store.applied]


async def put_all(leader: Replica, payloads: list[bytes]) -> None:
    for payload in payloads:
        assert leader.source.put(payload)
    await until(lambda: all(payload in leader.source.outcomes for payload in payloads), 5)


async def test_three_empty_replicas_form_a_group_and_elect_a_leader(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        await c.settled("g")
        name = leader.replicator.node_id
        assert {r.store.log.lineage for r in c.replicas("g")} == {leader.store.log.lineage}
        status = leader.replicator.status()
        assert (status.role, status.ready, status.health) == (Role.LEADER, True, Health.OK)
        assert [peer.node_id for peer in status.peers] == [other for other in c.names if other != name]
        assert all(peer.connected and peer.match == status.last for peer in status.peers)
        assert leader.replicator.replicas.voters == (("n0", "n0:10911"), ("n1", "n1:10911"), ("n2", "n2:10911"))
        for replica in c.replicas("g"):
            assert replica.replicator.leader.leader_id == name
            assert replica.replicator.leader.addr == f"{name}:10911"


async def test_nobody_forms_a_group_without_all_peers(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with cluster(start=False) as c:
        await c.machines["n0"].start()
        await c.machines["n1"].start()
        await trio.sleep(30)
        assert all(r.replicator.status().health is Health.UNFORMED for r in c.replicas("g"))
        assert any(r.message == "waiting for peers" and getattr(r, "missing", "") == "n2" for r in caplog.records)
        await c.machines["n2"].start()
        await c.ready("g")


async def test_what_is_acknowledged_is_on_every_replica_in_order(autojump_clock: MockClock) -> None:
    sent = [b"%d" % number for number in range(3000)]
    async with cluster() as c:
        leader = await c.ready("g")
        await put_all(leader, sent)
        assert ok(leader) == sent
        assert leader.source.batches < 20
        await c.settled("g")
        for replica in c.replicas("g"):
            assert applied(replica) == sent


async def test_large_entries_and_segments_travel_whole(autojump_clock: MockClock) -> None:
    sent = [bytes([number]) * 100_000 for number in range(60)]
    async with cluster() as c:
        leader = await c.ready("g")
        await put_all(leader, sent)
        await c.settled("g")
        for replica in c.replicas("g"):
            assert applied(replica) == sent
            assert len(replica.store.log.sealed_segments()) >= 5


async def test_killing_the_leader_loses_nothing_and_a_new_one_is_ready_within_a_second(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        sent = [b"%d" % number for number in range(500)]
        await put_all(leader, sent)
        began = trio.current_time()
        name = leader.replicator.node_id
        await c.machines[name].kill()
        new = await c.ready("g", besides=name)
        assert trio.current_time() - began < 1.0
        await put_all(new, [b"after"])
        await c.settled("g")
        assert applied(new) == [*sent, b"after"]
        await c.machines[name].start()
        await c.settled("g")
        assert applied(c.machines[name].replicas["g"]) == [*sent, b"after"]


async def test_three_groups_share_links_and_fail_over_apart(autojump_clock: MockClock) -> None:
    groups = ("ga", "gb", "gc")
    async with cluster(groups=groups) as c:
        leaders = {group: await c.ready(group) for group in groups}
        assert c.net.connections == 3
        for group, leader in leaders.items():
            await put_all(leader, [group.encode() + b"%d" % number for number in range(50)])
        victim = leaders["gb"].replicator.node_id
        await c.machines[victim].kill()
        new = await c.ready("gb", besides=victim)
        for group in ("ga", "gc"):
            if leaders[group].replicator.node_id != victim:
                assert c.leader(group) is leaders[group]
                assert leaders[group].replicator.role.term == leaders[group].source.terms[0]
            await c.ready(group, besides=victim)
        await put_all(new, [b"on"])
        for group in groups:
            await c.settled(group)


async def test_a_leader_cut_off_stops_being_ready_and_its_open_requests_get_an_answer(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as c:
        old = await c.ready("g")
        await put_all(old, [b"before"])
        c.isolate(old)
        assert old.source.put(b"during")
        new = await c.ready("g", besides=old.replicator.node_id)
        await c.until(lambda: not old.replicator.is_ready, 2)
        assert not old.source.put(b"refused")
        await put_all(new, [b"other"])
        await c.until(lambda: b"during" in old.source.outcomes, 4)
        assert old.source.outcomes[b"during"].verdict is Verdict.UNKNOWN
        with pytest.raises(NotLeader):
            await old.replicator.barrier()
        c.net.heal()
        await c.settled("g", 10)
        for replica in c.replicas("g"):
            assert applied(replica) == [b"before", b"other"]


async def test_a_proposal_replaced_by_another_leaders_entry_is_lost_for_sure(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        old = await c.ready("g")
        c.isolate(old)
        assert old.source.put(b"during")
        new = await c.ready("g", besides=old.replicator.node_id)
        await put_all(new, [b"other"])
        c.net.heal()
        await c.until(lambda: b"during" in old.source.outcomes, 4)
        assert old.source.outcomes[b"during"].verdict is Verdict.LOST
        assert old.source.outcomes[b"during"].leader.leader_id == new.replicator.node_id


async def test_a_proposal_that_survives_its_leader_is_still_acknowledged(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        old = await c.ready("g")
        # The entry reaches the followers, their answers never arrive.
        assert old.source.put(b"during")
        await c.until(lambda: any(r.store.log.last.index == 3 for r in c.replicas("g") if r is not old), 1)
        c.isolate(old)
        new = await c.ready("g", besides=old.replicator.node_id)
        c.net.heal()
        await c.settled("g", 10)
        assert applied(new) == [b"during"]
        assert old.source.outcomes[b"during"].verdict is Verdict.OK


async def test_restarting_all_replicas_at_once_keeps_everything(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        sent = [b"%d" % number for number in range(800)]
        await put_all(leader, sent)
        for name in c.names:
            await c.machines[name].kill(keep=0.0)
        await c.start()
        await c.ready("g")
        await c.settled("g")
        for replica in c.replicas("g"):
            assert applied(replica) == sent


async def test_transfer_hands_over_without_losing_a_request(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        await put_all(leader, [b"a"])
        began = trio.current_time()
        target = next(name for name in c.names if name != leader.replicator.node_id)
        await leader.replicator.transfer(target)
        new = await c.ready("g", besides=leader.replicator.node_id)
        assert new.replicator.node_id == target
        assert trio.current_time() - began < 0.3
        await put_all(new, [b"b"])
        with pytest.raises(NotLeader):
            await leader.replicator.transfer()
        with pytest.raises(TransferFailed):
            await new.replicator.transfer("nobody")
        await c.settled("g")


async def test_drain_settles_and_hands_over(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        for number in range(100):
            leader.source.put(b"%d" % number)
        await leader.replicator.drain()
        assert len(ok(leader)) == 100
        await c.ready("g", besides=leader.replicator.node_id)
        assert not leader.replicator.admitting


async def test_barriers_share_a_round_and_see_what_was_acknowledged(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        await put_all(leader, [b"x"])
        follower = next(r.replicator for r in c.replicas("g") if r is not leader)
        assert follower._group is not None
        link = follower._group.members.link(leader.replicator.node_id)
        assert link is not None
        frames = link.received_frames
        positions: list[int] = []

        async def ask() -> None:
            positions.append(await leader.replicator.barrier())

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(ask)
        assert len(positions) == 50
        assert min(positions) >= leader.store.log.last.end
        assert link.received_frames - frames <= 4
        with pytest.raises(NotLeader):
            await follower.barrier()


async def test_role_events_tell_leader_then_ready_and_the_newest_only(autojump_clock: MockClock) -> None:
    async with cluster(start=False) as c:
        seen: dict[str, list[tuple[Role, bool]]] = {name: [] for name in c.names}

        async def follow(name: str) -> None:
            await c.until(lambda: "g" in c.machines[name].replicas, 5)
            async for event in c.machines[name].replicas["g"].replicator.subscribe():
                seen[name].append((event.role, event.ready))

        for name in c.names:
            c.nursery.start_soon(follow, name)
        await c.start()
        leader = await c.ready("g")
        await trio.sleep(0.1)
        events = seen[leader.replicator.node_id]
        assert events[-2:] == [(Role.LEADER, False), (Role.LEADER, True)]
        assert (Role.LEADER, True) not in events[:-1]


async def test_a_lost_hard_state_waits_for_all_voters_and_never_votes_twice(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        await put_all(leader, [b"x"])
        await c.settled("g")
        term = leader.replicator.role.term
        victim, other = (c.machines[name] for name in c.names if name != leader.replicator.node_id)
        await victim.kill()
        victim.disks["g"].replace("hard-state", b"\xff" * 16384)
        await other.kill()
        await victim.start()
        await trio.sleep(5)
        # Only the old leader has told its term: the victim stays silent, so there is no majority.
        assert not victim.replicas["g"].replicator.leader.leader_id
        assert "voters" in victim.replicas["g"].replicator.status().detail
        await other.start()
        await c.ready("g")
        await c.until(lambda: victim.replicas["g"].replicator.status().health is Health.OK, 10)
        await put_all(await c.ready("g"), [b"y"])
        await c.settled("g")
        assert applied(victim.replicas["g"]) == [b"x", b"y"]
        assert victim.replicas["g"].replicator.role.term > term


async def test_a_replica_whose_disk_was_replaced_is_refused(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        await put_all(leader, [b"x"])
        victim, other = (c.machines[name] for name in c.names if name != leader.replicator.node_id)
        await victim.kill()
        victim.disks["g"] = memory_fs("new")
        await victim.start()
        await trio.sleep(5)
        wiped = victim.replicas["g"].replicator
        assert wiped.status().health is Health.UNFORMED
        assert any("store uuid differs" in record.message for record in caplog.records)
        await other.kill()
        await trio.sleep(5)
        assert c.leader("g") is None  # the wiped one counts for nothing


async def test_a_store_of_another_group_is_refused_at_start(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        await c.ready("g")
        await c.machines["n2"].kill()
        c.config_cluster = "other"
        with pytest.raises(ExceptionGroup) as caught:
            await c.machines["n2"].start()
        assert caught.group_contains(WrongStore, match="belongs to cluster 'test'")


async def test_a_failed_group_stops_alone(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with cluster(groups=("ga", "gb")) as c:
        a, b = await c.ready("ga"), await c.ready("gb")
        await put_all(a, [b"a"])
        broken = next(r.replicator for r in c.replicas("ga") if r is not a)
        assert broken._group is not None

        def bug(core: RaftCore, now_ms: int) -> None:
            raise IndexError("a bug")

        broken._group.call(bug)
        await broken.failed.wait()
        status = broken.status()
        assert status.health is Health.FAILED
        assert "IndexError" in status.detail
        await put_all(a, [b"b"])
        await put_all(b, [b"c"])
        assert c.leader("ga") is a
        assert c.leader("gb") is b


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
async def test_a_storm_of_kills_and_cuts_loses_no_acknowledged_payload(autojump_clock: MockClock, seed: int) -> None:
    rng = random.Random(seed)
    async with cluster(groups=("ga", "gb"), seed=seed) as c:
        acknowledged: dict[str, list[bytes]] = {"ga": [], "gb": []}
        stop = trio.Event()

        async def produce(group: str) -> None:
            number = 0
            while not stop.is_set():
                leader = c.leader(group)
                if leader is None:
                    await trio.sleep(0.02)
                    continue
                payload = b"%s-%d" % (group.encode(), number)
                number += 1
                if leader.source.put(payload):
                    source = leader.source
                    with suppress(trio.TooSlowError):
                        await until(partial(source.outcomes.__contains__, payload), 4)
                    outcome = leader.source.outcomes.get(payload)
                    if outcome is not None and outcome.ok:
                        acknowledged[group].append(payload)
                else:
                    await trio.sleep(0.005)

        async with trio.open_nursery() as nursery:
            for group in c.groups:
                nursery.start_soon(produce, group)
            for _ in range(12):
                await trio.sleep(rng.uniform(0.2, 1.5))
                name = rng.choice(c.names)
                machine = c.machines[name]
                if rng.random() < 0.5:
                    await machine.kill(keep=rng.choice((1.0, 0.0, None)))
                    await trio.sleep(rng.uniform(0.0, 1.5))
                    await machine.start()
                else:
                    c.net.cut(name, [other for other in c.names if other != name][: rng.randint(1, 2)])
                    await trio.sleep(rng.uniform(0.2, 3.0))
                    c.net.heal()
            await trio.sleep(3)
            stop.set()
        for group in c.groups:
            await c.ready(group)
            await c.settled(group, 10)
            assert len(acknowledged[group]) > 50
            for replica in c.replicas(group):
                there = applied(replica)
                assert len(there) == len(set(there))
                missing = [payload for payload in acknowledged[group] if payload not in set(there)]
                assert not missing


async def test_leadership_comes_to_the_preferred_replica_in_the_end(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        other = next(name for name in c.names if name not in ("n0", leader.replicator.node_id))
        await leader.replicator.transfer(other)
        moved = await c.ready("g", besides=leader.replicator.node_id)
        assert moved.replicator.node_id == other
        assert moved.source.flushed == 0
        await trio.sleep(25)
        assert c.leader("g") is moved  # not before it has been steady for 30 s
        await trio.sleep(30)
        preferred = await c.ready("g")
        assert preferred.replicator.node_id == "n0"
        assert moved.source.flushed == 1
        await trio.sleep(120)
        assert c.leader("g") is preferred


async def test_a_store_that_lost_its_log_joins_again_as_suspect_only(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        await put_all(leader, [b"x"])
        victim, other = (c.machines[name] for name in c.names if name != leader.replicator.node_id)
        await victim.kill()
        disk = victim.disks["g"]
        for path in disk.paths():
            if path != "hard-state":
                disk.remove(path)
        c.isolate(leader)
        await victim.start()
        await trio.sleep(4)
        # It has adopted entry 1 from the other follower, but its vote is not worth anything yet.
        assert victim.replicas["g"].store.log.formed
        assert victim.replicas["g"].replicator.status().health is Health.SUSPECT
        assert all(not r.replicator.is_ready for r in c.replicas("g"))
        c.net.heal()
        await c.ready("g")
        await c.until(lambda: victim.replicas["g"].replicator.status().health is Health.OK, 10)
        await c.settled("g")
        assert applied(victim.replicas["g"]) == [b"x"]
        await other.kill()
        await put_all(await c.ready("g"), [b"y"])


async def test_a_full_replica_still_votes(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        await put_all(leader, [b"before"])
        await c.settled("g")
        full, other = (m for m in c.machines.values() if m.name != leader.replicator.node_id)
        disk = full.disks["g"]
        disk.capacity = sum(len(disk.content(path)) for path in disk.paths())
        await put_all(leader, [bytes([number]) * 400_000 for number in range(60)])
        await c.until(lambda: full.replicas["g"].replicator.status().detail.startswith("disk full"), 10)
        # Two are left. Entries that find no room must not keep the vote of the full one from the other.
        await c.machines[leader.replicator.node_id].kill()
        await c.until(lambda: other.replicas["g"].replicator.role.role is Role.LEADER, 3)
        assert full.replicas["g"].replicator.status().detail.startswith("disk full")
        disk.capacity = 1 << 40
        new = await c.ready("g", besides=leader.replicator.node_id, seconds=10)
        await put_all(new, [b"after"])
        await c.settled("g", 10)
