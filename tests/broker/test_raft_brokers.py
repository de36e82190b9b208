"""Three brokers with replicas of one Raft group: forwarding, parking, failover, what clients see of them."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from broker.processor.leaderless import Leaderless
from tests.broker.cluster import open_cluster, until
from tests.broker.support import drained, messages, open_user
from trimq.message.ids import host_text
from trimq.wire.body.consumer_list import ConsumerIdList
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.headers.client import ConsumerListHeader
from trimq.wire.headers.offset import GetMaxOffsetHeader, QueryOffsetHeader, UpdateOffsetHeader
from trimq.wire.headers.query import QueryMessageHeader, ViewMessageHeader

pytestmark = pytest.mark.trio


async def test_a_send_to_a_follower_is_forwarded_and_every_replica_serves_it(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        await cluster.ready()
        follower = cluster.followers()[0]
        async with open_user(cluster.world, follower.replica().address) as user:
            sent = await user.send("T", b"through the follower", props={"UNIQ_KEY": "F1"})
            assert sent.code == ResponseCode.SUCCESS
            await until(lambda: len({node.replica().store.dispatched for node in cluster.nodes}) == 1)
            for node in cluster.nodes:
                async with open_user(cluster.world, node.replica().address) as other:
                    (message,) = messages(await other.pull("T", 0, 0, hold_ms=5_000))
                    assert message.body == b"through the follower"
                    assert host_text(message.born_host).startswith("10.0.9.1:"), "the client's, not the follower's"


async def test_a_follower_never_corrects_an_offset(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        await cluster.ready()
        follower = cluster.followers()[0]
        async with open_user(cluster.world, follower.replica().address) as user:
            await user.send("T", b"x")
            await until(lambda: follower.replica().state.topics.get(b"T"))
            answer = await user.pull("T", 0, 77)
            assert answer.code == ResponseCode.PULL_RETRY_IMMEDIATELY
            assert (answer.ext["nextBeginOffset"], answer.ext["suggestWhichBrokerId"]) == ("77", "0")


async def test_a_leader_who_may_be_deposed_corrects_no_offset(autojump_clock: MockClock) -> None:
    """Found by the simulation (seed 50328): a leader that was frozen sent a consumer back to what it knew itself."""
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        async with open_user(cluster.world, leader.replica().address) as user:
            await user.send("T", b"x")
            moved = await user.pull("T", 0, 77)
            assert (moved.code, moved.ext["nextBeginOffset"]) == (ResponseCode.PULL_OFFSET_MOVED, "1")
            for node in cluster.followers():
                await node.kill()
            assert leader.replica().replicator.is_ready, "it has not noticed yet"
            answer = await user.pull("T", 0, 77)
            assert (answer.code, answer.ext["nextBeginOffset"]) == (ResponseCode.PULL_RETRY_IMMEDIATELY, "77")


async def test_offsets_asked_of_a_follower_come_from_the_leader(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        await cluster.ready()
        follower = cluster.followers()[0]
        async with open_user(cluster.world, follower.replica().address) as user:
            await user.send("T", b"x")
            update = UpdateOffsetHeader(consumer_group="g", topic="T", queue_id=0, commit_offset=1).to_ext()
            assert (await user.ask(RequestCode.UPDATE_CONSUMER_OFFSET, update)).code == ResponseCode.SUCCESS
            query = QueryOffsetHeader(consumer_group="g", topic="T", queue_id=0).to_ext()
            answer = await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, query)
            assert answer.ext["offset"] == "1"
            end = await user.ask(RequestCode.GET_MAX_OFFSET, GetMaxOffsetHeader(topic="T", queue_id=0).to_ext())
            assert end.ext["offset"] == "1"


async def test_a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        async with open_user(cluster.world, leader.replica().address) as user:
            for number in range(50):
                assert (await user.send("T", b"%d" % number)).code == ResponseCode.SUCCESS
        await leader.kill()
        began = trio.current_time()
        successor = await cluster.ready()
        assert successor is not leader
        assert trio.current_time() - began < 1.5
        async with open_user(cluster.world, successor.replica().address) as user:
            sent = await user.send("T", b"50")
            assert sent.ext["queueOffset"] == "50"
            found = [m.body for m in await drained(user, "T", 0, 51)]
            assert found == [b"%d" % number for number in range(51)]
        await leader.start()
        await until(lambda: leader.replica().store.dispatched == successor.replica().store.dispatched)
        async with open_user(cluster.world, leader.replica().address) as user:
            assert [m.body for m in await drained(user, "T", 0, 51)] == found


async def test_a_message_that_is_looked_up_names_the_leader_of_now(autojump_clock: MockClock) -> None:
    """mqadmin looks for the store host among the masters, and asks what it asks next there."""
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        stored_at = leader.replica().address
        async with open_user(cluster.world, stored_at) as user:
            assert (await user.send("T", b"0", props={"UNIQ_KEY": "U0"})).code == ResponseCode.SUCCESS
        await leader.kill()
        successor = await cluster.ready()
        follower = cluster.followers()[0]
        await until(lambda: follower.replica().store.dispatched == successor.replica().store.dispatched)
        by_key = QueryMessageHeader(
            topic="T", key="U0", max_num=1, begin_timestamp=0, end_timestamp=1 << 62, unique_key=True
        )
        for node in (successor, follower):
            async with open_user(cluster.world, node.replica().address) as user:
                (message,) = messages(await user.ask(RequestCode.QUERY_MESSAGE, by_key.to_ext()))
                by_place = ViewMessageHeader(offset=message.position).to_ext()
                (same,) = messages(await user.ask(RequestCode.VIEW_MESSAGE_BY_ID, by_place))
                assert message.store_address == same.store_address == successor.replica().address
                (pulled,) = messages(await user.pull("T", 0, 0))
                assert pulled.store_address == stored_at, "as it lies in the log"


async def test_a_send_during_an_election_is_parked_and_then_stored(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        follower = cluster.followers()[0]
        async with open_user(cluster.world, follower.replica().address) as user:
            assert (await user.send("T", b"0")).code == ResponseCode.SUCCESS
            await leader.kill()
            answer = await user.send("T", b"1")
            assert answer.code == ResponseCode.SUCCESS, answer
            assert answer.ext["queueOffset"] == "1"


async def test_without_a_majority_writes_are_refused_and_reads_served(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        async with open_user(cluster.world, leader.replica().address) as user:
            await user.send("T", b"0")
            update = UpdateOffsetHeader(consumer_group="g", topic="T", queue_id=0, commit_offset=1).to_ext()
            await user.ask(RequestCode.UPDATE_CONSUMER_OFFSET, update)
        await until(lambda: len({node.replica().store.dispatched for node in cluster.nodes}) == 1)
        survivor, second = cluster.followers()
        await second.kill()
        await leader.kill()
        await trio.sleep(2)
        async with open_user(cluster.world, survivor.replica().address) as user:
            began = trio.current_time()
            refused = await user.send("T", b"1")
            assert refused.code == ResponseCode.SERVICE_NOT_AVAILABLE
            assert 1.0 <= trio.current_time() - began <= 2.0
            assert [m.body for m in messages(await user.pull("T", 0, 0))] == [b"0"]
            query = QueryOffsetHeader(consumer_group="g", topic="T", queue_id=0).to_ext()
            provisional = await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, query)
            assert (provisional.ext["offset"], provisional.ext["provisional"]) == ("1", "1")
        await second.start()
        await leader.start()
        await cluster.ready()
        async with open_user(cluster.world, survivor.replica().address) as user:
            assert (await user.send("T", b"1")).code == ResponseCode.SUCCESS


async def test_consumer_lists_stay_whole_through_a_failover(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        async with (
            open_user(cluster.world, leader.replica().address) as one,
            open_user(cluster.world, leader.replica().address) as two,
        ):
            await one.heartbeat("c1", "g", {"T": "*"})
            await two.heartbeat("c2", "g", {"T": "*"})
            await trio.sleep(3)
        await leader.kill()
        successor = await cluster.ready()
        other = cluster.followers()[0]
        async with (
            open_user(cluster.world, successor.replica().address) as user,
            open_user(cluster.world, other.replica().address) as second,
        ):
            await user.heartbeat("c1", "g", {"T": "*"})
            await second.heartbeat("c1", "g", {"T": "*"})
            ask = ConsumerListHeader(consumer_group="g").to_ext()

            async def listed() -> list[str]:
                answer = await user.ask(RequestCode.GET_CONSUMER_LIST_BY_GROUP, dict(ask))
                return ConsumerIdList.from_json(answer.body).consumerIdList

            assert await listed() == ["c1", "c2"]
            # Half a minute later leadership moves to the replica that is preferred among the living: once more 35 s.
            await trio.sleep(80)
            assert await listed() == ["c1"]


async def test_a_graceful_stop_hands_leadership_over(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        began = trio.current_time()
        await leader.stop()
        successor = await cluster.ready()
        assert successor is not leader
        assert trio.current_time() - began < 1.0


async def test_a_delayed_message_survives_a_failover_and_arrives_once(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        async with open_user(cluster.world, leader.replica().address) as user:
            for number in range(5):
                await user.send("T", b"%d" % number, props={"DELAY": "2"})
                await trio.sleep(1)
        await leader.kill()
        successor = await cluster.ready()
        async with open_user(cluster.world, successor.replica().address) as user:
            await trio.sleep(15)
            found = [m.body for m in await drained(user, "T", 0, 5)]
            assert found == [b"%d" % number for number in range(5)]
            assert (await user.pull("T", 0, 5)).code == ResponseCode.PULL_NOT_FOUND


async def test_three_groups_share_three_nodes(autojump_clock: MockClock) -> None:
    async with open_cluster(groups=3) as cluster:
        for group in range(3):
            leader = await cluster.ready(group)
            async with open_user(cluster.world, leader.replica(group).address) as user:
                assert (await user.send("T", b"x")).code == ResponseCode.SUCCESS


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_what_one_member_was_told_while_nobody_led_is_in_the_leaders_first_answer(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    # Nobody hands over on his own account: it is the new leader who asks, before it answers.
    monkeypatch.setattr(Leaderless, "role_changed", lambda self, event: None)
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        async with open_user(cluster.world, leader.replica().address) as user:
            for _ in range(5):
                await user.send("T", b"x")
            update = UpdateOffsetHeader(consumer_group="g", topic="T", queue_id=0, commit_offset=1).to_ext()
            await user.ask(RequestCode.UPDATE_CONSUMER_OFFSET, update)
        await until(lambda: len({node.replica().store.dispatched for node in cluster.nodes}) == 1)
        alone = cluster.nodes[number]
        others = [node for node in cluster.nodes if node is not alone]
        for node in others:
            await node.kill()
        await until(lambda: not alone.replica().replicator.leader.leader_id)
        query = QueryOffsetHeader(consumer_group="g", topic="T", queue_id=0).to_ext()
        async with open_user(cluster.world, alone.replica().address) as user:
            update = UpdateOffsetHeader(consumer_group="g", topic="T", queue_id=0, commit_offset=4).to_ext()
            assert (await user.ask(RequestCode.UPDATE_CONSUMER_OFFSET, update)).code == 14, "nobody is told: stored"
            provisional = await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, query)
            assert (provisional.ext["offset"], provisional.ext["provisional"]) == ("4", "1")
        async with open_user(cluster.world, alone.replica().address) as user:
            for node in others:
                await node.start()
            while True:  # the question waits for a leader, so this is the first thing that the leader is asked
                answer = await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, dict(query))
                if answer.code == 0 and not answer.ext.get("provisional"):
                    break
            assert answer.ext["offset"] == "4"
