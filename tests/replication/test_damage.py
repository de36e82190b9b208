"""Rot in a replica's log: noticed, never served, never counted, mended from the peers, byte for byte."""

from __future__ import annotations

import errno

import pytest
import trio
from trio.testing import MockClock

from broker.replication.base import Health, Role, Verdict
from broker.replication.store_watch import IMPAIRED_LED_S
from broker.replication.trusting import TrustRefused
from raft.core.types import Health as CoreHealth
from tests.replication.raft_cluster import Cluster, Machine, Replica, cluster
from tests.replication.small import SEGMENT_BYTES
from tests.replication.test_raft_group import applied, put_all

pytestmark = pytest.mark.trio


def log_files(machine: Machine) -> list[str]:
    return [path for path in machine.disks["g"].paths() if path.startswith("commitlog/")]


def followers(c: Cluster, leader: Replica) -> list[Machine]:
    return [c.machines[name] for name in c.names if name != leader.replicator.node_id]


def same_logs(c: Cluster) -> bool:
    """All good prefixes are equal, byte for byte."""
    contents = []
    for machine in c.machines.values():
        end = machine.replicas["g"].store.log.last.end
        whole = b"".join(machine.disks["g"].content(path)[4096:] for path in log_files(machine))
        contents.append(whole[:end])
    return contents[0] == contents[1] == contents[2]


async def filled(c: Cluster) -> Replica:
    leader = await c.ready("g")
    for number in range(40):
        await put_all(leader, [bytes([number]) * 60_000])
    await c.settled("g")
    return leader


@pytest.mark.parametrize("where", ["sealed", "active"])
async def test_a_flipped_bit_found_at_start_is_mended_from_the_peers(autojump_clock: MockClock, where: str) -> None:
    async with cluster() as c:
        leader = await filled(c)
        victim = followers(c, leader)[0]
        path = log_files(victim)[0 if where == "sealed" else -2]
        await victim.kill()
        at = 300_000 if where == "sealed" else 100_000
        if where == "active":
            path = max(p for p in log_files(victim) if any(victim.disks["g"].content(p)[4096:]))
        victim.disks["g"].flip(path, at)
        await victim.start()
        replica = victim.replicas["g"]
        await put_all(await c.ready("g"), [b"meanwhile"])
        await c.settled("g", 20)
        assert applied(replica)[-1] == b"meanwhile"
        if replica.store.log.fault is None and not same_logs(c):
            # Below the marks' floor a start does not read bodies: the first reader finds it.
            with pytest.raises(Exception, match="checksum"):
                await read_all(replica)
            await c.until(lambda: replica.store.log.fault is None and same_logs(c), 20)
        await put_all(await c.ready("g"), [b"after"])
        await c.settled("g", 20)
        assert same_logs(c)
        assert replica.replicator.status().health is Health.OK


async def read_all(replica: Replica) -> None:
    log = replica.store.log
    index = log.first_index
    while index <= log.last.index:
        entries = await log._read_disk(index, 1 << 20)
        index = entries[-1].index + 1


async def test_rot_found_by_a_running_follower_is_mended_without_a_restart(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await filled(c)
        victim = followers(c, leader)[0]
        replica = victim.replicas["g"]
        victim.disks["g"].flip(log_files(victim)[0], 200_000)
        with pytest.raises(Exception, match="checksum"):
            await read_all(replica)
        await trio.sleep(0.001)
        await c.until(lambda: replica.store.log.fault is None, 5)
        await put_all(await c.ready("g"), [b"after"])
        await c.settled("g")
        assert same_logs(c)
        assert victim.lives == 1


async def test_a_leader_that_finds_rot_stops_leading_and_comes_back_whole(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await filled(c)
        machine = c.machines[leader.replicator.node_id]
        machine.disks["g"].flip(log_files(machine)[0], 200_000)
        with pytest.raises(Exception, match="checksum"):
            await read_all(leader)
        await trio.sleep(0.0001)
        assert not leader.replicator.is_ready
        assert leader.replicator.role.role is Role.FOLLOWER
        new = await c.ready("g")
        await put_all(new, [b"after"])
        await c.settled("g", 10)
        assert same_logs(c)


async def test_while_it_is_damaged_a_replica_counts_for_nothing(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await filled(c)
        victim, other = followers(c, leader)
        replica = victim.replicas["g"]
        await other.kill()
        c.isolate(leader)
        victim.disks["g"].flip(log_files(victim)[0], 200_000)
        with pytest.raises(Exception, match="checksum"):
            await read_all(replica)
        await trio.sleep(3)
        assert replica.replicator.status().health is Health.DAMAGED
        await other.start()
        await trio.sleep(0.2)
        # The other follower was down; it holds the whole log as well and can mend the victim.
        await c.until(lambda: replica.store.log.fault is None, 10)
        await c.ready("g", besides=leader.replicator.node_id)


async def test_a_hole_at_the_end_is_filled_with_what_is_committed(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await filled(c)
        victim = followers(c, leader)[0]
        await victim.kill()
        disk = victim.disks["g"]
        newest = max(p for p in log_files(victim) if any(disk.content(p)[4096:]))
        # The newest segment's bytes are gone from a point on, though later entries had been acknowledged.
        content = disk.content(newest)
        disk.replace(newest, content[:70_000] + b"\xaa" * 30_000 + content[100_000:])
        await victim.start()
        await c.settled("g", 20)
        await put_all(await c.ready("g"), [b"after"])
        await c.settled("g", 20)
        assert same_logs(c)
        assert victim.replicas["g"].replicator.status().health is Health.OK


async def suspect_and_behind(c: Cluster, *, noticed: bool, power_cut: bool) -> tuple[Machine, Machine, bytes]:
    """A message that the leader and one follower acknowledged; the leader is gone, the message rots at the follower.

    Returns the leader's and the follower's machine and the message. The third replica is up and never had it.
    """
    leader = await filled(c)
    victim, other = followers(c, leader)
    await other.kill()
    zeros = bytes(59_000) + b"end"
    await put_all(leader, [zeros])
    replica = victim.replicas["g"]
    c.isolate(replica)  # it has acknowledged, and does not know yet that this is committed
    entry = replica.store.log.last
    assert replica.store.log.marks.values.floor.index < entry.index
    newest = max(p for p in log_files(victim) if any(victim.disks["g"].content(p)[4096:]))
    victim.disks["g"].flip(newest, 4096 + entry.end % SEGMENT_BYTES - 5_000)
    if noticed:
        with pytest.raises(Exception, match="checksum"):
            await read_all(replica)
        await trio.sleep(0.01)
    await victim.kill(keep=0.0 if power_cut else 1.0)
    gone = c.machines[leader.replicator.node_id]
    await gone.kill()
    c.net.heal()
    await other.start()
    await victim.start()
    await trio.sleep(5)
    replica = victim.replicas["g"]
    assert replica.store.log.last.index == entry.index - 1, "recovery cut it"
    assert replica.replicator.status().health is Health.SUSPECT
    assert c.leader("g") is None, "nobody who is there can know of the acknowledged message"
    return gone, victim, zeros


@pytest.mark.parametrize(("noticed", "power_cut"), [(True, True), (True, False), (False, False)])
async def test_rot_that_looks_like_a_torn_write_elects_nobody_who_lacks_what_was_acknowledged(
    autojump_clock: MockClock, noticed: bool, power_cut: bool
) -> None:
    """Found by the simulation (seed 7406 at fcc9d47): the newest acknowledged record rots, a sector of zeros in it
    makes it look torn to the next recovery, and the replica would vote without it."""
    async with cluster() as c:
        gone, victim, message = await suspect_and_behind(c, noticed=noticed, power_cut=power_cut)
        await gone.start()
        await put_all(await c.ready("g"), [b"after"])
        await c.settled("g", 10)
        await c.until(lambda: victim.replicas["g"].replicator.status().health is Health.OK, 5)
        assert all(message in applied(each) for each in c.replicas("g"))


async def test_an_operator_lets_a_suspect_replica_vote_by_naming_the_loss(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        gone, victim, message = await suspect_and_behind(c, noticed=True, power_cut=False)
        replica = victim.replicas["g"]
        with pytest.raises(TrustRefused, match=r"holds entries up to \d+ .* may have acknowledged more.*--accept-loss"):
            await replica.replicator.trust_log(accept_loss=False)
        await trio.sleep(2)
        assert c.leader("g") is None
        lost = await replica.replicator.trust_log(accept_loss=True)
        assert victim.name in lost
        new = await c.ready("g")
        await put_all(new, [b"after"])
        assert message not in applied(new)
        assert not new.store.log.suspect
        with pytest.raises(TrustRefused, match="is ok, not suspect"):
            await replica.replicator.trust_log(accept_loss=True)
        await victim.kill()
        await victim.start()
        await c.ready("g")
        assert victim.replicas["g"].replicator.status().health is Health.OK, "the word outlives a restart"
        assert gone.lives == 1


async def test_a_suspect_replica_with_a_leader_needs_no_operator(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await filled(c)
        victim = followers(c, leader)[0]
        await victim.replicas["g"].store.log.note_suspect()
        await victim.kill()
        await victim.start()
        core = victim.replicas["g"].replicator._core
        assert core is not None
        await c.until(lambda: core.leader)
        if core.health is not CoreHealth.OK:
            with pytest.raises(TrustRefused, match="leads, and makes the log"):
                await victim.replicas["g"].replicator.trust_log(accept_loss=True)
        await c.until(lambda: victim.replicas["g"].replicator.status().health is Health.OK, 5)


async def test_a_failed_disk_stops_the_replica_from_acknowledging_and_ends_the_group_for_reopening(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        machine = c.machines[leader.replicator.node_id]
        machine.disks["g"].fail("write", "commitlog/*", error=errno.EIO)
        leader.source.put(b"x")
        await c.until(lambda: not leader.replicator.is_ready, 1)
        new = await c.ready("g", besides=leader.replicator.node_id)
        assert leader.replicator.status().health is Health.IMPAIRED
        await put_all(new, [b"y"])
        await c.until(lambda: b"x" in leader.source.outcomes, 4)
        assert leader.source.outcomes[b"x"].verdict is not Verdict.LOST or b"x" not in applied(new)
        await leader.replicator.failed.wait()
        machine.disks["g"].heal()
        await machine.kill()
        await machine.start()
        await c.settled("g", 10)


async def test_a_failed_disk_is_tried_again_soon_where_another_replica_leads(autojump_clock: MockClock) -> None:
    """Until it is back the group is a replica short: the next failure would stand it still."""
    async with cluster() as c:
        leader = await filled(c)
        victim = followers(c, leader)[0]
        victim.disks["g"].fail("sync", "commitlog/*", error=errno.EIO)
        leader.source.put(b"x")
        replica = victim.replicas["g"].replicator
        await c.until(lambda: replica.status().health is Health.IMPAIRED, 1)
        with trio.fail_after(IMPAIRED_LED_S + 0.2):
            await replica.failed.wait()


async def test_a_disk_that_fails_in_the_background_ends_the_group_for_reopening_without_any_write(
    autojump_clock: MockClock,
) -> None:
    """Found by the simulation (seed 1115): the file made ahead could not be written, and nobody looked again."""
    async with cluster() as c:
        leader = await filled(c)
        victim = followers(c, leader)[0]
        await victim.kill()
        victim.disks["g"].fail("write", "commitlog/*.new", times=1)
        await victim.start()
        with trio.fail_after(20):
            await victim.replicas["g"].replicator.failed.wait()
        await victim.kill()
        await victim.start()
        await c.settled("g", 10)
        assert victim.replicas["g"].replicator.status().health is Health.OK


async def test_a_full_disk_of_a_follower_harms_nobody_and_recovers(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await filled(c)
        victim = followers(c, leader)[0]
        disk = victim.disks["g"]
        disk.capacity = sum(len(disk.content(path)) for path in disk.paths())
        for number in range(40):
            await put_all(leader, [bytes([number]) * 60_000])
        full = victim.replicas["g"].replicator
        await c.until(lambda: full.status().health is Health.IMPAIRED, 3)
        assert "disk full" in full.status().detail
        assert c.leader("g") is leader
        disk.capacity = 1 << 40
        await c.settled("g", 20)
        assert victim.replicas["g"].replicator.status().health is Health.OK


async def test_a_leader_whose_disk_is_full_hands_over(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await filled(c)
        machine = c.machines[leader.replicator.node_id]
        disk = machine.disks["g"]
        disk.capacity = sum(len(disk.content(path)) for path in disk.paths())
        for number in range(40):
            leader.source.put(bytes([number]) * 60_000)
        new = await c.ready("g", besides=leader.replicator.node_id)
        for number in range(40):
            await put_all(new, [b"new" + bytes([number]) * 60_000])
        disk.capacity = 1 << 40
        await c.settled("g", 20)
        assert applied(leader) == applied(new)


async def test_a_leader_whose_disk_hangs_hands_over_within_two_seconds_and_comes_back(
    autojump_clock: MockClock,
) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        machine = c.machines[leader.replicator.node_id]
        machine.disks["g"].stall("write", 12.0, "commitlog/*", times=1)
        began = trio.current_time()
        leader.source.put(b"x")
        new = await c.ready("g", besides=machine.name, seconds=2)
        assert trio.current_time() - began < 2
        await put_all(new, [b"y"])  # two of three disks are enough
        assert not leader.replicator.leads
        await trio.sleep(15)
        await c.settled("g", 10)
        assert b"x" in applied(leader), "it was on two disks when leadership went"


async def test_a_slow_disk_makes_the_leader_hand_over(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        machine = c.machines[leader.replicator.node_id]
        machine.disks["g"].stall("write", 3.0, "commitlog/*", times=1)
        leader.source.put(b"x")
        new = await c.ready("g", besides=leader.replicator.node_id, seconds=4)
        await put_all(new, [b"y"])
        await c.settled("g", 10)
