"""Habits of clients that have been in use for ten years, as the bytes that they really send.

Frames are written out as old clients write them, not built by our encoder: what is tested is that we read theirs.
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tests.broker.cluster import open_cluster
from tests.broker.support import User, World, drained, messages, open_local, open_user
from tests.broker.test_registration import NAMESRV, name_server
from trimq.env import Stream
from trimq.remoting.client import open_remoting_client
from trimq.wire.command import Command, decode

pytestmark = pytest.mark.trio


def frame(header: str, body: bytes = b"") -> bytes:
    """A frame around a header as it stands: JSON text of whatever dialect."""
    raw = header.encode()
    return struct.pack(">II", 4 + len(raw) + len(body), len(raw)) + raw + body


class Raw:
    """A connection that sends bytes and reads frames."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._read = b""

    async def ask(self, data: bytes) -> Command:
        await self._stream.send_all(data)
        while not (answer := await self.next()).is_response:
            pass  # a notice (code 40): it has nothing to do with what was asked
        return answer

    async def next(self) -> Command:
        with trio.fail_after(20):
            while len(self._read) < 4 or len(self._read) < 4 + int.from_bytes(self._read[:4]):
                more = await self._stream.receive_some(65536)
                assert more, "the broker closed the connection"
                self._read += more
        end = 4 + int.from_bytes(self._read[:4])
        answer, self._read = decode(self._read[4:end]), self._read[end:]
        return answer


@asynccontextmanager
async def raw(world: World, address: str) -> AsyncIterator[Raw]:
    host, _, port = address.rpartition(":")
    stream = await world.at("10.0.9.7").connect(host, int(port))
    try:
        yield Raw(stream)
    finally:
        await stream.aclose()


# A 4.2 client's send, code 10: the long names, numbers as text, no `batch`, no `bname`.
SEND_42 = (
    '{"code":10,"extFields":{"topic":"Old","queueId":"1","producerGroup":"p","defaultTopic":"TBW102",'
    '"defaultTopicQueueNums":"4","sysFlag":"0","bornTimestamp":"1520000000000","flag":"7","unitMode":"%s",'
    '"properties":"KEYS\\u0001k1\\u0002WAIT\\u0001true\\u0002TAGS\\u0001A","reconsumeTimes":"0","maxReconsumeTimes":"0"},'
    '"flag":0,"language":"JAVA","opaque":%d,"serializeTypeCurrentRPC":"JSON","version":253}'
)
# The C++ client's, code 310: short names, numbers as numbers, booleans as "0" and "1", trailing separator.
SEND_CPP = (
    '{"code":310,"extFields":{"a":"p","b":"Old","c":"TBW102","d":4,"e":2,"f":0,"g":"1520000000000","h":0,'
    '"i":"KEYS\\u0001k2\\u0002WAIT\\u0001true\\u0002","j":0,"k":"0","l":16,"m":"0"},"flag":0,"language":"CPP",'
    '"opaque":%d,"version":333}\n'
)
# ali-ons': short names, real booleans, no `l` and no `m`.
SEND_NODE = (
    '{"code":310,"language":"JAVA","opaque":%d,"flag":0,"version":121,"extFields":{"a":"p","b":"Old","c":"TBW102",'
    '"d":4,"e":3,"f":0,"g":1520000000000,"h":0,"i":"TAGS\\u0001A\\u0002","j":0,"k":false},"remark":null,'
    '"serializeTypeCurrentRPC":"JSON"}'
)


async def test_sends_in_long_and_short_names_of_any_type_are_stored_alike(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, world), raw(world, replica.address) as old:
        for opaque, header in enumerate((SEND_42 % ("false", 0), SEND_CPP % 1, SEND_NODE % 2)):
            answer = await old.ask(frame(header, b"body %d" % opaque))
            assert (answer.code, answer.opaque, answer.remark) == (0, opaque, "")
            assert (answer.ext["queueId"], answer.ext["queueOffset"]) == (str(opaque + 1), "0")
            assert all(isinstance(value, str) for value in answer.ext.values())
        for queue in (1, 2, 3):
            (message,) = messages(await user.pull("Old", queue, 0))
            assert message.body == b"body %d" % (queue - 1)
        (first,) = messages(await user.pull("Old", 1, 0, tags="A"))
        assert (first.flag, first.born_ms, first.properties["KEYS"]) == (7, 1_520_000_000_000, "k1")


async def test_a_heartbeat_of_4x_joins_its_group_and_gets_its_messages(autojump_clock: MockClock) -> None:
    """Enums by ordinal, hashes that lie, no expression type, keys without quotes, a line feed at the end."""
    async with open_local() as (replica, user, world), raw(world, replica.address) as old:
        heartbeat = (
            '{clientID:"10.0.9.7@4711","consumerDataSet":[{"consumeFromWhere":0,"consumeType":1,"groupName":"old",'
            '"messageModel":1,"subscriptionDataSet":[{"classFilterMode":false,"codeSet":[0,0],"subString":"A || B",'
            '"subVersion":1520000000000,"tagsSet":["B","A"],"topic":"Old"}],"unitMode":false}],'
            '"producerDataSet":[{"groupName":"CLIENT_INNER_PRODUCER"}]}\n'
        )
        head = '{"code":34,"flag":0,"language":"CPP","opaque":1,"version":63,"extFields":{}}'
        assert (await old.ask(frame(head, heartbeat.encode()))).code == 0
        listing = '{"code":38,"flag":0,"language":"CPP","opaque":2,"version":63,"extFields":{"consumerGroup":"old"}}'
        answer = await old.ask(frame(listing))
        assert json.loads(answer.body) == {"consumerIdList": ["10.0.9.7@4711"]}
        for tag in ("A", "B", "C"):
            await user.send("Old", tag.encode(), props={"TAGS": tag})
        # No subscription in the pull (sysFlag 0x2 only): the broker goes by the heartbeat, not by its hashes.
        pull = (
            '{"code":11,"flag":0,"language":"CPP","opaque":3,"version":63,"extFields":{"consumerGroup":"old","topic":'
            '"Old","queueId":0,"queueOffset":0,"maxMsgNums":32,"sysFlag":2,"commitOffset":0,"suspendTimeoutMillis":'
            '15000,"subVersion":1520000000000,"subscription":""}}'
        )
        assert [message.body for message in messages(await old.ask(frame(pull)))] == [b"A", b"B"]


async def test_a_body_with_keys_that_fastjson_left_without_quotes_is_read(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, world), raw(world, replica.address) as old:
        await user.send("Old", b"x")
        body = b'{clientId:"c1",consumerGroup:"old",mqSet:[{brokerName:"broker-a",queueId:0,topic:"Old"}]}'
        answer = await old.ask(frame('{"code":41,"flag":0,"language":"JAVA","opaque":5,"version":253}', body))
        assert answer.code == 0
        assert json.loads(answer.body)["lockOKMQSet"] == [{"brokerName": "broker-a", "queueId": 0, "topic": "Old"}]


async def test_unit_mode_marks_the_topics_that_it_creates_and_name_servers_list_them(
    autojump_clock: MockClock,
) -> None:
    world = World()
    async with (
        name_server(world),
        open_local(world, namesrv=(NAMESRV,)) as (replica, user, _),
        raw(world, replica.address) as old,
    ):
        assert (await old.ask(frame(SEND_42 % ("true", 1), b"x"))).code == 0
        heartbeat = (
            b'{"clientID":"u","consumerDataSet":[{"consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","consumeType":'
            b'"CONSUME_PASSIVELY","groupName":"units","messageModel":"CLUSTERING","subscriptionDataSet":[],'
            b'"unitMode":true}],"producerDataSet":[]}'
        )
        assert (
            await old.ask(frame('{"code":34,"flag":0,"language":"JAVA","opaque":2,"version":253}', heartbeat))
        ).code == 0
        await user.send("Plain", b"x")
        await trio.sleep(0.2)
        async with open_user(world, NAMESRV) as asker:
            listed = {code: set(json.loads((await asker.ask(code)).body)["topicList"]) for code in (311, 312, 313)}
        assert listed == {311: {"Old"}, 312: {"%RETRY%units"}, 313: {"%RETRY%units"}}


async def test_a_client_with_a_route_of_yesterday_goes_on_sending_and_reading(autojump_clock: MockClock) -> None:
    """Routes are polled every 30 s: until then an old client knows one address, whoever leads by now."""
    world = World()
    async with open_cluster(world=world) as cluster:
        leader = await cluster.ready()
        address = leader.replica().address
        async with raw(world, address) as old:
            assert (await old.ask(frame(SEND_42 % ("false", 1), b"1"))).code == 0
        await leader.kill()
        successor = await cluster.ready()
        await leader.start()
        assert successor is not leader
        async with raw(world, address) as old:
            # The first one may come while the returned replica has not heard of the new leader: it is parked.
            for opaque in range(2, 6):
                answer = await old.ask(frame(SEND_42 % ("false", opaque), b"%d" % opaque))
                assert (answer.code, answer.opaque) == (0, opaque)
                assert answer.ext["queueOffset"] == str(opaque - 1)
        async with open_user(world, address) as user:
            found = await drained(user, "Old", 1, 5)
            assert [message.body for message in found] == [b"1", b"2", b"3", b"4", b"5"]


async def test_the_vip_port_takes_all_that_a_client_sends_there(autojump_clock: MockClock) -> None:
    """Java's `vipChannelEnabled`: sends, offsets and admin calls go to the port two below, the rest to the main one."""
    async with (
        open_local(vip_channel=True) as (replica, _, world),
        raw(world, replica.address.replace("10911", "10909")) as vip,
        open_remoting_client(world.at("10.0.9.8")) as client,
    ):
        assert (await vip.ask(frame(SEND_42 % ("false", 1), b"x"))).code == 0
        commit = '{"code":15,"flag":0,"language":"JAVA","opaque":2,"version":253,"extFields":%s}'
        fields = {"consumerGroup": "old", "topic": "Old", "queueId": "1", "commitOffset": "1"}
        assert (await vip.ask(frame(commit % json.dumps(fields)))).code == 0
        query = '{"code":14,"flag":0,"language":"JAVA","opaque":3,"version":253,"extFields":%s}'
        assert (await vip.ask(frame(query % json.dumps(fields)))).ext["offset"] == "1"
        main = User(client, replica.address)
        assert [message.body for message in messages(await main.pull("Old", 1, 0))] == [b"x"]
