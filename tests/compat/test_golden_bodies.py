"""Bodies as Java, C++ and Go write them, and as we write them for all of these."""

from __future__ import annotations

import zlib

from trimq.wire.body.consumer_list import CheckClientRequest, ConsumerIdList
from trimq.wire.body.heartbeat import HeartbeatData
from trimq.wire.body.lock import MQ, LockRequest, LockResponse
from trimq.wire.body.register import RegisterBrokerBody, body_crc32
from trimq.wire.body.route import BrokerData, ClusterInfo, DataVersion, QueueData, TopicList, TopicRouteData
from trimq.wire.body.stats import ConsumeStats, TopicStatsTable
from trimq.wire.body.topic_config import SubscriptionGroupConfig, TopicConfigTable

ROUTE = (
    b'{"brokerDatas":[{"brokerAddrs":{"0":"10.0.0.1:10911"},"brokerName":"b-0","cluster":"C"}],"filterServerTable":{},'
    b'"queueDatas":[{"brokerName":"b-0","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}'
)


def test_a_route_is_written_in_the_one_form_that_all_clients_read() -> None:
    route = TopicRouteData(
        brokerDatas=[BrokerData(brokerName="b-0", cluster="C", brokerAddrs={0: "10.0.0.1:10911"})],
        queueDatas=[QueueData(brokerName="b-0", perm=6, readQueueNums=4, writeQueueNums=4)],
    )
    assert route.to_json() == ROUTE
    assert TopicRouteData.from_json(ROUTE) == route


def test_a_route_of_an_old_java_name_server() -> None:
    java = ROUTE.replace(b'"0":', b"0:").replace(b"topicSysFlag", b"topicSynFlag")
    assert TopicRouteData.from_json(java).to_json() == ROUTE


def test_a_cluster_of_a_java_name_server_with_a_reference() -> None:
    java = (
        b'{"brokerAddrTable":{"b-0":{"brokerAddrs":{0:"10.0.0.1:10911",1:"10.0.0.2:10911"},"brokerName":"b-0",'
        b'"cluster":"C","enableActingMaster":false},"b-1":{"$ref":"$.brokerAddrTable.b-0"}},'
        b'"clusterAddrTable":{"C":["b-0","b-1"]}}'
    )
    cluster = ClusterInfo.from_json(java)
    assert cluster.brokerAddrTable["b-1"] == cluster.brokerAddrTable["b-0"]
    assert cluster.brokerAddrTable["b-0"].brokerAddrs == {0: "10.0.0.1:10911", 1: "10.0.0.2:10911"}


def test_statistics_of_a_java_broker_have_queues_as_raw_keys() -> None:
    queue = MQ(brokerName="b-0", queueId=3, topic="T")
    java = b'{"offsetTable":{{"brokerName":"b-0","queueId":3,"topic":"T"}:{"lastUpdateTimestamp":0,"maxOffset":5}}}'
    assert TopicStatsTable.from_json(java).offsetTable[queue].maxOffset == 5
    java = (
        b'{"consumeTps":1.5,"offsetTable":{{"brokerName":"b-0","queueId":3,"topic":"T"}:'
        b'{"brokerOffset":10,"consumerOffset":8,"lastTimestamp":0}}}'
    )
    stats = ConsumeStats.from_json(java)
    assert stats.offsetTable[queue].consumerOffset == 8
    assert stats.to_json() == (
        b'{"consumeTps":1.5,"offsetTable":{"{\\"brokerName\\":\\"b-0\\",\\"queueId\\":3,\\"topic\\":\\"T\\"}":'
        b'{"brokerOffset":10,"consumerOffset":8,"lastTimestamp":0,"pullOffset":0}}}'
    )


JAVA_HEARTBEAT = (
    b'{"clientID":"10.0.0.5@123#456","consumerDataSet":[{"consumeFromWhere":"CONSUME_FROM_LAST_OFFSET",'
    b'"consumeType":"CONSUME_PASSIVELY","groupName":"g","messageModel":"CLUSTERING","subscriptionDataSet":['
    b'{"classFilterMode":false,"codeSet":[65,66],"expressionType":"TAG","subString":"A || B",'
    b'"subVersion":1700000000000,"tagsSet":["A","B"],"topic":"T"}],"unitMode":false}],'
    b'"heartbeatFingerprint":0,"producerDataSet":[{"groupName":"CLIENT_INNER_PRODUCER"}],"withoutSub":false}'
)
CPP_HEARTBEAT = (
    b'{"clientID":"1234-10.0.0.5@DEFAULT","consumerDataSet":[{"consumeFromWhere":0,"consumeType":1,"groupName":"g",'
    b'"messageModel":1,"subscriptionDataSet":[{"codeSet":[0,0],"subString":"A || B","subVersion":"1700000000000",'
    b'"tagsSet":["A","B"],"topic":"T"}]}],"producerDataSet":[{"groupName":"CLIENT_INNER_PRODUCER"}]}\n'
)
GO_HEARTBEAT = JAVA_HEARTBEAT.replace(b"[65,66]", b'["65","66"]')


def test_heartbeats_of_java_cpp_and_go_say_the_same() -> None:
    java = HeartbeatData.from_json(JAVA_HEARTBEAT)
    assert HeartbeatData.from_json(GO_HEARTBEAT) == java
    cpp = HeartbeatData.from_json(CPP_HEARTBEAT)
    assert (cpp.consumerDataSet, cpp.producerDataSet) == (java.consumerDataSet, java.producerDataSet)
    assert java.to_json() == JAVA_HEARTBEAT


def test_locks_and_consumer_lists() -> None:
    request = LockRequest.from_json(
        b'{"clientId":"c","consumerGroup":"g","mqSet":[{"brokerName":"b-0","queueId":3,"topic":"T"}]}'
    )
    queue = MQ(brokerName="b-0", queueId=3, topic="T")
    assert request == LockRequest(clientId="c", consumerGroup="g", mqSet=[queue])
    assert LockResponse(lockOKMQSet=[queue]).to_json() == (
        b'{"lockOKMQSet":[{"brokerName":"b-0","queueId":3,"topic":"T"}]}'
    )
    assert ConsumerIdList(consumerIdList=["a", "b"]).to_json() == b'{"consumerIdList":["a","b"]}'
    assert TopicList(topicList=["T"]).to_json() == b'{"topicList":["T"]}'


def test_a_check_of_a_subscription() -> None:
    request = CheckClientRequest.from_json(
        b'{"clientId":"c","group":"g","namespace":null,"subscriptionData":{"expressionType":"SQL92","subString":"a>1",'
        b'"subVersion":1,"tagsSet":[],"codeSet":[],"topic":"T"}}'
    )
    assert (request.subscription.expressionType, request.subscription.subString) == ("SQL92", "a>1")


def test_group_settings_of_4_9_and_5() -> None:
    old = SubscriptionGroupConfig.from_json(
        b'{"brokerId":0,"consumeBroadcastEnable":true,"consumeEnable":true,"consumeFromMinEnable":true,"groupName":"g",'
        b'"notifyConsumerIdsChangedEnable":true,"retryMaxTimes":16,"retryQueueNums":1,"whichBrokerWhenConsumeSlowly":1}'
    )
    assert old == SubscriptionGroupConfig(groupName="g")
    new = SubscriptionGroupConfig.from_json(
        b'{"groupName":"g","groupRetryPolicy":{"type":"CUSTOMIZED"},"retryMaxTimes":3}'
    )
    assert new.retryMaxTimes == 3


def word(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_a_compressed_registration_of_java_5() -> None:
    version = b'{"counter":2,"stateVersion":0,"timestamp":1700000000000}'
    first, second = b"T1 4 4 6 SINGLE_TAG", b'T2 8 8 6 MULTI_TAG {"+message.type":"FIFO"}'
    stream = b"".join(
        (
            *(word(len(version)), version, word(2), word(len(first)), first, word(len(second)), second),
            *(word(2), b"[]", word(1), word(2), b"{}"),
        )
    )
    data = zlib.compress(stream, 9)
    body = RegisterBrokerBody.read(data, compressed=True, crc32=body_crc32(data))
    table = body.topicConfigSerializeWrapper
    assert table.dataVersion == DataVersion(counter=2, timestamp=1700000000000)
    assert (table.topicConfigTable["T1"].readQueueNums, table.topicConfigTable["T2"].topicFilterType) == (
        4,
        "MULTI_TAG",
    )
    assert table.topicConfigTable["T2"].attributes == {"+message.type": "FIFO"}


def test_a_topic_table_of_5_with_fields_we_do_not_have() -> None:
    table = TopicConfigTable.from_json(
        b'{"dataVersion":{"counter":1,"stateVersion":0,"timestamp":5},"mappingDataVersion":{"counter":0},'
        b'"topicConfigTable":{"T":{"attributes":{},"order":false,"perm":6,"readQueueNums":4,"topicFilterType":"SINGLE_TAG",'
        b'"topicName":"T","topicSysFlag":0,"writeQueueNums":4}},"topicQueueMappingInfoMap":{}}'
    )
    assert table.topicConfigTable["T"].writeQueueNums == 4
