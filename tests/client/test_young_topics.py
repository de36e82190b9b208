"""A topic that is just being created: its queues come group by group, and no route says that more are to come."""

from __future__ import annotations

import anyio
import pytest

from tests.client.scripted import NAMESRV, Cluster, client_of, run
from trimq.client.broker_api import BrokerApi
from trimq.client.client import Client
from trimq.client.creation import create_missing
from trimq.client.routes import ROUTE_REFRESH_S


def named(mq: Client, topic: str) -> list[str]:
    route = mq.instance.routes.known(topic)
    return [group.name for group in route.groups] if route is not None else []


@pytest.mark.parametrize("absent_s", [0.0, 0.4])
def test_a_queue_that_comes_later_is_known_after_as_much_time_again(absent_s: float) -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1, "b": 1, "c": 1}, topics={} if absent_s else {"t": 4})
        cluster.without["t"] = {"b", "c"}
        async with client_of(cluster) as mq:
            mq.instance.routes.want("t")
            await anyio.sleep(absent_s)
            cluster.topics["t"] = 4
            await anyio.sleep(1.1)
            assert named(mq, "t") == ["a"]
            cluster.without["t"] = {"c"}
            await anyio.sleep(1.1 + 1)
            assert named(mq, "t") == ["a", "b"]
            await anyio.sleep(2)
            cluster.without["t"] = set()
            await anyio.sleep(2 + 1.1 + 1)
            assert named(mq, "t") == ["a", "b", "c"]

    run("trio", body)


def test_a_topic_that_stays_as_it_is_costs_few_questions() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1, "b": 2}, topics={"t": 4})
        async with client_of(cluster) as mq:
            mq.instance.routes.want("t")
            await anyio.sleep(ROUTE_REFRESH_S - 1)
            asked = cluster.servers[NAMESRV].frames
            assert asked <= 7
            cluster.groups["b"].elect("b1:1")  # another leader, the same queues
            await anyio.sleep(ROUTE_REFRESH_S - 1)
            assert cluster.servers[NAMESRV].frames - asked <= 3

    run("trio", body)


def test_who_subscribes_to_a_missing_topic_knows_it_in_all_groups_that_created_it() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1, "b": 1, "c": 1}, topics={})
        cluster.without["t"] = {"a", "b", "c"}

        async def appear() -> None:
            for group in ("b", "a", "c"):
                await anyio.sleep(0.3)
                cluster.topics["t"] = 4
                cluster.without["t"].remove(group)

        async with client_of(cluster) as mq, anyio.create_task_group() as tasks:
            mq.instance.routes.want("t")
            tasks.start_soon(appear)
            with anyio.fail_after(2):
                await create_missing(mq.instance, BrokerApi(mq.instance), "t")
            assert named(mq, "t") == ["a", "b", "c"]

    run("trio", body)
