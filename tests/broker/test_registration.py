"""What name servers and their clients see of brokers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from namesrv.config import NamesrvConfig
from namesrv.server import serve_namesrv
from tests.broker.cluster import Cluster, node_ip, open_cluster, until
from tests.broker.support import World, open_local, open_user
from trimq.wire.body.route import ClusterInfo, TopicRouteData
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.headers.admin import CreateTopicHeader

pytestmark = pytest.mark.trio

NAMESRV = "10.0.8.1:9876"


@asynccontextmanager
async def name_server(world: World) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_namesrv, NamesrvConfig(), world.at("10.0.8.1")))
        yield
        nursery.cancel_scope.cancel()


async def route(world: World, topic: str) -> TopicRouteData | None:
    async with open_user(world, NAMESRV) as user:
        answer = await user.ask(RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": topic})
        return TopicRouteData.from_json(answer.body) if answer.code == ResponseCode.SUCCESS else None


async def addresses(world: World) -> dict[int, str]:
    async with open_user(world, NAMESRV) as user:
        answer = await user.ask(RequestCode.GET_BROKER_CLUSTER_INFO)
        table = ClusterInfo.from_json(answer.body).brokerAddrTable
        return table["broker-a"].brokerAddrs if "broker-a" in table else {}


async def test_a_ready_broker_is_routed_with_its_topics(autojump_clock: MockClock) -> None:
    world = World()
    async with name_server(world), open_local(world, namesrv=(NAMESRV,)) as (replica, user, _):
        await trio.sleep(0.2)
        assert await addresses(world) == {0: replica.address}
        assert await route(world, "T") is None
        await user.send("T", b"x")
        await trio.sleep(0.05)
        found = await route(world, "T")
        assert found is not None
        assert [data.brokerName for data in found.queueDatas] == ["broker-a"]


async def test_creating_a_topic_answers_when_the_name_server_knows_it(autojump_clock: MockClock) -> None:
    world = World()
    async with name_server(world), open_local(world, namesrv=(NAMESRV,)) as (_, user, _w):
        header = CreateTopicHeader(topic="T", read_queue_nums=4, write_queue_nums=4, perm=6)
        await user.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, header.to_ext())
        assert await route(world, "T") is not None
        await user.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "T"})
        assert await route(world, "T") is None


async def test_a_group_created_by_a_heartbeat_has_its_retry_topic_routed(autojump_clock: MockClock) -> None:
    world = World()
    async with name_server(world), open_local(world, namesrv=(NAMESRV,)) as (_, user, _w):
        await user.heartbeat("c1", "g", {"T": "*"})
        assert await route(world, "%RETRY%g") is not None


async def test_a_broker_without_its_name_server_serves_and_registers_later(autojump_clock: MockClock) -> None:
    world = World()
    async with open_local(world, namesrv=(NAMESRV,)) as (replica, user, _):
        began = trio.current_time()
        header = CreateTopicHeader(topic="T", read_queue_nums=4, write_queue_nums=4, perm=6)
        assert (await user.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, header.to_ext())).code == ResponseCode.SUCCESS
        assert trio.current_time() - began <= 2
        async with name_server(world):
            await trio.sleep(3)
            assert await addresses(world) == {0: replica.address}
        await trio.sleep(1)
        async with name_server(world):
            await trio.sleep(3)
            assert await route(world, "T") is not None


async def test_a_stopped_broker_says_goodbye(autojump_clock: MockClock) -> None:
    world = World()
    async with name_server(world):
        async with open_local(world, namesrv=(NAMESRV,)):
            await trio.sleep(0.2)
            assert await addresses(world)
        assert await addresses(world) == {}


async def leads(cluster: Cluster, number: int) -> bool:
    return (await addresses(cluster.world)).get(0, "").startswith(node_ip(number) + ":")


async def test_the_route_follows_the_leader_at_once(autojump_clock: MockClock) -> None:
    world = World()
    async with name_server(world), open_cluster(world=world, namesrv=(NAMESRV,)) as cluster:
        leader = await cluster.ready()
        await trio.sleep(0.2)
        found = await addresses(world)
        assert found[0] == leader.replica().address
        assert len(found) == 3
        await leader.kill()
        successor = await cluster.ready()
        await trio.sleep(0.05)
        assert await leads(cluster, successor.number)
        await leader.start()
        await until(lambda: leader.replica().store.dispatched > 1)
        await trio.sleep(1)
        assert await leads(cluster, successor.number)
        assert len(await addresses(world)) == 3
