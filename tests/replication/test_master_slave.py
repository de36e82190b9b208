"""Master and slaves over real cores, drivers and logs: joining, what counts, promotion, coming back, moving."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from broker.replication.base import Role, Shortfall, Verdict
from broker.replication.ha.move import MoveRefused
from broker.replication.ha.promotion import PromotionRefused
from tests.replication.raft_cluster import Cluster, Replica, cluster, until

pytestmark = pytest.mark.trio


def applied(replica: Replica) -> list[bytes]:
    return [payload for _index, payload in replica.store.applied]


async def put(leader: Replica, *payloads: bytes, within_s: float = 6.0) -> list[tuple[Verdict, Shortfall]]:
    for payload in payloads:
        assert leader.source.put(payload)
    await until(lambda: all(payload in leader.source.outcomes for payload in payloads), within_s)
    outcomes = [leader.source.outcomes[payload] for payload in payloads]
    return [(outcome.verdict, outcome.shortfall) for outcome in outcomes]


OK = (Verdict.OK, Shortfall.NONE)


async def full(c: Cluster, *, seconds: float = 10.0) -> Replica:
    """The master, once every running replica has a vote."""
    master = await c.ready("g", seconds=seconds)
    running = sum(machine.up for machine in c.machines.values())
    await c.until(lambda: len(master.replicator.in_sync) >= running, seconds)
    return master


async def test_slaves_join_catch_up_and_count(autojump_clock: MockClock) -> None:
    async with cluster(strategy="sync") as c:
        master = await c.ready("g")
        assert master.replicator.node_id == "n0"
        assert master.replicator.role.term % 256 == 0
        await full(c)
        assert await put(master, b"one") == [OK]
        await c.settled("g")
        for replica in c.replicas("g"):
            assert applied(replica) == [b"one"]
        assert [node for node, _ in master.replicator.replicas.voters] == ["n0", "n1", "n2"]
        slave = c.machines["n1"].replicas["g"].replicator
        assert slave.status().strategy == "sync"
        assert (slave.role.role, slave.leader.leader_id) == (Role.FOLLOWER, "n0")
        assert slave.replicas.broker_id("n1", "n0") == 1
        assert slave.replicas.broker_id("n0", "n2") == 2


async def test_sync_without_a_slave_is_stored_but_not_acknowledged(autojump_clock: MockClock) -> None:
    async with cluster(("n0", "n1"), strategy="sync") as c:
        master = await full(c)
        await c.machines["n1"].kill()
        await c.until(lambda: master.replicator.in_sync == ("n0",))
        assert await put(master, b"alone") == [(Verdict.SHORT, Shortfall.SLAVE_NOT_AVAILABLE)]
        await c.machines["n1"].start()
        await c.until(lambda: master.replicator.in_sync == ("n0", "n1"))
        assert await put(master, b"again") == [OK]


async def test_a_slave_that_hangs_costs_the_slave_timeout(autojump_clock: MockClock) -> None:
    async with cluster(("n0", "n1"), strategy="sync", slave_timeout_s=1.0) as c:
        master = await full(c)
        c.net.cut("n1", ["n0"])
        began = trio.current_time()
        assert await put(master, b"waits") == [(Verdict.SHORT, Shortfall.FLUSH_SLAVE_TIMEOUT)]
        assert 1.0 <= trio.current_time() - began < 1.2


async def test_async_waits_for_nobody(autojump_clock: MockClock) -> None:
    async with cluster(("n0", "n1"), strategy="async") as c:
        master = await full(c)
        await c.machines["n1"].kill()
        assert await put(master, b"alone") == [OK]
        await c.machines["n1"].start()
        await c.settled("g", 10)
        assert applied(c.machines["n1"].replicas["g"]) == [b"alone"]


async def test_nobody_takes_over_by_itself_and_the_master_comes_back(autojump_clock: MockClock) -> None:
    async with cluster(strategy="sync") as c:
        master = await full(c)
        assert await put(master, b"before") == [OK]
        await c.settled("g")
        epoch = master.replicator.role.term
        await c.machines["n0"].kill()
        await trio.sleep(30)
        assert c.leader("g") is None
        slave = c.machines["n1"].replicas["g"]
        assert applied(slave) == [b"before"]
        assert not slave.replicator.leader.leader_id
        await c.machines["n0"].start()
        back = await full(c)
        assert back.replicator.node_id == "n0"
        assert back.replicator.role.term == epoch + 256
        assert await put(back, b"after") == [OK]


@pytest.mark.parametrize("strategy", ["sync", "async"])
async def test_a_master_that_was_killed_while_writing_goes_on_though_its_slaves_have_more(
    autojump_clock: MockClock, strategy: str
) -> None:
    async with cluster(strategy=strategy) as c:
        c.reopens = True
        master = await full(c)
        assert await put(master, b"before") == [OK]
        stall = c.machines["n0"].disks["g"].stall("write", 60.0)
        assert master.source.put(b"nobody was told")
        slaves = [c.machines[node].replicas["g"] for node in ("n1", "n2")]
        await c.until(lambda: all(slave.store.log.last.index > master.store.log.last.index for slave in slaves))
        await c.machines["n0"].kill()
        assert stall.times
        c.machines["n0"].disks["g"].faults.clear()
        await c.machines["n0"].start()
        back = await full(c)
        assert back.replicator.node_id == "n0"
        assert await put(back, b"after") == [OK]
        await c.settled("g")
        for replica in c.replicas("g"):
            assert applied(replica) == [b"before", b"after"]


async def test_a_promoted_slave_has_all_that_was_acknowledged_and_the_old_master_follows_it(
    autojump_clock: MockClock,
) -> None:
    async with cluster(strategy="sync") as c:
        c.reopens = True
        master = await full(c)
        sent = [b"%d" % number for number in range(200)]
        assert await put(master, *sent) == [OK] * 200
        c.net.cut("n0", ["n1", "n2"])
        assert master.source.put(b"unconfirmed")
        await trio.sleep(0.2)
        assert master.source.outcomes.get(b"unconfirmed") is None
        await c.machines["n0"].kill()
        c.net.heal()
        slave = c.machines["n1"].replicas["g"].replicator
        done = await slave.promote()
        assert done.granted == ("n1", "n2")
        assert not done.may_lose
        new = await c.ready("g")
        assert new.replicator.node_id == "n1"
        assert new.replicator.role.term % 256 == 1
        assert await put(new, b"new") == [OK]
        await c.machines["n0"].start()
        await full(c)
        await c.settled("g")
        for replica in c.replicas("g"):
            assert applied(replica) == [*sent, b"new"]
        assert not c.machines["n0"].failures


async def test_a_promotion_says_what_is_missing(autojump_clock: MockClock) -> None:
    async with cluster(strategy="sync") as c:
        await full(c)
        await c.machines["n0"].kill()
        await c.machines["n2"].kill()
        await trio.sleep(1)
        slave = c.machines["n1"].replicas["g"].replicator
        with pytest.raises(PromotionRefused, match=r"1 of 2 grants \(1 missing, sync\); no answer from n0, n2"):
            await slave.promote()
        forced = await slave.promote(force=True)
        assert "1 of the 2 grants" in forced.may_lose
        await c.ready("g")


async def test_a_living_master_is_not_voted_down(autojump_clock: MockClock) -> None:
    async with cluster(strategy="sync") as c:
        master = await full(c)
        with pytest.raises(PromotionRefused, match="refused: it hears a master"):
            await c.machines["n1"].replicas["g"].replicator.promote()
        assert c.leader("g") is master or (await full(c)).replicator.node_id == "n0"


async def test_a_living_master_hands_over_without_loss(autojump_clock: MockClock) -> None:
    async with cluster(strategy="async") as c:
        master = await full(c)
        assert await put(master, b"before") == [OK]
        await master.replicator.transfer("n2")
        new = await c.ready("g", besides="n0")
        assert new.replicator.node_id == "n2"
        await full(c)
        assert await put(new, b"after") == [OK]
        await c.settled("g")
        assert {tuple(applied(r)) for r in c.replicas("g")} == {(b"before", b"after")}


async def test_two_masters_cannot_both_confirm(autojump_clock: MockClock) -> None:
    async with cluster(strategy="sync") as c:
        c.reopens = True
        old = await full(c)
        c.net.cut("n0", ["n1", "n2"])
        await trio.sleep(1)
        await c.machines["n1"].replicas["g"].replicator.promote()
        await c.until(lambda: c.machines["n1"].replicas["g"].replicator.is_ready)
        new = c.machines["n1"].replicas["g"]
        assert old.replicator.is_ready
        assert [verdict for verdict, _ in await put(old, b"old")] == [Verdict.SHORT]
        assert await put(new, b"new") == [OK]
        c.net.heal()
        await c.until(lambda: len(new.replicator.in_sync) == 3, 15)
        await c.settled("g", 10)
        for replica in c.replicas("g"):
            assert b"new" in applied(replica)
            assert b"old" not in applied(replica)


async def test_a_forced_promotion_takes_the_old_masters_store_back(autojump_clock: MockClock) -> None:
    async with cluster(("n0", "n1"), strategy="async") as c:
        c.reopens = True
        master = await full(c)
        assert await put(master, b"both") == [OK]
        await c.settled("g")
        await c.machines["n1"].kill()
        assert await put(master, *(b"%d" % number for number in range(50))) == [OK] * 50
        await master.store.snapshot()
        await c.machines["n0"].kill()
        await c.machines["n1"].start()
        await trio.sleep(1)
        slave = c.machines["n1"].replicas["g"].replicator
        with pytest.raises(PromotionRefused, match="1 of 2 grants"):
            await slave.promote()
        await slave.promote(force=True)
        new = await c.ready("g")
        assert await put(new, b"new") == [OK]
        await c.machines["n0"].start()
        await c.until(lambda: len(new.replicator.in_sync) == 2, 15)
        await c.settled("g", 10)
        for replica in c.replicas("g"):
            assert applied(replica) == [b"both", b"new"]
        assert any("taken back to entry" in failure for failure in c.machines["n0"].failures)


async def test_a_group_moves_between_strategies_under_load(autojump_clock: MockClock) -> None:
    async with cluster(strategy="async") as c:
        leader = await full(c)
        sent = []
        for strategy in ("sync", "raft", "sync", "async", "raft", "async", "sync"):
            before = [b"%s before %d" % (strategy.encode(), number) for number in range(20)]
            for payload in before:
                assert leader.source.put(payload)
            await leader.replicator.set_strategy(strategy)
            after = [b"%s after %d" % (strategy.encode(), number) for number in range(20)]
            assert await put(leader, *after) == [OK] * 20
            assert all(leader.source.outcomes[payload].ok for payload in before)
            sent += before + after
            await c.settled("g")
            assert {r.replicator.strategy for r in c.replicas("g")} == {strategy}
        with pytest.raises(MoveRefused, match="under sync already"):
            await leader.replicator.set_strategy("sync")
        for replica in c.replicas("g"):
            assert applied(replica) == sent


async def test_under_raft_a_moved_group_elects_by_itself_and_back_under_sync_it_does_not(
    autojump_clock: MockClock,
) -> None:
    async with cluster(strategy="sync") as c:
        master = await full(c)
        await master.replicator.set_strategy("raft")
        await c.settled("g")
        await c.machines["n0"].kill()
        leader = await c.ready("g", besides="n0")
        assert await put(leader, b"elected") == [OK]
        await c.machines["n0"].start()
        await c.settled("g", 10)
        await leader.replicator.set_strategy("sync")
        await c.settled("g", 10)
        await c.machines[leader.replicator.node_id].kill()
        await trio.sleep(10)
        assert c.leader("g") is None


async def test_the_doubt_that_a_power_cut_left_outlives_a_restart_of_the_process(autojump_clock: MockClock) -> None:
    """What the first start after the cut does not believe, the second one must not either."""
    async with cluster(("n0", "n1"), strategy="sync", flush_sync=False) as c:
        c.reopens = True
        master = await full(c)
        sent = [b"%d" % number for number in range(100)]
        assert await put(master, *sent) == [OK] * 100
        await c.machines["n1"].kill()
        await c.machines["n0"].kill(keep=0.0)
        for _ in range(2):
            await c.machines["n0"].start()
            await trio.sleep(5)
            assert c.leader("g") is None, "the slave may hold what this log has lost"
            await c.machines["n0"].kill()
        await c.machines["n1"].start()
        await c.machines["n0"].start()
        await trio.sleep(5)
        assert c.leader("g") is None
        await c.machines["n1"].replicas["g"].replicator.promote()
        new = await full(c)
        assert await put(new, b"after") == [OK]
        await c.settled("g", 10)
        for replica in c.replicas("g"):
            assert applied(replica) == [*sent, b"after"]
        await c.machines["n0"].kill()
        await c.machines["n0"].start()
        assert await put(await full(c), b"more") == [OK]
        assert c.machines["n0"].replicas["g"].replicator._turns.trust.whole, (
            "the new master has shown what must be there"
        )


async def test_a_power_cut_of_a_master_that_does_not_flush_loses_nothing_a_slave_holds(
    autojump_clock: MockClock,
) -> None:
    async with cluster(("n0", "n1"), strategy="sync", flush_sync=False) as c:
        c.reopens = True
        master = await full(c)
        sent = [b"%d" % number for number in range(100)]
        assert await put(master, *sent) == [OK] * 100
        await c.machines["n0"].kill(keep=0.0)
        await c.machines["n0"].start()
        await trio.sleep(5)
        if c.leader("g") is None:  # the slave has more than the old master: it is the one to promote
            await c.machines["n1"].replicas["g"].replicator.promote()
        await full(c)
        await c.settled("g", 10)
        for replica in c.replicas("g"):
            assert applied(replica) == sent
