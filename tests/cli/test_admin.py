"""Admin commands against a real name server and a scripted broker."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from namesrv.config import NamesrvConfig
from tests.namesrv.support import namesrv_running, register_command
from tests.support.ports import port_with_gateway
from trimq.cli.admin import cluster, consumer, consumer_group, topic
from trimq.cli.admin.session import open_session
from trimq.errors import BadName, NoRoute
from trimq.remoting.client import open_remoting_client
from trimq.remoting.server import Connection, serve_remoting
from trimq.remoting.system import AnyioNetwork, TrioNetwork
from trimq.remoting.websocket import PORT_OFFSET
from trimq.wire.body.group import GroupStatus, ReplicaStatus
from trimq.wire.body.lock import MQ
from trimq.wire.body.stats import Connection as ClientConnection
from trimq.wire.body.stats import ConsumerConnection, ConsumeStats, OffsetWrapper
from trimq.wire.body.topic_config import SubscriptionGroupConfig, SubscriptionGroupTable
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command, decode, response_to
from trimq.wire.headers.admin import CreateTopicHeader

Answers = dict[int, Callable[[Command], tuple[int, bytes]]]
Read = Callable[[], Any]


class Scripted:
    """A broker that answers from a table and remembers the topics it was told to create."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.created: list[dict[str, str]] = []

    def on_frames(self, conn: Connection, frames: Sequence[bytes]) -> None:
        for frame in frames:
            command = decode(frame)
            if command.code == RequestCode.UPDATE_AND_CREATE_TOPIC:
                self.created.append(dict(command.ext))
            answer = self.answers.get(command.code)
            code, body = answer(command) if answer else (ResponseCode.REQUEST_CODE_NOT_SUPPORTED, b"")
            conn.send(response_to(command, code, remark="" if code == 0 else f"code {code}", body=body))

    def on_closed(self, conn: Connection) -> None:
        pass


@asynccontextmanager
async def cluster_of(**brokers: Answers) -> AsyncIterator[tuple[str, dict[str, Scripted]]]:
    """A name server with one leader per broker name; yields its address and the brokers."""
    scripted = {name: Scripted(answers) for name, answers in brokers.items()}
    async with (
        namesrv_running() as namesrv,
        open_remoting_client(AnyioNetwork()) as client,
        trio.open_nursery() as nursery,
    ):
        for name, service in scripted.items():
            port: int = await nursery.start(serve_remoting, TrioNetwork(), "127.0.0.1", 0, service)
            service.addr = f"127.0.0.1:{port}"  # type: ignore[attr-defined]
            topics = ("T", "%RETRY%g", "TBW102")
            answer = await client.invoke(namesrv, register_command(f"127.0.0.1:{port}", name=name, topics=topics))
            assert answer.code == 0
        yield namesrv, scripted
        nursery.cancel_scope.cancel()


@pytest.fixture
def read(capsys: pytest.CaptureFixture[str]) -> Read:
    """What the last command printed, as JSON."""
    return lambda: json.loads(capsys.readouterr().out)


def ok(body: bytes = b"") -> Callable[[Command], tuple[int, bytes]]:
    return lambda command: (0, body)


@pytest.mark.trio
async def test_cluster_list_shows_roles_and_marks_of_our_brokers_and_ids_of_others(
    read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    status: Answers = {}
    async with cluster_of(a=status, foreign={}) as (namesrv, brokers):
        leader = brokers["a"].addr  # type: ignore[attr-defined]
        replicas = {
            "n0": ReplicaStatus(addr=leader, commit=9, dispatched=8, last=10, ready=True, role="leader", term=3),
            "n1": ReplicaStatus(addr="dead:1", role="unknown"),
        }
        body = GroupStatus(group="a", leader="n0", replicas=replicas).to_json()
        status[RequestCode.GROUP_STATUS] = ok(body)
        await cluster._run(namesrv, None, True)
        rows = read()
        assert [(row["broker"], row["id"], row["node"], row["role"], row["last"]) for row in rows] == [
            ("a", 0, "n0", "leader", 10),
            ("a", None, "n1", "unknown", 0),
            ("foreign", 0, None, None, None),
        ]
        await cluster._run(namesrv, None, False)
        table = capsys.readouterr().out
        assert "leader" in table
        assert "master" in table


@pytest.mark.trio
async def test_topic_list_and_route(read: Read) -> None:
    async with cluster_of(a={}, b={}) as (namesrv, _):
        await topic._topic_list(namesrv, None, True)
        assert read() == [
            {"topic": "%RETRY%g", "kind": "retry", "read_queues": 8, "write_queues": 8, "brokers": ["a", "b"]},
            {"topic": "T", "kind": "", "read_queues": 8, "write_queues": 8, "brokers": ["a", "b"]},
            {"topic": "TBW102", "kind": "system", "read_queues": 8, "write_queues": 8, "brokers": ["a", "b"]},
        ]
        await topic._topic_list(namesrv, "other", True)
        assert read() == []
        await topic._topic_route(namesrv, "T", True)
        assert [queues["brokerName"] for queues in read()["queueDatas"]] == ["a", "b"]
        with pytest.raises(NoRoute, match="updateTopic -t Nope"):
            await topic._topic_route(namesrv, "Nope", True)


@pytest.mark.trio
async def test_update_topic_tells_every_leader_and_reports_each(read: Read) -> None:
    header = CreateTopicHeader(topic="New", read_queue_nums=4, write_queue_nums=4, perm=6)
    failing: Answers = {RequestCode.UPDATE_AND_CREATE_TOPIC: lambda command: (14, b"")}
    async with cluster_of(a={17: ok()}, b={17: ok()}) as (namesrv, brokers):
        await topic._update_topic(namesrv, header, None, None, True)
        assert [(row["broker"], row["ok"]) for row in read()] == [("a", True), ("b", True)]
        assert [broker.created[0]["readQueueNums"] for broker in brokers.values()] == ["4", "4"]
        await topic._update_topic(namesrv, header, "C", "b", True)
        assert [row["broker"] for row in read()] == ["b"]
        with pytest.raises(NoRoute, match="known: a, b"):
            await topic._update_topic(namesrv, header, None, "c", True)
        with pytest.raises(NoRoute, match="known clusters: C"):
            await topic._update_topic(namesrv, header, "D", None, True)
        with pytest.raises(BadName):
            await topic._update_topic(
                namesrv, CreateTopicHeader(topic="a b", read_queue_nums=1, write_queue_nums=1, perm=6), None, None, True
            )
    async with cluster_of(a={17: ok()}, b=failing) as (namesrv, _):
        with pytest.raises(SystemExit):
            await topic._update_topic(namesrv, header, None, None, True)
        rows = read()
        assert [row["ok"] for row in rows] == [True, False]
        assert "code 14" in rows[1]["error"]


def group_answers(broker: str) -> Answers:
    groups = SubscriptionGroupTable(subscriptionGroupTable={"g": SubscriptionGroupConfig(groupName="g")})
    stats = ConsumeStats(
        offsetTable={
            MQ(brokerName=broker, queueId=0, topic="T"): OffsetWrapper(
                brokerOffset=10, consumerOffset=7, lastTimestamp=1
            ),
            MQ(brokerName=broker, queueId=1, topic="T"): OffsetWrapper(brokerOffset=5, consumerOffset=5),
        }
    )
    people = ConsumerConnection(connectionSet=[ClientConnection(clientId="c1", clientAddr="1:1")])

    def consume_stats(command: Command) -> tuple[int, bytes]:
        return (0, stats.to_json()) if command.ext["consumerGroup"] == "g" else (0, ConsumeStats().to_json())

    return {
        RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG: ok(groups.to_json()),
        RequestCode.GET_CONSUME_STATS: consume_stats,
        RequestCode.GET_CONSUMER_CONNECTION_LIST: ok(people.to_json()),
    }


@pytest.mark.trio
async def test_consumer_progress_and_group_list(read: Read) -> None:
    async with cluster_of(a=group_answers("a"), b=group_answers("b")) as (namesrv, _):
        await consumer._one(namesrv, "g", None, True)
        progress = read()
        assert progress["behind"] == 6
        assert [(q["broker"], q["queue"], q["behind"]) for q in progress["queues"]] == [
            ("a", 0, 3),
            ("a", 1, 0),
            ("b", 0, 3),
            ("b", 1, 0),
        ]
        await consumer._all(namesrv, True)
        summary = {"group": "g", "consumers": 1, "model": "CLUSTERING", "topics": 1, "behind": 6, "brokers": ["a", "b"]}
        summary["warnings"] = []
        assert read() == [summary]
        await consumer_group._list(namesrv, True)
        assert read() == [summary]
        with pytest.raises(NoRoute, match="not known"):
            await consumer._one(namesrv, "stranger", None, True)


@pytest.mark.trio
async def test_the_second_name_server_is_asked_when_the_first_is_down() -> None:
    async with cluster_of(a={}) as (namesrv, _), open_session(f"127.0.0.1:1;{namesrv}") as session:
        assert list((await session.cluster()).brokerAddrTable) == ["a"]


@pytest.mark.trio
async def test_a_cluster_without_a_leader_says_so() -> None:
    async with namesrv_running() as namesrv, open_session(namesrv) as session:
        with pytest.raises(NoRoute, match="no broker leads"):
            await session.leaders()


@pytest.mark.trio
async def test_a_session_goes_by_websocket_when_its_name_server_is_given_so() -> None:
    port = port_with_gateway()
    config = NamesrvConfig(listen_port=port, bind_address="127.0.0.1")
    async with namesrv_running(config), open_session(f"ws://127.0.0.1:{port + PORT_OFFSET}") as session:
        assert await session.topics() == []


@pytest.mark.trio
async def test_a_server_that_does_not_answer_is_given_up(autojump_clock: object) -> None:
    class Silent(Scripted):
        def on_frames(self, conn: Connection, frames: Sequence[bytes]) -> None:
            pass

    from tests.remoting.support import MemoryNetwork
    from trimq.cli.admin.session import Session
    from trimq.errors import Disconnected

    network = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_remoting, network, "h", 1, Silent({})))
        async with open_remoting_client(network) as client:
            with pytest.raises(Disconnected, match="did not answer within 5 s"):
                await Session(client, "h:1").ask("h:1", 106)
        nursery.cancel_scope.cancel()
