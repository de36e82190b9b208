"""Replies to requests: pushed to the client that waits, wherever it is connected, and stored once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tests.broker.cluster import open_cluster, until
from tests.broker.support import START_MS, User, World, messages, open_local, open_user
from trimq.message import properties
from trimq.remoting.client import open_remoting_client
from trimq.wire.body.heartbeat import HeartbeatData, ProducerData
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import FLAG_RESPONSE, Command
from trimq.wire.headers.reply import PushReplyHeader
from trimq.wire.headers.send import SendHeader

pytestmark = pytest.mark.trio

TOPIC = "DefaultCluster_REPLY_TOPIC"


@asynccontextmanager
async def open_asker(
    world: World, address: str, *, code: int = ResponseCode.SUCCESS, host: str = "10.0.9.7"
) -> AsyncIterator[list[Command]]:
    """A client `asker` that is connected to one broker and takes replies with `code` (−1: it says nothing)."""
    pushed: list[Command] = []

    def on_request(addr: str, command: Command) -> Command | None:
        pushed.append(command)
        return None if code < 0 else Command(code=code, opaque=command.opaque, flag=FLAG_RESPONSE, remark="no")

    async with open_remoting_client(world.at(host), on_request=on_request) as client:
        beat = HeartbeatData(clientID="asker", producerDataSet=[ProducerData(groupName="askers")])
        await client.invoke(address, Command(code=RequestCode.HEART_BEAT, body=beat.to_json()))
        yield pushed


async def reply(user: User, body: bytes = b"42", *, short: bool = True, **found: str) -> Command:
    carried = {"CORRELATION_ID": "7", "REPLY_TO_CLIENT": "asker", "TTL": "3000", "MSG_TYPE": "reply", **found}
    header = SendHeader(
        producer_group="p",
        topic=TOPIC,
        queue_id=0,
        sys_flag=0,
        born_timestamp=START_MS,
        properties=properties.format({name: value for name, value in carried.items() if value}),
    )
    if short:
        return await user.ask(RequestCode.SEND_REPLY_MESSAGE_V2, header.to_short_ext(), body)
    return await user.ask(RequestCode.SEND_REPLY_MESSAGE, header.to_ext(), body)


@pytest.mark.parametrize("short", [True, False])
async def test_a_reply_is_pushed_to_the_client_that_waits_and_stored(autojump_clock: MockClock, short: bool) -> None:
    async with open_local() as (replica, user, world), open_asker(world, replica.address) as pushed:
        answer = await reply(user, b"42", short=short, UNIQ_KEY="R1")
        assert answer.code == ResponseCode.SUCCESS
        assert answer.ext["queueOffset"] == "0"
        (push,) = pushed
        assert (push.code, push.body) == (RequestCode.PUSH_REPLY_MESSAGE_TO_CLIENT, b"42")
        header = PushReplyHeader.from_ext(push.ext)
        assert (header.topic, header.store_host) == (TOPIC, replica.address)
        assert header.born_host.startswith("10.0.9.1:")
        found = properties.parse(header.properties)
        assert (found["CORRELATION_ID"], found["MSG_TYPE"]) == ("7", "reply")
        assert int(found["PUSH_REPLY_TIME"]) == header.store_timestamp >= START_MS
        (stored,) = messages(await user.pull(TOPIC, 0, 0, hold_ms=5_000))
        assert (stored.body, stored.properties["UNIQ_KEY"]) == (b"42", "R1")


async def test_what_cannot_be_pushed_is_stored_once_and_the_replier_is_told(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        for _ in range(2):
            answer = await reply(user, UNIQ_KEY="R1")
            assert answer.code == ResponseCode.SYSTEM_ERROR
            assert "channel of <asker> not found" in answer.remark
        assert [m.body for m in messages(await user.pull(TOPIC, 0, 0, hold_ms=5_000))] == [b"42"]
        nobody = await reply(user, REPLY_TO_CLIENT="")
        assert (nobody.code, "REPLY_TO_CLIENT is null" in nobody.remark) == (ResponseCode.SYSTEM_ERROR, True)


async def test_a_client_that_refuses_or_is_silent_did_not_get_its_reply(autojump_clock: MockClock) -> None:
    async with open_local(store_reply=False) as (replica, user, world):
        async with open_asker(world, replica.address, code=-1):
            began = trio.current_time()
            silent = await reply(user)
            assert (silent.code, "did not take it" in silent.remark) == (ResponseCode.SYSTEM_ERROR, True)
            assert 1.9 < trio.current_time() - began < 2.5, "before the replier's own 3 s are over"
        async with open_asker(world, replica.address, code=ResponseCode.SYSTEM_BUSY):
            refused = await reply(user)
            assert (refused.code, refused.remark.endswith("fail: no")) == (ResponseCode.SYSTEM_ERROR, True)
        async with open_asker(world, replica.address):
            assert (await reply(user)).code == ResponseCode.SUCCESS
        assert (await user.pull(TOPIC, 0, 0)).code == ResponseCode.PULL_NOT_FOUND, "nothing was to be stored"


async def test_replies_are_refused_with_rocketmqs_codes(autojump_clock: MockClock) -> None:
    async with open_local(max_message_bytes=100) as (_, user, _world):
        assert (await reply(user, b"x" * 101)).code == ResponseCode.MESSAGE_ILLEGAL
        header = SendHeader(
            producer_group="p", topic="SCHEDULE_TOPIC_XXXX", queue_id=0, sys_flag=0, born_timestamp=START_MS
        )
        answer = await user.ask(RequestCode.SEND_REPLY_MESSAGE_V2, header.to_short_ext(), b"x")
        assert answer.code == ResponseCode.NO_PERMISSION


async def test_a_request_learns_the_cluster_whose_reply_topic_is_meant(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"what?", props={"CORRELATION_ID": "7", "REPLY_TO_CLIENT": "asker"})
        await user.send("T", b"plain")
        asked, plain = messages(await user.pull("T", 0, 0, hold_ms=5_000))
        assert asked.properties["CLUSTER"] == "DefaultCluster", "Java's repliers make the topic of it"
        assert "CLUSTER" not in plain.properties


async def test_asker_and_replier_may_be_connected_to_different_replicas(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        await cluster.ready()
        one, two = cluster.followers()
        await until(lambda: one.replica().state.topics.get(TOPIC.encode()))
        async with (
            open_asker(cluster.world, one.replica().address) as pushed,
            open_user(cluster.world, two.replica().address) as replier,
        ):
            answer = await reply(replier)
            assert answer.code == ResponseCode.SUCCESS, answer.remark
            assert [push.body for push in pushed] == [b"42"]
        gone = await _eventually_unknown(cluster.world, two.replica().address)
        assert "not found" in gone.remark


async def _eventually_unknown(world: World, address: str) -> Command:
    async with open_user(world, address) as replier:
        while True:
            answer = await reply(replier)
            assert answer.code == ResponseCode.SYSTEM_ERROR
            if "not found" in answer.remark:
                return answer
            await trio.sleep(0.1)


async def test_a_reply_reaches_its_client_through_a_failover(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        one, two = cluster.followers()
        await until(lambda: one.replica().state.topics.get(TOPIC.encode()))
        async with (
            open_asker(cluster.world, one.replica().address) as pushed,
            open_user(cluster.world, two.replica().address) as replier,
        ):
            await leader.kill()
            with trio.fail_after(10):
                while (await reply(replier, UNIQ_KEY="R1")).code != ResponseCode.SUCCESS:  # noqa: ASYNC110  (as a replier does)
                    await trio.sleep(0.1)
            assert {push.body for push in pushed} == {b"42"}
            stored = messages(await replier.pull(TOPIC, 0, 0, hold_ms=5_000))
            assert [message.body for message in stored] == [b"42"]
