"""A master and its slaves as whole brokers with a name server: what producers, consumers and operators see."""

from __future__ import annotations

import dataclasses

import pytest
import trio
from trio.testing import MockClock

from broker.config import BrokerConfig, Strategy
from broker.replication.raft_group import RaftReplicator
from namesrv.config import NamesrvConfig
from namesrv.server import serve_namesrv
from tests.broker.cluster import NAMESRV, Cluster, Node, in_sync, open_master_slave, slave_config, until
from tests.broker.support import World, drained, messages, open_user
from trimq.wire.body.route import ClusterInfo
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.headers.group import SetStrategyHeader
from trimq.wire.headers.offset import QueryOffsetHeader, UpdateOffsetHeader

pytestmark = pytest.mark.trio


def replicator(node: Node) -> RaftReplicator:
    found = node.replica().replicator
    assert isinstance(found, RaftReplicator)
    return found


async def registered(cluster: Cluster) -> dict[int, str]:
    async with open_user(cluster.world, NAMESRV) as user:
        answer = await user.ask(RequestCode.GET_BROKER_CLUSTER_INFO)
        return dict(ClusterInfo.from_json(answer.body).brokerAddrTable["broker-a"].brokerAddrs)


async def equal(cluster: Cluster) -> None:
    running = [node for node in cluster.nodes if node.broker is not None]
    await until(lambda: len({node.replica().store.dispatched for node in running}) == 1)


async def test_slaves_find_their_master_and_register_under_their_ids(autojump_clock: MockClock) -> None:
    async with open_master_slave(Strategy.SYNC) as cluster:
        await trio.sleep(1)
        addresses = [node.replica().address for node in cluster.nodes]
        assert await registered(cluster) == dict(enumerate(addresses))
        async with open_user(cluster.world, addresses[0]) as user:
            assert (await user.send("T", b"one")).code == ResponseCode.SUCCESS
        await equal(cluster)
        for address in addresses:
            async with open_user(cluster.world, address) as user:
                assert [m.body for m in messages(await user.pull("T", 0, 0))] == [b"one"]


@pytest.mark.parametrize(
    ("strategy", "code"), [(Strategy.SYNC, ResponseCode.SLAVE_NOT_AVAILABLE), (Strategy.ASYNC, ResponseCode.SUCCESS)]
)
async def test_what_a_producer_hears_without_slaves(
    autojump_clock: MockClock, strategy: Strategy, code: ResponseCode
) -> None:
    async with open_master_slave(strategy, slaves=1) as cluster:
        await cluster.nodes[1].kill()
        await until(lambda: len(in_sync(cluster)) == 1)
        async with open_user(cluster.world, cluster.nodes[0].replica().address) as user:
            answer = await user.send("T", b"alone")
            assert answer.code == code
            assert answer.ext["queueOffset"] == "0", "it is stored all the same"
            assert [m.body for m in messages(await user.pull("T", 0, 0, hold_ms=1000))] == [b"alone"]


async def test_a_slave_that_stands_still_costs_slave_timeout(autojump_clock: MockClock) -> None:
    async with (
        open_master_slave(Strategy.SYNC, slaves=1, slave_timeout_s=1.0) as cluster,
        open_user(cluster.world, cluster.nodes[0].replica().address) as user,
    ):
        cluster.world.network.cut("10.0.0.2", ["10.0.0.1"])
        answer = await user.send("T", b"waits")
        assert answer.code == ResponseCode.FLUSH_SLAVE_TIMEOUT


async def test_too_few_in_sync_are_refused_where_the_operator_wants_it(autojump_clock: MockClock) -> None:
    async with (
        open_master_slave(Strategy.SYNC, slaves=1, min_in_sync_replicas=2) as cluster,
        open_user(cluster.world, cluster.nodes[0].replica().address) as user,
    ):
        assert (await user.send("T", b"both")).code == ResponseCode.SUCCESS
        await cluster.nodes[1].kill()
        await until(lambda: len(in_sync(cluster)) == 1)
        refused = await user.send("T", b"alone")
        assert refused.code == ResponseCode.SYSTEM_ERROR, "as RocketMQ does"
        assert "in-sync replicas not enough: 1 (n0) of minInSyncReplicas 2" in refused.remark
        await cluster.nodes[1].start()
        await until(lambda: len(in_sync(cluster)) == 2)
        assert (await user.send("T", b"again")).code == ResponseCode.SUCCESS


async def test_slaves_serve_reads_and_keep_offsets_while_the_master_is_down_and_nothing_is_consumed_again(
    autojump_clock: MockClock,
) -> None:
    async with open_master_slave(Strategy.SYNC, slaves=1) as cluster:
        master, slave = cluster.nodes
        async with open_user(cluster.world, master.replica().address) as user:
            for number in range(20):
                await user.send("T", b"%d" % number)
            update = UpdateOffsetHeader(consumer_group="g", topic="T", queue_id=0, commit_offset=5).to_ext()
            await user.ask(RequestCode.UPDATE_CONSUMER_OFFSET, update)
        await equal(cluster)
        await master.kill()
        await trio.sleep(30)
        query = QueryOffsetHeader(consumer_group="g", topic="T", queue_id=0).to_ext()
        async with open_user(cluster.world, slave.replica().address) as user:
            refused = await user.send("T", b"x")
            assert refused.code == ResponseCode.SERVICE_NOT_AVAILABLE, "a slave takes no messages"
            told = await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, dict(query))
            assert (told.ext["offset"], told.ext["provisional"]) == ("5", "1")
            assert (await user.pull("T", 0, 5, count=1)).ext["suggestWhichBrokerId"] == "1", "nobody else is there"
            found = [m.body for m in await drained(user, "T", 0, 20, start=5)]
            assert found == [b"%d" % number for number in range(5, 20)]
            update = UpdateOffsetHeader(consumer_group="g", topic="T", queue_id=0, commit_offset=20).to_ext()
            await user.ask(RequestCode.UPDATE_CONSUMER_OFFSET, update)
        await master.start()
        await until(lambda: cluster.leader() is master)
        async with open_user(cluster.world, master.replica().address) as user:
            told = await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, dict(query))
            assert told.ext["offset"] == "20"


async def test_a_promoted_slave_is_the_master_for_everybody(autojump_clock: MockClock) -> None:
    async with open_master_slave(Strategy.SYNC) as cluster:
        old, slave, other = cluster.nodes
        async with open_user(cluster.world, old.replica().address) as user:
            for number in range(30):
                assert (await user.send("T", b"%d" % number)).code == ResponseCode.SUCCESS
        await old.kill()
        await trio.sleep(2)
        await replicator(slave).promote()
        await until(lambda: cluster.leader() is slave)
        await until(lambda: len(in_sync(cluster)) == 2)
        async with open_user(cluster.world, other.replica().address) as user:
            assert (await user.send("T", b"30")).code == ResponseCode.SUCCESS, "forwarded to the new master"
        await old.start()
        await until(lambda: len(in_sync(cluster)) == 3)
        await equal(cluster)
        await trio.sleep(1)
        addresses = await registered(cluster)
        assert addresses == {0: slave.replica().address, 1: old.replica().address, 2: other.replica().address}
        for node in cluster.nodes:
            async with open_user(cluster.world, node.replica().address) as user:
                found = [m.body for m in await drained(user, "T", 0, 31)]
                assert found == [b"%d" % number for number in range(31)]


async def test_an_order_does_not_wait_for_a_master_that_is_known_to_be_dead(autojump_clock: MockClock) -> None:
    async with open_master_slave(Strategy.SYNC) as cluster:
        old, slave, _other = cluster.nodes
        began = trio.current_time()
        await old.kill()
        await replicator(slave).promote()
        assert cluster.leader() is slave
        assert trio.current_time() - began < 0.4, "less than one election timeout"


async def test_an_old_master_whose_tail_was_given_up_is_taken_back_whole(autojump_clock: MockClock) -> None:
    async with open_master_slave(Strategy.ASYNC, slaves=1) as cluster:
        old, slave = cluster.nodes
        async with open_user(cluster.world, old.replica().address) as user:
            await user.send("T", b"both")
            await equal(cluster)
            await slave.kill()
            for number in range(10):
                assert (await user.send("T", b"only here %d" % number)).code == ResponseCode.SUCCESS
            assert len(await drained(user, "T", 0, 11)) == 11
        await old.replica().store.snapshot()
        await old.kill()
        await slave.start()
        await trio.sleep(2)
        promotion = await replicator(slave).promote(force=True)
        assert "n0" in promotion.may_lose
        await until(lambda: cluster.leader() is slave)
        async with open_user(cluster.world, slave.replica().address) as user:
            assert (await user.send("T", b"new")).ext["queueOffset"] == "1"
        cluster.world.network.cut("10.0.0.1", ["10.0.0.2"])
        await old.start()
        async with open_user(cluster.world, old.replica().address) as user:
            early = await user.pull("T", 0, 0)
            assert (early.code, early.body) == (ResponseCode.PULL_RETRY_IMMEDIATELY, b""), "it may be given up"
        cluster.world.network.heal()
        await until(lambda: len(in_sync(cluster)) == 2, 20)
        await equal(cluster)
        for node in cluster.nodes:
            async with open_user(cluster.world, node.replica().address) as user:
                assert [m.body for m in await drained(user, "T", 0, 2)] == [b"both", b"new"]


async def test_a_master_with_an_empty_disk_does_not_begin_a_second_history(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_master_slave(Strategy.SYNC, slaves=1) as cluster:
        old, slave = cluster.nodes
        async with open_user(cluster.world, old.replica().address) as user:
            assert (await user.send("T", b"kept")).code == ResponseCode.SUCCESS
        await equal(cluster)
        await old.kill()
        del cluster.world.disks["n0/broker-a"]
        await old.start()
        await trio.sleep(10)
        assert cluster.leader() is None
        assert any("n1 holds this group's data and has no master: promote it" in r.getMessage() for r in caplog.records)
        await replicator(slave).promote()
        await until(lambda: len(in_sync(cluster)) == 2, 20)
        await equal(cluster)
        async with open_user(cluster.world, old.replica().address) as user:
            assert [m.body for m in await drained(user, "T", 0, 1)] == [b"kept"]


async def test_a_second_slave_with_the_same_id_is_refused(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_master_slave(Strategy.SYNC, slaves=1) as cluster:
        cluster.changes["broker_id"] = 1
        twin = Node(cluster, 2)
        await twin.start()
        await trio.sleep(3)
        assert in_sync(cluster) == ("n0", "n1")
        assert any("every replica of a group needs a brokerId of its own" in r.getMessage() for r in caplog.records)
        await twin.stop()


async def test_a_group_moves_between_strategies_while_producers_send(autojump_clock: MockClock) -> None:
    async with open_master_slave(Strategy.ASYNC) as cluster:
        master = cluster.nodes[0]
        sent = 0
        moving = True

        async def produce() -> None:
            nonlocal sent
            async with open_user(cluster.world, master.replica().address) as user:
                while moving:
                    answer = await user.send("T", b"%d" % sent)
                    assert answer.code == ResponseCode.SUCCESS, answer
                    sent += 1
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(produce)
            for strategy in ("sync", "raft", "sync", "async"):
                await trio.sleep(0.3)
                await replicator(master).set_strategy(strategy)
            await trio.sleep(0.3)
            moving = False
        await equal(cluster)
        assert sent > 50
        for node in cluster.nodes:
            async with open_user(cluster.world, node.replica().address) as user:
                found = [m.body for m in await drained(user, "T", 0, sent)]
                assert found == [b"%d" % number for number in range(sent)]


async def test_a_master_waits_for_a_name_server_before_it_founds_a_group(autojump_clock: MockClock) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        cluster = Cluster(world, nursery, 1, {}, Strategy.ASYNC, 1)
        await cluster.nodes[0].start()
        await trio.sleep(20)
        assert cluster.leader() is None

        async def name_server(task_status: trio.TaskStatus[object]) -> None:
            await serve_namesrv(NamesrvConfig(), world.at("10.0.1.1"), task_status=task_status)

        await nursery.start(name_server)
        await until(cluster.leader)
        await cluster.nodes[0].stop()
        nursery.cancel_scope.cancel()


async def test_a_consumer_far_behind_is_sent_to_a_slave_and_back(autojump_clock: MockClock) -> None:
    # A share of the memory that the test's messages exceed: 1 percent of 1 MiB.
    world = World(memory_bytes=1 << 20)
    async with open_master_slave(Strategy.SYNC, slaves=1, world=world, slave_read=True, memory_ratio=1) as cluster:
        master, slave = cluster.nodes
        async with open_user(cluster.world, master.replica().address) as user:
            for _ in range(20):
                await user.send("T", b"x" * 1000)
            await equal(cluster)
            old = await user.pull("T", 0, 0, count=1)
            assert old.ext["suggestWhichBrokerId"] == "1"
            new = await user.pull("T", 0, 18, count=1)
            assert new.ext["suggestWhichBrokerId"] == "0"
        async with open_user(cluster.world, slave.replica().address) as user:
            assert (await user.pull("T", 0, 0, count=1)).ext["suggestWhichBrokerId"] == "1"
            assert (await user.pull("T", 0, 18, count=1)).ext["suggestWhichBrokerId"] == "0"
            assert (await user.pull("T", 0, 19, count=1)).ext["suggestWhichBrokerId"] == "0"


class Moving(Cluster):
    """One node, whose file says something else later."""

    wanted = Strategy.LOCAL

    def config(self, number: int, group: int) -> BrokerConfig:
        plain = slave_config(number, group, strategy=Strategy.ASYNC, namesrv=(), admin_allow=("10.0.9.1",))
        return dataclasses.replace(plain, strategy=self.wanted)


async def test_a_local_store_is_refused_by_the_other_strategies_in_words(autojump_clock: MockClock) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        cluster = Moving(world, nursery, 1, {}, Strategy.ASYNC, 1)
        (node,) = cluster.nodes
        await node.start()
        async with open_user(world, node.replica().address) as user:
            assert (await user.send("T", b"kept")).code == ResponseCode.SUCCESS
            header = SetStrategyHeader(group="broker-a", strategy="sync").to_ext()
            refused = await user.ask(RequestCode.SET_GROUP_STRATEGY, header)
            assert "replicationStrategy=local" in refused.remark
        await node.stop()
        cluster.wanted = Strategy.ASYNC
        with pytest.raises(BaseException) as caught:
            await node.start()
        assert "cannot be moved to async in place" in repr(caught.value)
        cluster.wanted = Strategy.LOCAL
        await node.start()
        async with open_user(world, node.replica().address) as user:
            assert [m.body for m in messages(await user.pull("T", 0, 0))] == [b"kept"]
        await node.stop()
