"""The name server's answers, request by request, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from namesrv.config import NamesrvConfig
from namesrv.kv_config import KVConfig
from namesrv.processor import KVChange, Processor, Request
from tests.namesrv.support import register_command
from trimq.wire.codes import RequestCode, ResponseCode, SerializeType
from trimq.wire.command import Command, decode

HERE = "127.0.0.1:5"


def answered(processor: Processor, command: Command, conn_id: int = 1, now: float = 0, peer: str = HERE) -> Command:
    answer = processor.process(Request(command, conn_id, peer, now))
    assert isinstance(answer, bytes)
    response = decode(answer[4:])
    assert response.is_response
    assert response.opaque == command.opaque
    return response


def asked(processor: Processor, code: int, **ext: str) -> Command:
    return answered(processor, Command(code=code, opaque=7, ext=ext))


def registered(*commands: Command, config: NamesrvConfig | None = None) -> Processor:
    processor = Processor(config or NamesrvConfig())
    for conn_id, command in enumerate(commands or (register_command(),), 1):
        response = answered(processor, command, conn_id)
        assert response.code == 0, response.remark
    return processor


def test_a_route_is_rocketmqs_json_byte_for_byte() -> None:
    processor = registered(register_command(), register_command("10.0.0.2:10911", 1))
    response = asked(processor, RequestCode.GET_ROUTEINFO_BY_TOPIC, topic="T")
    assert response.body == (
        b'{"brokerDatas":[{"brokerAddrs":{"0":"10.0.0.1:10911","1":"10.0.0.2:10911"},"brokerName":"broker-a",'
        b'"cluster":"C"}],"filterServerTable":{},"queueDatas":[{"brokerName":"broker-a","perm":6,"readQueueNums":4,'
        b'"topicSysFlag":0,"writeQueueNums":4}]}'
    )


def test_an_unknown_topic_is_code_17_with_javas_words() -> None:
    response = asked(registered(), RequestCode.GET_ROUTEINFO_BY_TOPIC, topic="Nope")
    assert response.code == ResponseCode.TOPIC_NOT_EXIST
    assert response.remark.startswith("No topic route info in name server for the topic: Nope")


def test_cached_routes_follow_every_change() -> None:
    processor = registered(config=NamesrvConfig(order_message_enable=True))

    def route() -> dict[str, Any]:
        answer = asked(processor, RequestCode.GET_ROUTEINFO_BY_TOPIC, topic="T")
        return dict(json.loads(answer.body)) if answer.code == 0 else {}

    first = route()
    assert route() == first
    answered(processor, register_command("10.0.0.2:10911", 0, term=2), 2)
    assert route()["brokerDatas"][0]["brokerAddrs"] == {"0": "10.0.0.2:10911"}
    processor.change_kv(KVConfig().changed("ORDER_TOPIC_CONFIG", "T", "broker-a:4"))
    assert route()["orderTopicConf"] == "broker-a:4"
    asked(processor, RequestCode.WIPE_WRITE_PERM_OF_BROKER, brokerName="broker-a")
    assert route()["queueDatas"][0]["perm"] == 4
    processor.table.connection_closed(2)
    assert route() == {}


def test_an_answer_has_the_header_form_of_its_request() -> None:
    command = Command(code=RequestCode.GET_BROKER_CLUSTER_INFO, opaque=3, serialize=SerializeType.ROCKETMQ)
    assert answered(registered(), command).serialize == SerializeType.ROCKETMQ


def test_cluster_info_lists_clusters_and_their_brokers() -> None:
    processor = registered(register_command(), register_command("h:1", name="broker-b", cluster="D"))
    info = json.loads(asked(processor, RequestCode.GET_BROKER_CLUSTER_INFO).body)
    assert info["clusterAddrTable"] == {"C": ["broker-a"], "D": ["broker-b"]}
    assert info["brokerAddrTable"]["broker-b"]["brokerAddrs"] == {"0": "h:1"}


def test_topic_lists() -> None:
    processor = registered(register_command(), register_command("h:1", name="b", cluster="D", topics=("V", "T")))

    def topics(code: int, **ext: str) -> dict[str, Any]:
        return dict(json.loads(asked(processor, code, **ext).body))

    assert topics(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER) == {"topicList": ["T", "U", "V"]}
    assert topics(RequestCode.GET_TOPICS_BY_CLUSTER, cluster="D") == {"topicList": ["T", "V"]}
    system = topics(RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_NS)
    assert system == {"brokerAddr": "h:1", "topicList": ["C", "D", "b", "broker-a"]}
    assert topics(RequestCode.GET_UNIT_TOPIC_LIST) == {"topicList": []}


def test_lists_can_be_turned_off() -> None:
    config = NamesrvConfig(enable_all_topic_list=False, enable_topic_list=False)
    processor = registered(config=config)
    for code, ext in ((206, {}), (224, {"cluster": "C"}), (304, {}), (311, {}), (312, {}), (313, {})):
        response = asked(processor, code, **ext)
        assert (response.code, response.remark) == (1, "disable")


@pytest.mark.parametrize("compressed", [False, True])
def test_both_forms_of_a_registration_are_read(compressed: bool) -> None:
    processor = registered(register_command(compressed=compressed))
    assert processor.table.topics() == ["T", "U"]


def test_a_slave_is_told_its_master_and_a_broker_the_order_settings() -> None:
    processor = registered()
    processor.change_kv(KVConfig().changed("ORDER_TOPIC_CONFIG", "T", "broker-a:4"))
    response = answered(processor, register_command("10.0.0.2:10911", 1), 2)
    assert response.ext == {"masterAddr": "10.0.0.1:10911", "haServerAddr": "10.0.0.1:10912"}
    assert json.loads(response.body) == {"table": {"T": "broker-a:4"}}


def test_a_revived_old_leader_is_refused_with_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    processor = registered(register_command(term=5), register_command("10.0.0.2:10911", term=6))
    response = answered(processor, register_command(term=5), 1)
    assert response.code == ResponseCode.SYSTEM_ERROR
    assert "leads broker-a no more" in response.remark
    assert "registration refused" in caplog.text


def test_data_version_queries_compare_and_keep_alive() -> None:
    processor = registered()
    ext = {"brokerName": "broker-a", "brokerAddr": "10.0.0.1:10911", "clusterName": "C", "brokerId": "0"}
    same = b'{"counter":1,"stateVersion":1,"timestamp":1}'
    command = Command(code=RequestCode.QUERY_DATA_VERSION, ext=ext, body=same)
    response = answered(processor, command, 1, now=100)
    assert response.ext == {"changed": "false"}
    assert json.loads(response.body) == json.loads(same)
    command.body = b'{"counter":2,"stateVersion":1,"timestamp":1}'
    assert answered(processor, command, 1, now=100).ext == {"changed": "true"}
    assert processor.table.expire(150) == []
    command.ext = {**ext, "brokerAddr": "elsewhere:1"}
    assert answered(processor, command).ext == {"changed": "true"}


def test_a_heartbeat_keeps_alive_and_may_change_the_limit() -> None:
    processor = registered()
    ext = {
        "brokerName": "broker-a",
        "brokerAddr": "10.0.0.1:10911",
        "clusterName": "C",
        "heartbeatTimeoutMills": "5000",
    }
    assert answered(processor, Command(code=RequestCode.BROKER_HEARTBEAT, ext=ext), 1, now=100).code == 0
    assert processor.table.expire(104) == []
    assert len(processor.table.expire(105)) == 1


def test_member_group_and_unregister() -> None:
    processor = registered(register_command(), register_command("10.0.0.2:10911", 1))
    ext = {"brokerName": "broker-a", "clusterName": "C"}
    group = json.loads(asked(processor, RequestCode.GET_BROKER_MEMBER_GROUP, **ext).body)
    assert group["brokerMemberGroup"]["brokerAddrs"] == {"0": "10.0.0.1:10911", "1": "10.0.0.2:10911"}
    gone = {**ext, "brokerAddr": "10.0.0.1:10911", "brokerId": "0"}
    assert asked(processor, RequestCode.UNREGISTER_BROKER, **gone).code == 0
    group = json.loads(asked(processor, RequestCode.GET_BROKER_MEMBER_GROUP, **ext).body)
    assert group["brokerMemberGroup"]["brokerAddrs"] == {"1": "10.0.0.2:10911"}


def test_permissions_topics_and_keys() -> None:
    processor = registered()
    assert asked(processor, RequestCode.WIPE_WRITE_PERM_OF_BROKER, brokerName="broker-a").ext == {"wipeTopicCount": "2"}
    assert asked(processor, RequestCode.ADD_WRITE_PERM_OF_BROKER, brokerName="broker-a").ext == {"addTopicCount": "2"}
    body = b'{"queueDatas":[{"brokerName":"broker-a","perm":6,"readQueueNums":1,"writeQueueNums":1}]}'
    command = Command(code=RequestCode.REGISTER_TOPIC_IN_NAMESRV, ext={"topic": "Static"}, body=body)
    assert answered(processor, command).code == 0
    assert processor.table.topics() == ["Static", "T", "U"]
    assert asked(processor, RequestCode.DELETE_TOPIC_IN_NAMESRV, topic="Static").code == 0
    assert processor.table.topics() == ["T", "U"]
    processor.change_kv(KVConfig().changed("ns", "k", "v"))
    assert asked(processor, RequestCode.GET_KV_CONFIG, namespace="ns", key="k").ext == {"value": "v"}
    missing = asked(processor, RequestCode.GET_KV_CONFIG, namespace="ns", key="x")
    assert (missing.code, missing.remark) == (22, "No config item, Namespace: ns Key: x")
    assert json.loads(asked(processor, RequestCode.GET_KVLIST_BY_NAMESPACE, namespace="ns").body) == {
        "table": {"k": "v"}
    }
    assert asked(processor, RequestCode.GET_KVLIST_BY_NAMESPACE, namespace="x").code == 22


def test_key_value_changes_wait_for_the_disk() -> None:
    processor = Processor(NamesrvConfig())
    put = Command(code=RequestCode.PUT_KV_CONFIG, ext={"namespace": "ns", "key": "k", "value": "v"})
    assert processor.process(Request(put, 1, "127.0.0.1:5", 0)) == KVChange("ns", "k", "v")
    delete = Command(code=RequestCode.DELETE_KV_CONFIG, ext={"namespace": "ns", "key": "k"})
    assert processor.process(Request(delete, 1, "127.0.0.1:5", 0)) == KVChange("ns", "k", None)


def test_no_request_changes_the_configuration() -> None:
    processor = registered()
    before = asked(processor, RequestCode.GET_NAMESRV_CONFIG).body
    change = Command(code=RequestCode.UPDATE_NAMESRV_CONFIG, body=b"kvConfigPath=/tmp/x\nlistenPort=1\n")
    response = answered(processor, change)
    assert response.code == ResponseCode.NO_PERMISSION
    assert "never by request" in response.remark
    assert asked(processor, RequestCode.GET_NAMESRV_CONFIG).body == before
    assert b"listenPort=9876\n" in before


@pytest.mark.parametrize("code", [0, 1, 10, 25, 34, 217000, -1, 32767])
def test_an_unknown_code_is_answered_with_3(code: int) -> None:
    response = asked(registered(), code)
    assert (response.code, response.remark) == (3, f" request type {code} not supported")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"brokerName": ""}, "broker_name"),
        ({"brokerName": "x\ny"}, "brokerName"),
        ({"brokerName": "x" * 256}, "1 to 255 printable"),
        ({"brokerAddr": "\x00"}, "brokerAddr"),
        ({"brokerId": "-1"}, "brokerId -1"),
        ({"brokerId": "many"}, "brokerId"),
        ({"bodyCrc32": "1"}, "crc32 not match"),
        ({"compressed": "true"}, "registration"),
    ],
)
def test_a_bad_registration_is_refused_by_name_and_changes_nothing(change: dict[str, str], words: str) -> None:
    processor = Processor(NamesrvConfig())
    command = register_command()
    command.ext["bodyCrc32"] = "0"
    command.ext.update(change)
    response = answered(processor, command)
    assert response.code == ResponseCode.SYSTEM_ERROR
    assert words.lower().replace("_", "") in response.remark.lower().replace("_", "")
    assert processor.table.groups() == []


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"topicConfigSerializeWrapper":{"topicConfigTable":{"\\u0001":{}}}}', b"\xff"]
)
def test_a_bad_registration_body_is_refused(body: bytes) -> None:
    processor = Processor(NamesrvConfig())
    command = register_command()
    command.ext["bodyCrc32"] = "0"
    command.body = body
    assert answered(processor, command).code == ResponseCode.SYSTEM_ERROR
    assert processor.table.groups() == []


def test_what_clients_are_told_is_changed_from_this_machine_only() -> None:
    wipe = Command(code=RequestCode.WIPE_WRITE_PERM_OF_BROKER, ext={"brokerName": "broker-a"})
    processor = registered()
    far = answered(processor, wipe, peer="10.0.0.7:40000")
    assert far.code == ResponseCode.NO_PERMISSION
    assert "adminAllowFrom" in far.remark
    put = Command(code=RequestCode.PUT_KV_CONFIG, ext={"namespace": "ns", "key": "k", "value": "v"})
    assert answered(processor, put, peer="10.0.0.7:40000").code == ResponseCode.NO_PERMISSION
    assert answered(processor, wipe).ext == {"wipeTopicCount": "2"}
    named = registered(config=NamesrvConfig(admin_allow_from="10.0.0.0/29;192.168.1.1/32"))
    assert answered(named, wipe, peer="10.0.0.7:40000").code == ResponseCode.SUCCESS
    assert answered(named, wipe, peer="10.0.0.8:40000").code == ResponseCode.NO_PERMISSION


def test_every_code_with_empty_header_and_body_is_answered() -> None:
    processor = registered()
    for code in range(-10, 10_000):
        answer = processor.process(Request(Command(code=code), 1, "p", 0))
        assert isinstance(answer, bytes), code
    assert processor.table.topics() == ["T", "U"]
