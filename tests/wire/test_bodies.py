"""JSON bodies: round trips, hostile bytes, what foreign clients write."""

from __future__ import annotations

import zlib
from struct import pack
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.bounds import FEW, PROPERTY, json_values
from trimq.errors import ProtocolError
from trimq.wire.body import consumer_list, group, heartbeat, lock, register, route, stats, topic_config
from trimq.wire.body.base import UNSET, Body, decode_body
from trimq.wire.body.heartbeat import ConsumerData, HeartbeatData, ProducerData, SubscriptionData
from trimq.wire.body.lock import MQ
from trimq.wire.body.register import RegisterBrokerBody, body_crc32
from trimq.wire.body.route import DataVersion, TopicRouteData
from trimq.wire.body.stats import ConsumeStats, OffsetWrapper, TopicOffset, TopicStatsTable
from trimq.wire.body.topic_config import TopicConfig, TopicConfigTable

BODIES: list[Any] = [
    value
    for family in (consumer_list, group, heartbeat, lock, register, route, stats, topic_config)
    for value in vars(family).values()
    if isinstance(value, type) and issubclass(value, Body) and value is not Body
] + [ConsumeStats, TopicStatsTable]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_every_body_reads_any_json_or_raises_a_protocol_error(body: Any) -> None:
    names = st.sampled_from(body.__struct_encode_fields__)

    @FEW
    @given(st.dictionaries(names, json_values, max_size=6) | json_values | st.binary(max_size=40))
    def check(value: object) -> None:
        raw = value if isinstance(value, bytes) else msgspec.json.encode(value)
        try:
            read = body.from_json(raw)
        except ProtocolError:
            return
        assert body.from_json(read.to_json()) == read

    check()


def test_a_route_with_and_without_its_optional_fields() -> None:
    plain = TopicRouteData.from_json(b'{"brokerDatas":[],"filterServerTable":{},"queueDatas":[]}')
    assert plain.orderTopicConf is UNSET
    assert b"orderTopicConf" not in plain.to_json()
    assert TopicRouteData.from_json(b'{"orderTopicConf":null}').orderTopicConf is None
    assert TopicRouteData.from_json(b'{"orderTopicConf":"a:4"}').to_json().count(b"a:4") == 1


def test_bodies_are_compact() -> None:
    data = route.ClusterInfo(
        brokerAddrTable={"b": route.BrokerData(brokerName="b", brokerAddrs={0: "10.0.0.1:1", 1: "10.0.0.2:1"})}
    ).to_json()
    assert b" " not in data
    assert b'"brokerAddrs":{"0":"10.0.0.1:1","1":"10.0.0.2:1"}' in data


def test_tables_keyed_by_a_queue() -> None:
    queue = MQ(brokerName="b-0", queueId=3, topic="T")
    table = TopicStatsTable(offsetTable={queue: TopicOffset(maxOffset=5)})
    assert TopicStatsTable.from_json(table.to_json()) == table
    raw = b'{"offsetTable":{{"topic":"T","brokerName":"b-0","queueId":3}:{"maxOffset":5,"minOffset":0}}}'
    assert TopicStatsTable.from_json(raw) == table
    consume = ConsumeStats(consumeTps=1.5, offsetTable={queue: OffsetWrapper(brokerOffset=10, consumerOffset=8)})
    assert ConsumeStats.from_json(consume.to_json()) == consume
    with pytest.raises(ProtocolError):
        TopicStatsTable.from_json(b'{"offsetTable":{"not a queue":{"maxOffset":5}}}')


def test_a_heartbeat_of_ours_survives() -> None:
    data = HeartbeatData(
        clientID="c",
        producerDataSet=[ProducerData(groupName="p")],
        consumerDataSet=[
            ConsumerData(groupName="g", subscriptionDataSet=[SubscriptionData.of("T", "TagA || TagB", 5)]),
        ],
    )
    assert HeartbeatData.from_json(data.to_json()) == data
    assert b'"codeSet":[2598919,2598920]' in data.to_json()


def test_sets_and_codes_of_a_heartbeat_are_computed_not_believed() -> None:
    raw = (
        b'{"clientID":"1234-10.0.0.5@DEFAULT","consumerDataSet":[{"consumeFromWhere":"5","consumeType":2,'
        b'"groupName":"g","messageModel":"0","subscriptionDataSet":[{"codeSet":["x",{}],"tagsSet":null,'
        b'"subString":"TagA","subVersion":"17","topic":"T","future":[1]}]}],"producerDataSet":[{}],"x":1}\n'
    )
    (consumer,) = HeartbeatData.from_json(raw).consumerDataSet
    assert (consumer.consumeType, consumer.messageModel) == ("CONSUME_POP", "BROADCASTING")
    assert consumer.consumeFromWhere == "CONSUME_FROM_TIMESTAMP"
    assert consumer.subscriptionDataSet == [SubscriptionData.of("T", "TagA", 17)]
    assert HeartbeatData.from_json(raw).producerDataSet == []


@pytest.mark.parametrize("model", [b"7", b'"SOMETIMES"', b"-1", b'"99999999999"'])
def test_an_unknown_enum_is_refused(model: bytes) -> None:
    with pytest.raises(ProtocolError):
        HeartbeatData.from_json(b'{"clientID":"c","consumerDataSet":[{"groupName":"g","messageModel":' + model + b"}]}")


def test_an_sql_subscription_has_no_tags() -> None:
    data = SubscriptionData.of("T", "a > 5 || b", 1, "SQL92")
    assert (data.tagsSet, data.codeSet, data.expressionType) == ([], [], "SQL92")


TOPICS = {
    "T1": TopicConfig(topicName="T1", readQueueNums=4, writeQueueNums=4, attributes={"message.type": "FIFO, a b"}),
    "%RETRY%g": TopicConfig(topicName="%RETRY%g", readQueueNums=1, writeQueueNums=1),
}
REGISTRATION = RegisterBrokerBody(
    topicConfigSerializeWrapper=TopicConfigTable(
        dataVersion=DataVersion(counter=3, stateVersion=7, timestamp=1700000000000), topicConfigTable=TOPICS
    )
)


def test_a_registration_in_both_forms() -> None:
    plain = REGISTRATION.to_json()
    assert RegisterBrokerBody.read(plain, compressed=False, crc32=body_crc32(plain)) == REGISTRATION
    packed = REGISTRATION.compress(479)
    assert RegisterBrokerBody.read(packed, compressed=True, crc32=body_crc32(packed)) == REGISTRATION
    old = RegisterBrokerBody.read(REGISTRATION.compress(409), compressed=True)
    assert old.topicConfigSerializeWrapper.topicConfigTable["T1"].attributes == {}
    assert RegisterBrokerBody.read(b"", compressed=False) == RegisterBrokerBody()


def test_a_registration_with_a_wrong_checksum_is_refused() -> None:
    plain = REGISTRATION.to_json()
    with pytest.raises(ProtocolError, match="crc32 not match"):
        RegisterBrokerBody.read(plain, compressed=False, crc32=body_crc32(plain) ^ 1)
    assert RegisterBrokerBody.read(plain, compressed=False, crc32=0) == REGISTRATION


def piece(data: bytes) -> bytes:
    return pack(">i", len(data)) + data


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        piece(b"{}"),
        piece(b"{}") + pack(">i", 1),
        piece(b"{}") + pack(">i", -1),
        piece(b"{}") + pack(">i", 2**31 - 1),
        pack(">i", 100) + b"{}",
        piece(b"{}") + pack(">i", 1) + piece(b"T 4 4"),
        piece(b"{}") + pack(">i", 1) + piece(b"T four 4 6 SINGLE_TAG"),
        piece(b"{}") + pack(">i", 1) + piece(b"T 4 4 99999999999 SINGLE_TAG"),
        piece(b"{}") + pack(">i", 1) + piece(b"T 4 4 6 SINGLE_TAG {bad"),
        piece(b"{}") + pack(">i", 1) + piece(b"\xff 4 4 6 SINGLE_TAG"),
        piece(b"nope") + pack(">i", 0) + piece(b"[]"),
        piece(b"{}") + pack(">i", 0) + piece(b"{}"),
    ],
    ids=range(13),
)
def test_a_damaged_compressed_registration_is_refused(stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        RegisterBrokerBody.read(zlib.compress(stream), compressed=True)


def test_a_registration_that_is_no_zlib_or_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProtocolError):
        RegisterBrokerBody.read(b"not zlib", compressed=True)
    with pytest.raises(ProtocolError):
        RegisterBrokerBody.read(REGISTRATION.compress(479)[:-5], compressed=True)
    monkeypatch.setattr(register, "MAX_EXPANDED_BYTES", 50)
    with pytest.raises(ProtocolError, match="more than 50"):
        RegisterBrokerBody.read(REGISTRATION.compress(479), compressed=True)


@PROPERTY
@given(st.binary(max_size=60))
def test_any_compressed_registration_reads_or_raises_a_protocol_error(data: bytes) -> None:
    for raw in (data, zlib.compress(data)):
        try:
            RegisterBrokerBody.read(raw, compressed=True)
        except ProtocolError:
            pass


def test_an_error_names_the_body() -> None:
    with pytest.raises(ProtocolError, match=r"LockRequest body: .*clientId"):
        lock.LockRequest.from_json(b"{}")
    with pytest.raises(ProtocolError, match="JSON body"):
        decode_body(b"\xff", route.TopicList)
