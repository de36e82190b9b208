"""A replica that entries cannot help gets a peer's files."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from broker.replication.base import Health
from tests.replication.raft_cluster import Cluster, Machine, Replica, cluster
from tests.replication.test_damage import followers, log_files, read_all
from tests.replication.test_raft_group import applied, put_all

pytestmark = pytest.mark.trio


async def fill(leader: Replica, count: int, *, first: int = 0) -> None:
    for number in range(first, first + count):
        await put_all(leader, [b"%d:" % number + bytes(80_000)])


async def retain(replica: Replica) -> None:
    """Drop all sealed segments but the newest, as retention would after a snapshot."""
    await replica.store.snapshot()
    sealed = replica.store.log.sealed_segments()
    await replica.store.log.drop_first_segments(len(sealed) - 1)


async def behind(c: Cluster, victim: Machine, leader: Replica) -> None:
    """Stop a follower, move on, and let everybody else forget what it lacks."""
    await victim.kill()
    await fill(leader, 60, first=100)
    await trio.sleep(0.5)
    for replica in c.replicas("g"):
        await retain(replica)


async def test_a_follower_whose_entries_are_gone_is_installed_and_catches_up(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        c.reopens = True
        leader = await c.ready("g")
        await fill(leader, 10)
        await c.settled("g")
        victim = followers(c, leader)[0]
        await behind(c, victim, leader)
        await victim.start()
        await c.until(lambda: "g" in victim.replicas and victim.replicas["g"].store.log.first_index > 1, 20)
        await c.settled("g", 20)
        replica = victim.replicas["g"]
        assert applied(replica) == applied(leader)
        assert len(applied(replica)) == 70
        assert victim.failures == ["installed from a peer; the store is opened anew"]
        assert "install/manifest" not in victim.disks["g"].paths()
        # It counts again: with the other follower gone, the leader goes on with it.
        other = next(m for m in followers(c, leader) if m is not victim)
        await other.kill()
        await put_all(await c.ready("g"), [b"after"])
        # And it knows its members after another restart.
        await victim.kill()
        await victim.start()
        await c.ready("g")
        await put_all(await c.ready("g"), [b"again"])
        assert victim.replicas["g"].replicator.replicas.voters == leader.replicator.replicas.voters


async def test_the_leader_sends_the_target_to_a_follower_first(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with cluster() as c:
        c.reopens = True
        leader = await c.ready("g")
        await fill(leader, 5)
        victim, other = followers(c, leader)
        await behind(c, victim, leader)
        await victim.start()
        await c.until(lambda: victim.failures, 20)
        await c.settled("g", 20)
        sources = [getattr(r, "source", "") for r in caplog.records if r.message == "installed from a peer"]
        assert sources == [other.name]


async def test_an_installation_survives_a_crash_in_the_middle(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        c.reopens = True
        leader = await c.ready("g")
        await fill(leader, 10)
        victim = followers(c, leader)[0]
        await behind(c, victim, leader)
        for pause in (0.05, 0.1, 0.2, 0.3, 0.4):
            await victim.start()
            await trio.sleep(pause)
            await victim.kill(keep=None)
        await victim.start()
        await c.until(lambda: "g" in victim.replicas and victim.replicas["g"].store.log.first_index > 1, 30)
        await c.settled("g", 20)
        assert applied(victim.replicas["g"]) == applied(leader)


async def test_a_missing_segment_is_beyond_mending_and_leads_to_an_installation(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        c.reopens = True
        leader = await c.ready("g")
        await fill(leader, 60)
        await c.settled("g")
        victim = followers(c, leader)[0]
        await victim.kill()
        victim.disks["g"].remove(log_files(victim)[1])
        await victim.start()
        await c.until(lambda: victim.failures, 20)
        assert any("installed from a peer" in failure for failure in victim.failures)
        await c.settled("g", 20)
        await put_all(await c.ready("g"), [b"after"])
        await c.settled("g", 20)
        assert applied(victim.replicas["g"]) == applied(leader)
        # Suspect until it had caught up with a leader, then trusted.
        await c.until(lambda: victim.replicas["g"].replicator.status().health is Health.OK, 10)


async def test_rot_in_a_segment_that_the_peers_have_removed_leads_to_an_installation(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        c.reopens = True
        leader = await c.ready("g")
        await fill(leader, 60)
        await c.settled("g")
        victim = followers(c, leader)[0]
        for replica in c.replicas("g"):
            if replica.replicator.node_id != victim.name:
                await retain(replica)
        victim.disks["g"].flip(log_files(victim)[0], 200_000)
        with pytest.raises(Exception, match="checksum"):
            await read_all(victim.replicas["g"])
        await c.until(lambda: victim.failures, 20)
        assert victim.failures == ["installed from a peer; the store is opened anew"]
        await put_all(await c.ready("g"), [b"after"])
        await c.settled("g", 20)
        assert applied(victim.replicas["g"]) == applied(await c.ready("g"))


async def test_a_source_that_goes_away_is_replaced_by_another(autojump_clock: MockClock) -> None:
    async with cluster(names=("n0", "n1", "n2", "n3", "n4")) as c:
        c.reopens = True
        leader = await c.ready("g")
        await fill(leader, 5)
        victim, first, *_ = followers(c, leader)
        await behind(c, victim, leader)
        await victim.start()
        await c.until(lambda: victim.replicas["g"].replicator._turns._mender._installer.received_bytes > 1 << 20, 20)
        await first.kill()
        await c.until(lambda: victim.failures, 40)
        await c.settled("g", 20)
        assert applied(victim.replicas["g"]) == applied(leader)


async def test_writes_go_on_while_a_replica_is_installed(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        c.reopens = True
        leader = await c.ready("g")
        await fill(leader, 5)
        victim = followers(c, leader)[0]
        await behind(c, victim, leader)
        await victim.start()
        for number in range(300):
            await put_all(leader, [b"live-%d" % number])
        await c.until(lambda: victim.failures, 20)
        await c.settled("g", 20)
        assert applied(victim.replicas["g"]) == applied(leader)
        assert applied(leader)[-1] == b"live-299"
