"""What operators ask: statistics, insides, connected clients, changes of configuration, and who may ask for them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from broker.replica import Replica
from broker.service.client_calls import ClientCalls, ClientSilent
from broker.service.statistics import SAMPLE_S
from tests.broker.support import START_MS, User, World, messages, open_local, open_user
from trimq.message.ids import host_bytes, offset_message_id
from trimq.remoting.client import open_remoting_client
from trimq.wire.codes import RequestCode as Code
from trimq.wire.codes import ResponseCode
from trimq.wire.command import FLAG_RESPONSE, Command, decode
from trimq.wire.headers.offset import UpdateOffsetHeader

pytestmark = pytest.mark.trio
HOST = "10.0.0.1"
"""The broker's own."""


@asynccontextmanager
async def at_the_machine(*allowed: str) -> AsyncIterator[tuple[Replica, User, User, World]]:
    """A broker with two users: one on another host, one on the broker's own."""
    async with (
        open_local(admin_allow=allowed) as (replica, far, world),
        open_user(world, replica.address, host=HOST) as near,
    ):
        yield replica, far, near, world


def body(answer: Command) -> Any:
    """The answer's body. Any: it is what the tools parse."""
    assert answer.code == ResponseCode.SUCCESS, (answer.code, answer.remark)
    return json.loads(bytes(answer.body))


async def consumed(user: User, topic: str, queue: int, offset: int, group: str = "g") -> None:
    header = UpdateOffsetHeader(consumer_group=group, topic=topic, queue_id=queue, commit_offset=offset)
    assert (await user.ask(Code.UPDATE_CONSUMER_OFFSET, header.to_ext())).code == 0


# --- who may


@pytest.mark.parametrize(
    ("code", "ext"),
    [
        (Code.DELETE_TOPIC_IN_BROKER, {"topic": "T"}),
        (Code.DELETE_SUBSCRIPTIONGROUP, {"groupName": "g"}),
        (Code.UPDATE_BROKER_CONFIG, {}),
        (Code.DELETE_EXPIRED_COMMITLOG, {}),
        (Code.CLEAN_UNUSED_TOPIC, {}),
        (Code.CLEAN_EXPIRED_CONSUMEQUEUE, {}),
    ],
)
async def test_what_destroys_or_reconfigures_is_served_to_this_machine_only(
    code: Code, ext: dict[str, str], autojump_clock: MockClock
) -> None:
    async with at_the_machine() as (_, far, near, _world):
        await near.send("T", b"kept")
        refused = await far.ask(code, ext, b"fileReservedTime=48\n")
        assert refused.code == ResponseCode.NO_PERMISSION
        assert "10.0.9.1" in refused.remark
        assert "adminAllowFrom" in refused.remark
        assert (await near.ask(code, ext, b"fileReservedTime=48\n")).code == ResponseCode.SUCCESS


async def test_a_named_network_may_administer_too(autojump_clock: MockClock) -> None:
    async with at_the_machine("10.0.9.0/24") as (_, far, _near, _world):
        await far.send("T", b"x")
        assert (await far.ask(Code.DELETE_TOPIC_IN_BROKER, {"topic": "T"})).code == ResponseCode.SUCCESS
        assert (await far.ask(Code.GET_TOPIC_CONFIG, {"topic": "T"})).code == ResponseCode.TOPIC_NOT_EXIST


# --- configuration


async def test_allowed_keys_change_at_once_and_survive_a_restart(autojump_clock: MockClock) -> None:
    world = World()
    async with open_local(world) as (replica, _far, _), open_user(world, replica.address, host=HOST) as near:
        answer = await near.ask(Code.UPDATE_BROKER_CONFIG, {}, b"autoCreateTopicEnable=false\nfileReservedTime=48\n")
        assert answer.code == ResponseCode.SUCCESS
        assert (await near.send("New", b"x")).code == ResponseCode.TOPIC_NOT_EXIST
        shown = (await near.ask(Code.GET_BROKER_CONFIG)).body.decode()
        assert "fileReservedTime=48\n" in shown
        assert "autoCreateTopicEnable=false\n" in shown
        assert replica.store.config.retention.reserved_ms == 48 * 3_600_000
    async with open_local(world) as (replica, user, _):
        assert (await user.send("New", b"x")).code == ResponseCode.TOPIC_NOT_EXIST
        assert replica.store.config.retention.reserved_ms == 48 * 3_600_000


@pytest.mark.parametrize(
    "text", ["storePathRootDir=/etc", "namesrvAddr=10.0.0.9:1", "fileReservedTime=0", "fileReservedTime=x", ""]
)
async def test_other_keys_and_bad_values_change_nothing(text: str, autojump_clock: MockClock) -> None:
    async with at_the_machine() as (_, _far, near, _world):
        before = (await near.ask(Code.GET_BROKER_CONFIG)).body
        answer = await near.ask(Code.UPDATE_BROKER_CONFIG, {}, f"autoCreateTopicEnable=false\n{text}\n".encode())
        if text:
            assert answer.code == ResponseCode.NO_PERMISSION
            assert text.partition("=")[0] in answer.remark
            assert (await near.ask(Code.GET_BROKER_CONFIG)).body == before
        assert (await near.ask(Code.UPDATE_BROKER_CONFIG, {}, b"")).code == ResponseCode.SYSTEM_ERROR


async def test_the_configuration_has_what_export_tools_read_without_asking(autojump_clock: MockClock) -> None:
    async with open_local(delay_levels_ms=(1_000, 90_000, 600_000, 7_200_000)) as (_, user, _world):
        shown = dict(line.split("=", 1) for line in (await user.ask(Code.GET_BROKER_CONFIG)).body.decode().splitlines())
        assert shown["messageDelayLevel"] == "1s 90s 10m 2h"
        assert {"filterServerNums", "maxMessageSize", "slaveReadEnable", "traceOn", "useTLS"} <= shown.keys()


# --- many at once


async def test_topics_and_groups_are_created_in_lists_all_or_none(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        topics = [
            {
                "topicName": name,
                "readQueueNums": 3,
                "writeQueueNums": 2,
                "perm": 6,
                "attributes": {"+message.type": "FIFO"},
            }
            for name in ("A", "B")
        ]
        made = await user.ask(Code.UPDATE_AND_CREATE_TOPIC_LIST, {}, json.dumps({"topicConfigList": topics}).encode())
        assert made.code == ResponseCode.SUCCESS
        shown = body(await user.ask(Code.GET_TOPIC_CONFIG, {"topic": "B"}))
        assert (shown["readQueueNums"], shown["writeQueueNums"]) == (3, 2)
        assert shown["attributes"] == {"message.type": "FIFO"}
        topics = [{"topicName": "C"}, {"topicName": "not a name"}]
        refused = await user.ask(
            Code.UPDATE_AND_CREATE_TOPIC_LIST, {}, json.dumps({"topicConfigList": topics}).encode()
        )
        assert refused.code == ResponseCode.INVALID_PARAMETER
        assert (await user.ask(Code.GET_TOPIC_CONFIG, {"topic": "C"})).code == ResponseCode.TOPIC_NOT_EXIST

        groups = {"groupConfigList": [{"groupName": "one", "retryMaxTimes": 3}, {"groupName": "two"}]}
        made = await user.ask(Code.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, {}, json.dumps(groups).encode())
        assert made.code == ResponseCode.SUCCESS
        assert body(await user.ask(Code.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": "one"}))["retryMaxTimes"] == 3
        groups = {"groupConfigList": [{"groupName": "three"}, {"groupName": "no good"}]}
        refused = await user.ask(Code.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, {}, json.dumps(groups).encode())
        assert refused.code == ResponseCode.INVALID_PARAMETER
        assert (await user.ask(Code.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": "three"})).code == 26


# --- how groups stand


async def test_progress_of_every_group_time_spans_and_copies(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        for number in range(4):
            await user.send("T", b"%d" % number)
            await trio.sleep(1)
        await user.heartbeat("c1", "g", {"T": "A || B"})
        await user.heartbeat("c2", "h", {"T": "*"})
        await consumed(user, "T", 0, 3)
        found = await user.ask(Code.GET_BROKER_CONSUME_STATS, {"isOrder": "false"})
        (row,) = body(found)["consumeStatsList"]
        (stats,) = row["g"]
        rows = {json.loads(key)["queueId"]: value for key, value in stats["offsetTable"].items()}
        assert (rows[0]["brokerOffset"], rows[0]["consumerOffset"]) == (4, 3)
        assert body(found)["totalDiff"] == 1

        spans = body(await user.ask(Code.QUERY_CONSUME_TIME_SPAN, {"topic": "T", "group": "g"}))["consumeTimeSpanSet"]
        first = next(span for span in spans if span["messageQueue"]["queueId"] == 0)
        assert 0 <= first["minTimeStamp"] - START_MS < 3_000
        assert 3_000 <= first["maxTimeStamp"] - first["minTimeStamp"] < 4_500
        assert first["consumeTimeStamp"] <= first["maxTimeStamp"]
        assert first["delayTime"] >= 1_000
        assert body(await user.ask(Code.QUERY_TOPICS_BY_CONSUMER, {"group": "g"}))["topicList"] == ["T"]
        held = body(await user.ask(Code.QUERY_SUBSCRIPTION_BY_CONSUMER, {"group": "g", "topic": "T"}))
        assert held["subscriptionData"]["tagsSet"] == ["A", "B"]

        copied = await user.ask(Code.CLONE_GROUP_OFFSET, {"srcGroup": "g", "destGroup": "h", "topic": "T"})
        assert copied.code == ResponseCode.SUCCESS
        offset = await user.ask(Code.QUERY_CONSUMER_OFFSET, {"consumerGroup": "h", "topic": "T", "queueId": "0"})
        assert offset.ext["offset"] == "3"
        await user.pull("T", 0, 3, group="h")  # it is there now: its commits count again
        await consumed(user, "T", 0, 4, "h")
        wanted = {"topic": "T", "compareGroup": "h", "filterGroups": "g"}
        assert body(await user.ask(Code.QUERY_CORRECTION_OFFSET, wanted))["correctionOffsets"] == {"0": 3}
        wanted = {"topic": "T", "compareGroup": "g", "filterGroups": "h"}
        assert body(await user.ask(Code.QUERY_CORRECTION_OFFSET, wanted))["correctionOffsets"] == {"0": 2**63 - 1}


# --- insides


async def test_index_units_with_what_a_groups_filter_takes(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        for tag in ("A", "B", "A"):
            await user.send("T", b"x", props={"TAGS": tag})
        await user.heartbeat("c1", "g", {"T": "A"})
        wanted = {"topic": "T", "queueId": "0", "index": "1", "count": "8", "consumerGroup": "g"}
        answer = await user.ask(Code.QUERY_CONSUME_QUEUE, wanted)
        found = body(answer)
        assert (found["minQueueIndex"], found["maxQueueIndex"]) == (0, 3)
        assert [unit["eval"] for unit in found["queueData"]] == [False, True]
        stored = messages(await user.pull("T", 0, 1))
        assert [unit["physicOffset"] for unit in found["queueData"]] == [message.position for message in stored]
        assert (await user.ask(Code.QUERY_CONSUME_QUEUE, {**wanted, "queueId": "99"})).code == 29


async def test_statistics_count_what_topics_took_and_groups_finished(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.heartbeat("c1", "g", {"T": "*"})
        await user.send("T", b"before")
        await trio.sleep(SAMPLE_S)
        for _ in range(20):
            await user.send("T", b"x")
        await consumed(user, "T", 0, 11)
        await trio.sleep(SAMPLE_S + 1)
        put = body(await user.ask(Code.VIEW_BROKER_STATS_DATA, {"statsName": "TOPIC_PUT_NUMS", "statsKey": "T"}))
        assert put["statsMinute"]["sum"] == 20
        assert 0.9 <= put["statsMinute"]["tps"] <= 2.1
        got = body(await user.ask(Code.VIEW_BROKER_STATS_DATA, {"statsName": "GROUP_GET_NUMS", "statsKey": "T@g"}))
        assert got["statsDay"]["sum"] == 0, "its first sample is the beginning"
        await consumed(user, "T", 0, 21)
        await trio.sleep(SAMPLE_S + 1)
        got = body(await user.ask(Code.VIEW_BROKER_STATS_DATA, {"statsName": "GROUP_GET_NUMS", "statsKey": "T@g"}))
        assert got["statsDay"]["sum"] == 10
        progress = body(await user.ask(Code.GET_CONSUME_STATS, {"consumerGroup": "g", "topic": "T"}))
        assert progress["consumeTps"] == got["statsMinute"]["tps"] > 0
        missing = await user.ask(Code.VIEW_BROKER_STATS_DATA, {"statsName": "TOPIC_PUT_NUMS", "statsKey": "Nobody"})
        assert missing.code == ResponseCode.SYSTEM_ERROR


async def test_replication_and_terms_of_a_single_replica(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, _world):
        await user.send("T", b"x")
        ha = body(await user.ask(Code.GET_BROKER_HA_STATUS))
        assert (ha["master"], ha["haConnectionInfo"]) == (True, [])
        assert ha["masterCommitLogMaxOffset"] == replica.store.log.last.end
        epochs = body(await user.ask(Code.GET_BROKER_EPOCH_CACHE))
        assert epochs["maxOffset"] == epochs["epochList"][-1]["endOffset"] == replica.store.log.last.end
        assert epochs["brokerName"] == "broker-a"


@pytest.mark.parametrize("code", [50, 353, 355, 513, 902, 1002, 2001, 3001])
async def test_a_request_that_will_not_be_served_says_why(code: int, autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        answer = await user.ask(code)
        assert answer.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
        assert answer.remark.startswith(f" request type {code} not supported: ")


# --- connected clients


async def test_a_consumer_is_asked_and_its_answer_passed_on(autojump_clock: MockClock) -> None:
    asked: list[Command] = []

    def on_request(addr: str, command: Command) -> Command | None:
        if command.code == Code.NOTIFY_CONSUMER_IDS_CHANGED:
            return None
        asked.append(command)
        return Command(code=0, opaque=command.opaque, flag=FLAG_RESPONSE, body=b'{"jstack":"all is well"}')

    async with (
        open_local() as (replica, user, world),
        open_remoting_client(world.at("10.0.9.2"), on_request=on_request) as client,
    ):
        consumer = User(client, replica.address)
        await user.send("T", b"the message")
        await consumer.heartbeat("c1", "g", {"T": "*"})
        ext = {"consumerGroup": "g", "clientId": "c1", "jstackEnable": "true"}
        answer = await user.ask(Code.GET_CONSUMER_RUNNING_INFO, ext)
        assert answer.body == b'{"jstack":"all is well"}'
        assert asked[0].code == Code.GET_CONSUMER_RUNNING_INFO
        assert asked[0].ext["jstackEnable"] == "true"

        (message,) = messages(await user.pull("T", 0, 0))
        message_id = offset_message_id(host_bytes(replica.address), message.position)
        ext = {"consumerGroup": "g", "clientId": "c1", "msgId": message_id}
        assert (await user.ask(Code.CONSUME_MESSAGE_DIRECTLY, ext)).code == 0
        assert asked[1].ext["brokerName"] == "broker-a"
        assert b"the message" in asked[1].body
        for bad in ("nonsense", message_id[:16] + "0" * 15 + "1"):
            refused = await user.ask(Code.CONSUME_MESSAGE_DIRECTLY, {**ext, "msgId": bad})
            assert refused.code == ResponseCode.SYSTEM_ERROR
        away = await user.ask(Code.GET_CONSUMER_RUNNING_INFO, {"consumerGroup": "g", "clientId": "c2"})
        assert "not online" in away.remark

        producers = {"clientID": "p1", "producerDataSet": [{"groupName": "pg"}]}
        await consumer.ask(Code.HEART_BEAT, body=json.dumps(producers).encode())
        (producer,) = body(await user.ask(Code.GET_ALL_PRODUCER_INFO))["data"]["pg"]
        assert (producer["clientId"], producer["remoteIP"]) == ("p1", "10.0.9.2")


class Wire:
    """A connection that only remembers."""

    peer = "10.0.9.9:1"

    def __init__(self) -> None:
        self.sent: list[Command] = []

    def send(self, frame: bytes) -> None:
        self.sent.append(decode(frame[4:]))


async def test_a_client_that_does_not_answer_or_leaves_is_given_up(autojump_clock: MockClock) -> None:
    calls, wire, other = ClientCalls(), Wire(), Wire()
    question = Command(code=Code.GET_CONSUMER_RUNNING_INFO)
    with pytest.raises(ClientSilent):
        await calls.ask(wire, question, within_s=2)
    calls.answered(wire, Command(code=0, opaque=wire.sent[0].opaque, flag=FLAG_RESPONSE))  # too late: dropped

    async def leave() -> None:
        await trio.sleep(1)
        calls.closed(wire)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        began = trio.current_time()
        with pytest.raises(ClientSilent):
            await calls.ask(wire, question, within_s=60)
        assert trio.current_time() - began < 2

    async def answer() -> None:
        await trio.sleep(1)
        number = wire.sent[-1].opaque
        calls.answered(other, Command(code=9, opaque=number, flag=FLAG_RESPONSE))  # another connection's own number
        calls.answered(wire, Command(code=7, opaque=number, flag=FLAG_RESPONSE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        assert (await calls.ask(wire, question, within_s=60)).code == 7
