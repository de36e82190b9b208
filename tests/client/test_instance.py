"""Connections, hints and deadlines of the shared part, against a scripted cluster."""

from __future__ import annotations

import anyio
import pytest

from tests.client.scripted import NAMESRV, Cluster, client_of, run
from trimq.errors import Disconnected, NoRoute
from trimq.wire.codes import RequestCode
from trimq.wire.command import Command, encode


def test_a_frozen_broker_loses_its_connections() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        async with client_of(cluster) as mq:
            link = await mq.instance.links.get("a0:1")
            assert link.ours
            cluster.servers["a0:1"].frozen = True
            closed = anyio.Event()
            held = Command(code=RequestCode.PULL_MESSAGE, opaque=link.channel.next_opaque())
            link.channel.submit(encode(held), held.opaque, lambda _reply: closed.set())
            with anyio.fail_after(5.5):
                await closed.wait()
            assert "no sign of life" in link.channel.close_reason

    run("trio", body)


def test_an_idle_connection_is_left_alone() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        async with client_of(cluster) as mq:
            link = await mq.instance.links.get("a0:1")
            cluster.servers["a0:1"].frozen = True
            await anyio.sleep(20)
            assert not link.channel.closed

    run("trio", body)


def test_a_server_that_does_not_answer_hello_is_not_used() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        cluster.servers["a0:1"].frozen = True
        async with client_of(cluster) as mq:
            with pytest.raises(Disconnected, match="HELLO"):
                await mq.instance.links.get("a0:1")

    run("trio", body)


def test_who_waits_for_a_connection_that_fails_does_not_try_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine producers on a dead leader's address: one refusal, not nine in a row."""

    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        async with client_of(cluster) as mq:
            links = mq.instance.links
            tried: list[str] = []
            failed: list[str] = []

            async def channel(addr: str) -> None:
                tried.append(addr)
                await anyio.sleep(0.1)
                raise Disconnected("refused")

            async def get() -> None:
                with pytest.raises(Disconnected, match="refused"):
                    await links.get("dead:1")
                failed.append("dead:1")

            monkeypatch.setattr(links._remoting, "channel", channel)
            for round_ in (1, 2):
                async with anyio.create_task_group() as tasks:
                    for _ in range(9):
                        tasks.start_soon(get)
                assert (len(tried), len(failed)) == (round_, 9 * round_)

    run("trio", body)


def test_calls_go_on_at_another_replica_when_the_leader_is_gone() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 3}, topics={"t": 1})
        async with client_of(cluster) as mq:
            await mq.instance.routes.route("t")
            command = Command(code=RequestCode.GET_MAX_OFFSET)
            await mq.instance.call("a", command)
            cluster.kill("a0:1")
            began = anyio.current_time()
            assert (await mq.instance.call("a", command)).code == 0
            assert anyio.current_time() - began < 0.5

    run("trio", body)


def test_a_call_ends_at_the_callers_deadline_with_the_reason() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        async with client_of(cluster) as mq:
            await mq.instance.routes.route("t")
            cluster.kill("a0:1")
            with pytest.raises(Disconnected, match=r"cannot connect to a0:1"), anyio.fail_after(1):
                await mq.instance.call("a", Command(code=RequestCode.GET_MAX_OFFSET))

    run("trio", body)


def test_a_topic_that_is_just_being_created_is_waited_for() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={})
        async with client_of(cluster) as mq, anyio.create_task_group() as tasks:

            async def create() -> None:
                await anyio.sleep(0.3)
                cluster.topics["t"] = 2

            tasks.start_soon(create)
            assert len((await mq.instance.routes.route("t")).read_queues) == 2
            with pytest.raises(NoRoute, match="no broker has the topic 'u'"):
                await mq.instance.routes.route("u")

    run("trio", body)


def test_concurrent_questions_for_one_route_are_one_question() -> None:
    async def body() -> None:
        cluster = Cluster({"a": 1}, topics={"t": 1})
        async with client_of(cluster) as mq:
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(mq.instance.routes.route, "t")
            assert cluster.servers[NAMESRV].frames == 1

    run("trio", body)
