"""Sends: what a record looks like, what its answer says, what is refused."""

from __future__ import annotations

import pytest

from broker.metadata.ops import TopicPut, decode_payload
from broker.replication.base import Busy, NotLeader
from broker.replication.control import CreationRules
from broker.replication.intake import IntakeConfig, Refused
from tests.support.intake_bench import HOST, LOST, UNKNOWN, Client, Replica, message, records_of
from trimq.message.batch import BatchElement
from trimq.message.ids import host_bytes, parse_offset_message_id
from trimq.wire.codes import ResponseCode


@pytest.fixture
def replica() -> Replica:
    leader = Replica()
    leader.lead()
    return leader


def test_a_message_is_stored_as_it_was_sent_and_answered_when_settled(replica: Replica) -> None:
    client = Client()
    replica.put(client, uniq=b"A1", queue_id=2, flag=7, sys_flag=0x1, body=b"hello")
    assert client.got == []
    replica.take()
    assert client.got == []
    replica.settle()
    (answer,) = client.take()
    (record,) = replica.records()
    assert (answer.code, answer.opaque) == (0, 1)
    assert parse_offset_message_id(answer.ext["msgId"]) == (HOST, record.position)
    assert (answer.ext["queueId"], answer.ext["queueOffset"]) == ("2", "0")
    assert (answer.ext["MSG_REGION"], answer.ext["TRACE_ON"]) == ("DefaultRegion", "true")
    assert (record.topic, bytes(record.body), record.flag, record.sys_flag) == (b"orders", b"hello", 7, 1)
    assert (record.born_ms, record.born_host) == (1_699_999_999_000, host_bytes("10.9.9.9:5000"))
    assert (record.store_ms, record.store_host) == (replica.clock.now_ms, HOST)
    assert record.properties == b"UNIQ_KEY\x01A1\x02"


def test_the_first_message_to_a_topic_creates_it_in_the_same_entry(replica: Replica) -> None:
    replica.put(default_queues=4)
    (entry,) = replica.take()
    _, ops = decode_payload(entry.control)
    assert ops == [TopicPut(1, "orders", 4, 4)]
    assert len(records_of(entry)) == 1
    replica.apply()
    info = replica.state.topics.get(b"orders")
    assert info is not None
    assert info.perm == 6


@pytest.mark.parametrize(
    ("rules", "fields", "code"),
    [
        (CreationRules(auto_create_topic=False), {}, ResponseCode.TOPIC_NOT_EXIST),
        (CreationRules(), {"default_topic": b"nowhere"}, ResponseCode.TOPIC_NOT_EXIST),
        (CreationRules(), {"topic": b"%RETRY%nobody"}, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST),
        (CreationRules(), {"queue_id": 4, "default_queues": 4}, ResponseCode.INVALID_PARAMETER),
        (CreationRules(), {"properties": b"x" * 32_768}, ResponseCode.MESSAGE_ILLEGAL),
        (CreationRules(), {"body": bytes(8 << 20)}, ResponseCode.MESSAGE_ILLEGAL),
        (CreationRules(), {"flag": 1 << 40}, ResponseCode.MESSAGE_ILLEGAL),
    ],
)
def test_a_refused_send_leaves_nothing_behind(
    rules: CreationRules, fields: dict[str, object], code: ResponseCode
) -> None:
    replica = Replica(config=IntakeConfig(store_host=HOST, creation=rules))
    replica.lead()
    with pytest.raises(Refused) as refused:
        replica.put(Client(), **fields)
    assert refused.value.code == code
    assert not replica.intake.has_work()
    assert replica.intake.view.topic(b"orders") is None


def test_a_template_topic_decides_over_auto_creation(replica: Replica) -> None:
    replica.intake.put_ops([replica.intake.topic_op("TBW102", read_queues=2, write_queues=2, perm=7)])
    replica.put(topic=b"small", default_queues=16)
    replica.intake.put_ops([replica.intake.topic_op("TBW102", read_queues=2, write_queues=2, perm=6)])
    with pytest.raises(Refused):
        replica.put(topic=b"other")
    small = replica.intake.view.topic(b"small")
    assert small is not None
    assert (small.write_queues, small.perm) == (2, 6)


def test_multi_tag_and_host_bits_come_from_topic_and_addresses(replica: Replica) -> None:
    replica.intake.put_ops([replica.intake.topic_op("tags", read_queues=1, write_queues=1, filter_type=1)])
    replica.put(topic=b"tags", born_host=host_bytes("[2001:db8::1]:99"), sys_flag=0x20)
    replica.put(topic=b"plain", sys_flag=0x2 | 0x10)
    replica.flush()
    tagged, plain = replica.records()
    assert tagged.sys_flag == 0x2 | 0x10
    assert plain.sys_flag == 0
    assert len(tagged.born_host) == 20


def test_a_message_without_unique_id_gets_one_behind_a_separator(replica: Replica) -> None:
    replica.put(properties=b"KEYS\x01k")
    replica.flush()
    (record,) = replica.records()
    assert record.properties == b"KEYS\x01k\x02UNIQ_KEY\x01BROKER%026d\x02" % 1


def test_without_room_for_a_unique_id_a_message_has_none_and_is_not_checked(replica: Replica) -> None:
    for _ in range(2):
        replica.put(properties=b"KEYS\x01" + b"k" * 32_750)
    replica.flush()
    assert len(replica.records()) == 2
    assert all(len(record.properties) == 32_755 for record in replica.records())


def test_a_negative_queue_id_is_picked_in_rotation(replica: Replica) -> None:
    for _ in range(8):
        replica.put(queue_id=-1, default_queues=4)
    replica.flush()
    assert sorted(record.queue_id for record in replica.records()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_store_time_never_goes_back(replica: Replica) -> None:
    replica.put()
    replica.clock.now_ms -= 5000
    replica.put()
    replica.flush()
    first, second = replica.records()
    assert second.store_ms == first.store_ms
    replica.intake.end_term()
    replica.lead()
    replica.put()
    replica.flush()
    assert replica.records()[2].store_ms == first.store_ms


def test_a_batch_is_one_entry_in_one_queue_with_one_answer(replica: Replica) -> None:
    client = Client()
    replica.put(queue_id=1)
    elements = [BatchElement(b"%d" % n, b"UNIQ_KEY\x01B%d" % n, n) for n in range(3)]
    replica.put_elements(elements, client, queue_id=1)
    (entry,) = replica.flush()
    records = records_of(entry)[1:]
    assert [(bytes(record.body), record.flag, record.queue_offset) for record in records] == [
        (b"0", 0, 1), (b"1", 1, 2), (b"2", 2, 3),
    ]  # fmt: skip
    (answer,) = client.take()
    assert (answer.ext["queueId"], answer.ext["queueOffset"]) == ("1", "1")
    ids = [parse_offset_message_id(each)[1] for each in answer.ext["msgId"].split(",")]
    assert ids == [record.position for record in records]


def test_an_empty_batch_is_refused(replica: Replica) -> None:
    with pytest.raises(Refused):
        replica.put_elements([], Client())


def test_lost_and_unknown_have_codes_for_foreign_clients_and_for_ours(replica: Replica) -> None:
    for outcome, foreign, ours in (
        (LOST, ResponseCode.SERVICE_NOT_AVAILABLE, ResponseCode.NOT_STORED),
        (UNKNOWN, ResponseCode.SYSTEM_ERROR, ResponseCode.OUTCOME_UNKNOWN),
    ):
        client = Client()
        replica.put(client)
        replica.intake.put(message(), client.answer(ours=True))
        replica.intake.put(message(), client.answer(oneway=True))
        replica.take()
        replica.settle(outcome)
        answers = client.take()
        assert [answer.code for answer in answers] == [foreign, ours]
        assert [answer.ext["leaderAddr"] for answer in answers] == ["10.0.0.2:10911"] * 2


def test_answers_of_an_entry_reach_a_connection_in_one_send(replica: Replica) -> None:
    one, two = Client(), Client()
    for client in (one, two, one, one):
        replica.put(client)
    replica.flush()
    assert [(client.sends, len(client.got)) for client in (one, two)] == [(1, 3), (1, 1)]


def test_the_end_of_a_term_loses_what_was_not_taken_and_only_that(replica: Replica) -> None:
    client = Client()
    replica.put(client)
    replica.take()
    replica.put(client)
    replica.intake.end_term()
    assert [(answer.opaque, answer.code) for answer in client.take()] == [(2, ResponseCode.SERVICE_NOT_AVAILABLE)]
    replica.settle()
    assert [(answer.opaque, answer.code) for answer in client.take()] == [(1, 0)]
    with pytest.raises(NotLeader):
        replica.put(client)


def test_no_room_means_busy_once_a_batch(replica: Replica) -> None:
    replica.put()
    replica.owner.has_room = False
    replica.put()
    replica.take()
    with pytest.raises(Busy):
        replica.put()
    replica.owner.has_room = True
    replica.put()


def test_own_messages_of_several_topics_and_ops_are_one_entry(replica: Replica) -> None:
    replica.put(topic=b"a")
    replica.put(topic=b"b")
    replica.flush()
    outcomes: list[object] = []
    replica.intake.put_batch(
        [message(topic=b"a", own=True), message(topic=b"b", own=True), message(topic=b"a", own=True)],
        ops=[replica.intake.topic_op("c", read_queues=1, write_queues=1)],
        settled=outcomes.append,
    )
    (entry,) = replica.flush()
    assert [(record.topic, record.queue_offset) for record in records_of(entry)] == [(b"a", 1), (b"b", 1), (b"a", 2)]
    assert replica.state.topics.get(b"c") is not None
    assert len(outcomes) == 1
    with pytest.raises(Refused):
        replica.intake.put_batch([message(topic=b"unknown", own=True)])
    assert not replica.intake.has_work()
