"""Frames fixed byte for byte, in the layouts that RocketMQ documents: what we write, and what other clients write.

A failure here means that somebody else can no longer read us, or we them. Change an expected value only together with
`docs/protocol.md`.
"""

from __future__ import annotations

import pytest

from trimq.wire.codes import LanguageCode, RequestCode, SerializeType
from trimq.wire.command import Command, decode, encode, encode_response
from trimq.wire.frame import FrameDecoder
from trimq.wire.headers.offset import UpdateOffsetHeader
from trimq.wire.headers.pull import PullHeader
from trimq.wire.headers.route import GetRouteHeader
from trimq.wire.headers.send import SendBackHeader, SendHeader
from trimq.wire.requests import decode_pull, decode_send, decode_update_offset
from trimq.wire.responses import encode_pull_head, encode_send_response

ROUTE_JSON = bytes.fromhex(
    "00000082 0000007e"
    "7b22636f6465223a3130352c226578744669656c6473223a7b22746f706963223a225431227d2c22666c6167223a302c"
    "226c616e6775616765223a22505954484f4e222c226f7061717565223a372c2273657269616c697a6554797065437572"
    "72656e74525043223a224a534f4e222c2276657273696f6e223a3437397d"
)
ROUTE_BINARY = bytes.fromhex(
    "00000026 01000022 0069 03 01df 00000007 00000000 00000000 0000000d 0005 746f706963 00000002 5431"
)
ROUTE = Command(code=105, opaque=7, ext={"topic": "T1"}, version=479, language=LanguageCode.PYTHON)


def inner(frame: bytes) -> bytes:
    (one,) = FrameDecoder().feed(frame)
    return one


def json_frame(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(4, "big") + header + body


def test_a_route_request_in_json() -> None:
    assert len(ROUTE_JSON) == 134
    assert encode(ROUTE) == ROUTE_JSON
    assert decode(inner(ROUTE_JSON)) == ROUTE
    assert GetRouteHeader.from_ext(decode(inner(ROUTE_JSON)).ext).topic == "T1"


def test_a_route_request_in_binary() -> None:
    binary = Command(code=105, opaque=7, ext={"topic": "T1"}, version=479, serialize=SerializeType.ROCKETMQ)
    assert len(ROUTE_BINARY) == 42
    assert encode(binary) == ROUTE_BINARY
    assert decode(inner(ROUTE_BINARY)) == binary


def test_a_route_request_in_cbor() -> None:
    frame = bytes.fromhex("00000018 02000014 87 1869 07 00 1901df 03 60 a1 65 746f706963 62 5431")
    cbor = Command(code=105, opaque=7, ext={"topic": "T1"}, version=479, serialize=SerializeType.CBOR)
    assert encode(cbor) == frame
    assert decode(inner(frame)) == cbor


def test_responses() -> None:
    assert encode_response(7, 0, 17, {}, "No topic route") == (
        b"\0\0\0\x8f\0\0\0\x8b"
        b'{"code":17,"extFields":{},"flag":1,"language":"PYTHON","opaque":7,"remark":"No topic route",'
        b'"serializeTypeCurrentRPC":"JSON","version":479}'
    )
    assert encode_response(7, 1, 0, {"offset": "5"}, "", b"x") == bytes.fromhex(
        "00000027 01000022 0000 03 01df 00000007 00000001 00000000 0000000d 0006 6f6666736574 00000001 35 78"
    )
    assert encode_send_response(9, 0, "7F00000100002A9F00000000000003E8", 1, 5)[8:] == (
        b'{"code":0,"extFields":{"MSG_REGION":"DefaultRegion","TRACE_ON":"true",'
        b'"msgId":"7F00000100002A9F00000000000003E8","queueId":"1","queueOffset":"5"},"flag":1,"language":"PYTHON",'
        b'"opaque":9,"serializeTypeCurrentRPC":"JSON","version":479}'
    )
    assert encode_pull_head(9, 0, 19, 5, 0, 5, 0)[8:] == (
        b'{"code":19,"extFields":{"maxOffset":"5","minOffset":"0","nextBeginOffset":"5","suggestWhichBrokerId":"0"},'
        b'"flag":1,"language":"PYTHON","opaque":9,"serializeTypeCurrentRPC":"JSON","version":479}'
    )


JAVA_SEND_V2 = (
    b'{"code":310,"extFields":{"a":"pg","b":"TopicTest","c":"TBW102","d":"4","e":"2","f":"0","g":"1700000000000",'
    b'"h":"0","i":"UNIQ_KEY\\u00017F000001000118B4AAC20A3B5C7D0000\\u0002WAIT\\u0001true\\u0002TAGS\\u0001TagA",'
    b'"j":"0","k":"false","m":"false"},"flag":0,"language":"JAVA","opaque":12,"serializeTypeCurrentRPC":"JSON",'
    b'"version":409}'
)
GO_SEND_V1 = (
    b'{"code":10,"language":"GO","version":317,"opaque":1,"flag":0,"remark":"","extFields":{"batch":"false",'
    b'"bornTimestamp":"1700000000000","defaultTopic":"TBW102","defaultTopicQueueNums":"4","flag":"0",'
    b'"maxReconsumeTimes":"0","producerGroup":"pg","properties":"TAGS\\u0001TagA\\u0002","queueId":"2",'
    b'"reconsumeTimes":"0","sysFlag":"0","topic":"TopicTest","unitMode":"false"}}'
)
CPP_SEND_V2 = (
    b'{"code":310,"extFields":{"AccessKey":"","OnsChannel":"ALIYUN","Signature":"rZ==","a":"pg","b":"TopicTest",'
    b'"c":"TBW102","d":4,"e":2,"f":0,"g":"1700000000000","h":0,"i":"TAGS\\u0001TagA\\u0002","j":"0","k":"0","l":0,'
    b'"m":"0"},"flag":0,"language":"CPP","opaque":1,"serializeTypeCurrentRPC":"JSON","version":333}\n'
)
CPP_SEND_V1 = (
    b'{"code":10,"extFields":{"AccessKey":"","batch":"1","bornTimestamp":"1700000000000","defaultTopic":"TBW102",'
    b'"defaultTopicQueueNums":4,"flag":0,"producerGroup":"pg","properties":"WAIT\\u0001true\\u0002","queueId":2,'
    b'"reconsumeTimes":"0","sysFlag":0,"topic":"TopicTest","unitMode":"0"},"flag":0,"language":"CPP","opaque":1,'
    b'"version":63}\n'
)
NODE_SEND_V2 = (
    b'{"code":310,"language":"JAVA","opaque":3,"flag":0,"version":121,"extFields":{"a":"pg","b":"TopicTest",'
    b'"c":"TBW102","d":4,"e":2,"f":0,"g":1700000000000,"h":0,"i":"TAGS\\u0001TagA\\u0002","j":0,"k":false}}'
)


@pytest.mark.parametrize(
    ("header", "batch", "language"),
    [
        (JAVA_SEND_V2, False, LanguageCode.JAVA),
        (GO_SEND_V1, False, LanguageCode.GO),
        (CPP_SEND_V2, False, LanguageCode.CPP),
        (CPP_SEND_V1, True, LanguageCode.CPP),
        (NODE_SEND_V2, False, LanguageCode.JAVA),
    ],
    ids=["java", "go", "cpp2", "cpp1-batch", "node"],
)
def test_sends_as_the_clients_write_them(header: bytes, batch: bool, language: LanguageCode) -> None:
    frame = json_frame(header, b"body")
    request = decode_send(frame)
    typed = request.header
    assert (typed.producer_group, typed.topic, typed.default_topic) == ("pg", "TopicTest", "TBW102")
    assert (typed.queue_id, typed.default_topic_queue_nums, typed.born_timestamp) == (2, 4, 1700000000000)
    assert (typed.batch, typed.sequence, request.body, request.language) == (batch, None, b"body", language)
    assert SendHeader.from_ext(decode(frame).ext) == typed


def test_a_pull_as_cpp_writes_it() -> None:
    header = (
        b'{"code":11,"extFields":{"commitOffset":"0","consumerGroup":"g","expressionType":"","maxMsgNums":32,"queueId":1,'
        b'"queueOffset":"17","subVersion":"1700000000000","subscription":"TagA || TagB","suspendTimeoutMillis":"15000",'
        b'"sysFlag":7,"topic":"T"},"flag":0,"language":"CPP","opaque":5,"version":333}\n'
    )
    assert decode_pull(json_frame(header)).header == PullHeader(
        consumer_group="g",
        topic="T",
        queue_id=1,
        queue_offset=17,
        max_msg_nums=32,
        sys_flag=7,
        commit_offset=0,
        suspend_timeout_millis=15000,
        subscription="TagA || TagB",
        sub_version=1700000000000,
        expression_type="",
    )


def test_a_commit_of_a_queue_never_read_as_node_writes_it() -> None:
    header = b'{"code":15,"opaque":8,"extFields":{"consumerGroup":"g","topic":"T","queueId":0,"commitOffset":-1}}'
    assert decode_update_offset(json_frame(header)).header == UpdateOffsetHeader(
        consumer_group="g", topic="T", queue_id=0, commit_offset=-1
    )


def test_a_send_back_as_cpp_1_writes_it() -> None:
    header = b'{"code":36,"extFields":{"delayLevel":0,"group":"g","offset":"1000"},"flag":0,"opaque":5,"version":63}'
    command = decode(json_frame(header))
    assert command.code == RequestCode.CONSUMER_SEND_MSG_BACK
    assert SendBackHeader.from_ext(command.ext) == SendBackHeader(group="g", offset=1000, delay_level=0)


def test_a_binary_send_as_java_writes_it() -> None:
    frame = bytes.fromhex(
        "01000095 0136 00 0199 0000000c 00000000 00000000 00000080"
        "0001 61 00000002 7067  0001 62 00000002 5431  0001 63 00000006 544257313032  0001 64 00000001 34"
        "0001 65 00000001 32  0001 66 00000001 30  0001 67 0000000d 31373030303030303030303030"
        "0001 68 00000001 30  0001 69 00000006 54414753 01 41"
        "0001 6a 00000001 30  0001 6b 00000005 66616c7365  0001 6d 00000005 66616c7365"
    )
    for _ in range(2):
        request = decode_send(frame + b"body")
        assert (request.code, request.opaque, request.version, request.body) == (310, 12, 409, b"body")
        assert (request.header.topic, request.header.queue_id, request.header.properties) == ("T1", 2, "TAGS\x01A")
        assert request.header == SendHeader.from_ext(decode(frame).ext)
