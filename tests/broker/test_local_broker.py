"""A whole broker with one local replica, driven by frames."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from broker.service.holding import SLOT_S
from tests.broker.support import START_MS, LoopClock, User, World, drained, messages, open_local, open_user
from trimq.message.batch import BatchElement, encode_batch
from trimq.message.model import MessageExt
from trimq.wire.body.consumer_list import ConsumerIdList
from trimq.wire.body.lock import MQ, LockRequest, LockResponse
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import FLAG_ONEWAY, Command
from trimq.wire.headers.admin import CreateTopicHeader
from trimq.wire.headers.client import ConsumerListHeader, UnregisterClientHeader
from trimq.wire.headers.offset import GetMaxOffsetHeader, QueryOffsetHeader, SearchOffsetHeader, UpdateOffsetHeader
from trimq.wire.headers.query import QueryMessageHeader, ViewMessageHeader
from trimq.wire.headers.send import SendHeader

pytestmark = pytest.mark.trio


# --- send and pull


async def test_a_message_is_stored_and_pulled_byte_for_byte(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        sent = await user.send("T", b"hello", props={"TAGS": "A", "KEYS": "k1", "UNIQ_KEY": "U1"})
        assert sent.code == ResponseCode.SUCCESS
        assert (sent.ext["queueId"], sent.ext["queueOffset"]) == ("0", "0")
        answer = await user.pull("T", 0, 0)
        assert answer.code == ResponseCode.SUCCESS
        assert answer.ext["nextBeginOffset"] == "1"
        assert set(answer.ext) >= {"suggestWhichBrokerId", "nextBeginOffset", "minOffset", "maxOffset"}
        (message,) = messages(answer)
        assert message.body == b"hello"
        assert message.topic == "T"
        assert message.properties["TAGS"] == "A"


async def test_an_acknowledged_message_is_readable_by_a_pull_that_does_not_wait(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        for number in range(20):
            await user.send("T", b"%d" % number)
            answer = await user.pull("T", 0, number)
            assert [message.body for message in messages(answer)] == [b"%d" % number]


async def test_a_held_pull_is_answered_when_a_matching_message_arrives(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, world), open_user(world, replica.address) as other:
        await user.send("T", b"0", props={"TAGS": "A"})
        got: list[Command] = []
        began = trio.current_time()

        async def wait() -> None:
            got.append(await other.pull("T", 0, 1, tags="B", hold_ms=15_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(1)
            await user.send("T", b"1", props={"TAGS": "A"})
            await trio.sleep(1)
            assert not got
            await user.send("T", b"2", props={"TAGS": "B"})
        assert [message.body for message in messages(got[0])] == [b"2"]
        assert got[0].ext["nextBeginOffset"] == "3"
        assert trio.current_time() - began < 5


async def test_a_held_pull_ends_at_its_deadline_with_not_found(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"0")
        began = trio.current_time()
        answer = await user.pull("T", 0, 1, hold_ms=5_000)
        assert answer.code == ResponseCode.PULL_NOT_FOUND
        assert answer.ext["nextBeginOffset"] == "1"
        assert 5.0 <= trio.current_time() - began <= 5.0 + 4 * SLOT_S


async def test_at_the_deadline_what_did_not_match_is_skipped(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"0", props={"TAGS": "A"})
        answer = await user.pull("T", 0, 0, tags="B", hold_ms=3_000)
        assert answer.code == ResponseCode.PULL_RETRY_IMMEDIATELY
        assert answer.ext["nextBeginOffset"] == "1"


@pytest.mark.parametrize(("offset", "code", "following"), [(5, 21, "1"), (1, 19, "1")])
async def test_where_an_offset_outside_the_queue_is_sent(
    autojump_clock: MockClock, offset: int, code: int, following: str
) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"0")
        await user.pull("T", 0, 0)
        answer = await user.pull("T", 0, offset)
        assert (answer.code, answer.ext["nextBeginOffset"]) == (code, following)


async def test_an_empty_queue_answers_by_the_offset_asked_for(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"0", queue=0)
        await user.pull("T", 0, 0)
        assert (await user.pull("T", 1, 0)).code == ResponseCode.PULL_NOT_FOUND
        moved = await user.pull("T", 1, 7)
        assert (moved.code, moved.ext["nextBeginOffset"]) == (ResponseCode.PULL_OFFSET_MOVED, "0")


async def test_a_batch_is_expanded_in_one_queue_with_consecutive_offsets(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        body = encode_batch([BatchElement(b"%d" % n, b"UNIQ_KEY\x01B%d\x02" % n) for n in range(5)])
        sent = await user.send("T", body, batch=True)
        assert sent.code == ResponseCode.SUCCESS
        assert len(sent.ext["msgId"].split(",")) == 5
        answer = await user.pull("T", 0, 0)
        assert [message.body for message in messages(answer)] == [b"%d" % n for n in range(5)]
        assert [message.queue_offset for message in messages(answer)] == list(range(5))


async def test_selection_limits_count_and_bytes_but_return_at_least_one(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", bytes(300_000))
        for _ in range(40):
            await user.send("T", b"x")
        assert len(messages(await user.pull("T", 0, 0))) == 1
        assert len(messages(await user.pull("T", 0, 1, count=1000))) == 32
        assert len(messages(await user.pull("T", 0, 1, count=3))) == 3


async def test_a_thousand_pulls_at_once_do_not_pile_up_answers(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        for _ in range(40):
            await user.send("T", bytes(250_000))
        await user.pull("T", 0, 39, hold_ms=5_000)
        codes: list[int] = []

        async def pull(offset: int) -> None:
            codes.append((await user.pull("T", 0, offset)).code)

        async with trio.open_nursery() as nursery:
            for number in range(600):  # 150 MB in all; a connection may have 64 MiB queued
                nursery.start_soon(pull, number % 40)
        assert codes == [0] * 600


async def test_a_client_that_said_hello_may_pull_more_at_once(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        for _ in range(100):
            await user.send("T", b"x")
        hello = await user.ask(RequestCode.HELLO, {"features": "seq,hint", "client": "c"})
        assert hello.code == ResponseCode.SUCCESS
        assert "seq" in hello.ext["features"].split(",")
        assert len(messages(await user.pull("T", 0, 0, count=100))) == 100


async def test_a_numbered_send_repeated_is_stored_once(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        first = await user.send("T", b"a", pid="00000000000000ab", pe=0, ps=0, pf=0)
        again = await user.send("T", b"a", pid="00000000000000ab", pe=0, ps=0, pf=0)
        assert again.ext["queueOffset"] == first.ext["queueOffset"]
        assert again.ext["dup"] == "1"
        ahead = await user.send("T", b"b", pid="00000000000000ab", pe=0, ps=5, pf=0)
        assert (ahead.code, ahead.ext["next"]) == (ResponseCode.OUT_OF_SEQUENCE, "1")


# --- refusals


async def refused(user_answer: Command, code: int, words: str) -> None:
    assert user_answer.code == code, user_answer
    assert words in user_answer.remark


async def test_sends_are_refused_with_rocketmqs_codes(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await refused(await user.send("bad topic!", b""), ResponseCode.INVALID_PARAMETER, "contains ' '")
        await refused(await user.send("SCHEDULE_TOPIC_XXXX", b""), ResponseCode.NO_PERMISSION, "reserved")
        await refused(
            await user.send("%RETRY%nobody", b""), ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, "does not exist"
        )
        await user.send("T", b"")
        await refused(await user.send("T", b"", queue=99), ResponseCode.INVALID_PARAMETER, "out of range")
        await refused(await user.send("T", bytes((4 << 20) + 1)), ResponseCode.MESSAGE_ILLEGAL, "maxMessageSize")
        await refused(await user.send("T", b"", props={"TIMER_DELAY_SEC": "x"}), ResponseCode.MESSAGE_ILLEGAL, "TIMER")
        await refused(await user.send("T", b"xx", batch=True), ResponseCode.MESSAGE_ILLEGAL, "batch")


async def test_topics_are_not_created_where_that_is_off(autojump_clock: MockClock) -> None:
    async with open_local(auto_create_topic=False) as (_, user, _world):
        await refused(await user.send("T", b""), ResponseCode.TOPIC_NOT_EXIST, "create")
        await refused(await user.pull("T", 0, 0), ResponseCode.TOPIC_NOT_EXIST, "create")


async def test_a_read_only_broker_refuses_sends(autojump_clock: MockClock) -> None:
    async with open_local(permission=4) as (_, user, _world):
        await refused(await user.send("T", b""), ResponseCode.NO_PERMISSION, "read only")


async def test_pulls_are_refused_with_rocketmqs_codes(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"")
        await refused(await user.pull("nope", 0, 0), ResponseCode.TOPIC_NOT_EXIST, "does not exist")
        await refused(await user.pull("T", 99, 0), ResponseCode.INVALID_PARAMETER, "out of range")
        await refused(await user.pull("T", 0, 0, own=False), ResponseCode.SUBSCRIPTION_NOT_EXIST, "heartbeat")
        await refused(await user.pull("T", 0, 0, tags="||"), ResponseCode.SUBSCRIPTION_PARSE_FAILED, "names no tag")
        await user.heartbeat("c1", "g", {"other": "*"})
        await refused(await user.pull("T", 0, 0, own=False), ResponseCode.SUBSCRIPTION_NOT_EXIST, "does not subscribe")


async def test_unknown_codes_bad_headers_and_configuration_writes(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        unknown = await user.ask(4711)
        assert unknown.code == ResponseCode.REQUEST_CODE_NOT_SUPPORTED
        assert "4711" in unknown.remark
        await refused(await user.ask(RequestCode.PULL_MESSAGE, {"topic": "T"}), ResponseCode.SYSTEM_ERROR, "PullHeader")
        await refused(await user.ask(RequestCode.GET_MAX_OFFSET, {}), ResponseCode.SYSTEM_ERROR, "GetMaxOffsetHeader")
        await refused(await user.ask(RequestCode.HEART_BEAT, {}, b"{"), ResponseCode.SYSTEM_ERROR, "")
        await refused(
            await user.ask(RequestCode.UPDATE_BROKER_CONFIG, {}, b"x=1"), ResponseCode.NO_PERMISSION, "change its file"
        )


async def test_oneway_requests_are_never_answered(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        header = SendHeader(producer_group="p", topic="T", queue_id=0, sys_flag=0, born_timestamp=START_MS)
        await user.client.oneway(
            user.address, Command(code=RequestCode.SEND_MESSAGE, ext=header.to_ext(), body=b"o", flag=FLAG_ONEWAY)
        )
        await user.client.oneway(user.address, Command(code=4711, flag=FLAG_ONEWAY))
        answer = await user.ask(RequestCode.GROUP_STATUS)
        assert answer.code == ResponseCode.SUCCESS
        assert [message.body for message in messages(await user.pull("T", 0, 0, hold_ms=5_000))] == [b"o"]


# --- consumers


def offset_of(answer: Command) -> int:
    assert answer.code == ResponseCode.SUCCESS, answer
    return int(answer.ext["offset"])


async def test_offsets_are_committed_and_asked_for(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        for _ in range(5):
            await user.send("T", b"x")
        query = QueryOffsetHeader(consumer_group="g", topic="T", queue_id=0).to_ext()
        assert offset_of(await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, query)) == 0
        update = UpdateOffsetHeader(consumer_group="g", topic="T", queue_id=0, commit_offset=3).to_ext()
        assert (await user.ask(RequestCode.UPDATE_CONSUMER_OFFSET, update)).code == ResponseCode.SUCCESS
        assert offset_of(await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, query)) == 3
        negative = UpdateOffsetHeader(consumer_group="g", topic="T", queue_id=0, commit_offset=-1).to_ext()
        assert (await user.ask(RequestCode.UPDATE_CONSUMER_OFFSET, negative)).code == ResponseCode.SUCCESS
        assert offset_of(await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, query)) == 3
        await user.pull("T", 0, 5, commit=5)
        await trio.sleep(1)
        assert offset_of(await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, query)) == 5


async def test_an_unknown_topic_has_no_offset_and_queues_have_ends(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        query = QueryOffsetHeader(consumer_group="g", topic="nope", queue_id=0).to_ext()
        assert (await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, query)).code == ResponseCode.QUERY_NOT_FOUND
        await user.send("T", b"0")
        await trio.sleep(5)
        between = LoopClock().wall_ms()
        await trio.sleep(5)
        await user.send("T", b"1")
        end = GetMaxOffsetHeader(topic="T", queue_id=0).to_ext()
        assert offset_of(await user.ask(RequestCode.GET_MAX_OFFSET, end)) == 2
        assert offset_of(await user.ask(RequestCode.GET_MIN_OFFSET, end)) == 0
        middle = SearchOffsetHeader(topic="T", queue_id=0, timestamp=between).to_ext()
        assert offset_of(await user.ask(RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, middle)) == 1
        earliest = await user.ask(RequestCode.GET_EARLIEST_MSG_STORETIME, end)
        assert int(earliest.ext["timestamp"]) >= START_MS


async def test_a_heartbeat_creates_the_group_its_retry_topic_and_tells_every_member(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, world), open_user(world, replica.address) as other:
        assert (await user.heartbeat("c1", "g", {"T": "*"})).code == ResponseCode.SUCCESS
        assert replica.state.groups.get("g") is not None
        assert replica.state.topics.get(b"%RETRY%g") is not None
        await other.heartbeat("c2", "g", {"T": "*"})
        await trio.sleep(0.5)
        assert [notice.code for notice in user.notices] == [40, 40]
        assert [notice.ext["consumerGroup"] for notice in other.notices] == ["g"]
        await other.heartbeat("c2", "g", {"T": "*"})
        await trio.sleep(0.5)
        assert len(user.notices) == 2
        listed = await user.ask(RequestCode.GET_CONSUMER_LIST_BY_GROUP, ConsumerListHeader(consumer_group="g").to_ext())
        assert ConsumerIdList.from_json(listed.body).consumerIdList == ["c1", "c2"]
        await trio.sleep(3)
        group = replica.state.groups.get("g")
        assert group is not None
        assert replica.state.members.get(group.gid) == ("c1", "c2")
        goodbye = UnregisterClientHeader(client_id="c2", consumer_group="g").to_ext()
        await other.ask(RequestCode.UNREGISTER_CLIENT, goodbye)
        await trio.sleep(3)
        assert replica.state.members.get(group.gid) == ("c1",)


async def test_a_closed_connection_leaves_its_groups(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, world):
        await user.heartbeat("c1", "g", {"T": "*"})
        async with open_user(world, replica.address) as other:
            await other.heartbeat("c2", "g", {"T": "*"})
            await trio.sleep(2)
        await trio.sleep(3)
        found = replica.clients.consumer_group("g")
        assert found is not None
        assert found.client_ids == ["c1"]
        assert user.notices


async def test_a_pull_uses_the_subscription_of_its_own_connection(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, world), open_user(world, replica.address) as other:
        await user.send("T", b"a", props={"TAGS": "A"})
        await user.send("T", b"b", props={"TAGS": "B"})
        await user.heartbeat("c1", "g", {"T": "A"})
        await other.heartbeat("c2", "g", {"T": "B"}, version=2)
        assert [m.body for m in messages(await user.pull("T", 0, 0, own=False))] == [b"a"]
        assert [m.body for m in messages(await other.pull("T", 0, 0, own=False))] == [b"b"]


async def test_unknown_groups_are_left_out_where_creation_is_off(autojump_clock: MockClock) -> None:
    async with open_local(auto_create_group=False) as (replica, user, _world):
        assert (await user.heartbeat("c1", "g", {"T": "*"})).code == ResponseCode.SUCCESS
        assert replica.clients.consumer_group("g") is None
        await user.send("T", b"x")
        await refused(await user.pull("T", 0, 0), ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, "create it")
        body = b'{"groupName":"g"}'
        assert (await user.ask(RequestCode.UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, {}, body)).code == ResponseCode.SUCCESS
        assert (await user.pull("T", 0, 0)).code == ResponseCode.SUCCESS


async def test_locks_belong_to_one_client_until_they_expire(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"x")
        queues = [MQ(brokerName="broker-a", queueId=n, topic="T") for n in range(2)]

        async def lock(client: str) -> list[int]:
            body = LockRequest(clientId=client, consumerGroup="g", mqSet=queues).to_json()
            answer = await user.ask(RequestCode.LOCK_BATCH_MQ, body=body)
            assert answer.code == ResponseCode.SUCCESS, answer
            return [mq.queueId for mq in LockResponse.from_json(answer.body).lockOKMQSet]

        assert await lock("c1") == [0, 1]
        assert await lock("c2") == []
        assert await lock("c1") == [0, 1]
        release = LockRequest(clientId="c1", consumerGroup="g", mqSet=queues[:1]).to_json()
        assert (await user.ask(RequestCode.UNLOCK_BATCH_MQ, body=release)).code == ResponseCode.SUCCESS
        assert await lock("c2") == [0]
        await trio.sleep(61)
        assert await lock("c2") == [0, 1]


# --- delay, retry, dead letters


async def test_a_delayed_message_arrives_when_it_is_due(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"warm")
        began = trio.current_time()
        sent = await user.send("T", b"later", props={"DELAY": "2", "UNIQ_KEY": "D1"})
        assert sent.code == ResponseCode.SUCCESS
        answer = await user.pull("T", 0, 1, hold_ms=20_000)
        (message,) = messages(answer)
        assert message.body == b"later"
        assert 5.0 <= trio.current_time() - began <= 5.5


async def test_delays_survive_a_restart_and_nothing_is_delivered_twice(autojump_clock: MockClock) -> None:
    world = World()
    async with open_local(world) as (_, user, _world):
        await user.send("T", b"first", props={"DELAY": "1"})
        await user.send("T", b"second", props={"DELAY": "3"})
        await trio.sleep(3)
    async with open_local(world) as (_, user, _world):
        await trio.sleep(20)
        assert [message.body for message in await drained(user, "T", 0, 2)] == [b"first", b"second"]
        assert (await user.pull("T", 0, 2)).code == ResponseCode.PULL_NOT_FOUND


async def send_back(user: User, message: MessageExt, *, group: str = "g", times: int = 16) -> Command:
    ext = {
        "offset": str(message.position),
        "group": group,
        "delayLevel": "0",
        "originMsgId": "",
        "originTopic": "T",
        "maxReconsumeTimes": str(times),
    }
    return await user.ask(RequestCode.CONSUMER_SEND_MSG_BACK, ext)


async def test_a_message_sent_back_returns_through_the_retry_topic(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.heartbeat("c1", "g", {"T": "*"})
        await user.send("T", b"x", props={"UNIQ_KEY": "R1"})
        (message,) = messages(await user.pull("T", 0, 0))
        began = trio.current_time()
        assert (await send_back(user, message)).code == ResponseCode.SUCCESS
        (again,) = messages(await user.pull("%RETRY%g", 0, 0, hold_ms=20_000))
        assert again.reconsume_times == 1
        assert again.body == b"x"
        assert again.properties["RETRY_TOPIC"] == "T"
        assert again.properties["UNIQ_KEY"] == "R1"
        assert 10 <= trio.current_time() - began < 12


async def test_after_the_last_attempt_a_message_is_a_dead_letter(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.heartbeat("c1", "g", {"T": "*"})
        await user.send("T", b"x")
        (message,) = messages(await user.pull("T", 0, 0))
        assert (await send_back(user, message, times=0)).code == ResponseCode.SUCCESS
        (dead,) = messages(await user.pull("%DLQ%g", 0, 0, hold_ms=5_000))
        assert dead.body == b"x"
        assert (await send_back(user, message, group="nobody")).code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST


async def test_send_back_of_a_position_that_holds_no_message_is_refused(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.heartbeat("c1", "g", {"T": "*"})
        ext = {"offset": "12345678", "group": "g", "delayLevel": "0"}
        await refused(await user.ask(RequestCode.CONSUMER_SEND_MSG_BACK, ext), ResponseCode.SYSTEM_ERROR, "no message")


# --- finding messages, topics, restart


async def test_messages_are_found_by_key_id_and_position(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"x", props={"KEYS": "k1 k2", "UNIQ_KEY": "U1"})
        (message,) = messages(await user.pull("T", 0, 0))

        async def find(key: str, *, unique: bool) -> Command:
            header = QueryMessageHeader(
                topic="T", key=key, max_num=10, begin_timestamp=0, end_timestamp=1 << 62, unique_key=unique
            )
            return await user.ask(RequestCode.QUERY_MESSAGE, header.to_ext())

        assert [m.body for m in messages(await find("k2", unique=False))] == [b"x"]
        assert [m.body for m in messages(await find("U1", unique=True))] == [b"x"]
        assert (await find("k2", unique=True)).code == ResponseCode.QUERY_NOT_FOUND
        viewed = await user.ask(RequestCode.VIEW_MESSAGE_BY_ID, ViewMessageHeader(offset=message.position).to_ext())
        assert messages(viewed)[0].body == b"x"
        nowhere = await user.ask(RequestCode.VIEW_MESSAGE_BY_ID, ViewMessageHeader(offset=3).to_ext())
        await refused(nowhere, ResponseCode.SYSTEM_ERROR, "can not find message")


async def test_topics_are_created_changed_listed_and_deleted(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, _world):
        header = CreateTopicHeader(topic="T", read_queue_nums=4, write_queue_nums=4, perm=6)
        assert (await user.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, header.to_ext())).code == ResponseCode.SUCCESS
        info = replica.state.topics.get(b"T")
        assert info is not None
        assert info.write_queues == 4
        bad = CreateTopicHeader(topic="T", read_queue_nums=0, write_queue_nums=4, perm=6)
        await refused(
            await user.ask(RequestCode.UPDATE_AND_CREATE_TOPIC, bad.to_ext()),
            ResponseCode.INVALID_PARAMETER,
            "readQueueNums",
        )
        stats = await user.ask(RequestCode.GET_TOPIC_STATS_INFO, {"topic": "T"})
        assert stats.code == ResponseCode.SUCCESS
        assert (await user.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "T"})).code == ResponseCode.SUCCESS
        assert replica.state.topics.get(b"T") is None
        await refused(
            await user.ask(RequestCode.DELETE_TOPIC_IN_BROKER, {"topic": "TBW102"}),
            ResponseCode.INVALID_PARAMETER,
            "belongs to the system",
        )


async def test_admin_answers_have_bodies(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.heartbeat("c1", "g", {"T": "*"})
        await user.send("T", b"x")
        update = UpdateOffsetHeader(consumer_group="g", topic="T", queue_id=0, commit_offset=1).to_ext()
        await user.ask(RequestCode.UPDATE_CONSUMER_OFFSET, update)
        for code, ext in (
            (RequestCode.GET_ALL_TOPIC_CONFIG, {}),
            (RequestCode.GET_ALL_SUBSCRIPTIONGROUP_CONFIG, {}),
            (RequestCode.GET_BROKER_RUNTIME_INFO, {}),
            (RequestCode.GET_BROKER_CONFIG, {}),
            (RequestCode.GROUP_STATUS, {}),
            (RequestCode.GET_TOPIC_CONFIG, {"topic": "T"}),
            (RequestCode.GET_SYSTEM_TOPIC_LIST_FROM_BROKER, {}),
            (RequestCode.GET_CONSUME_STATS, {"consumerGroup": "g"}),
            (RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": "g"}),
            (RequestCode.QUERY_TOPIC_CONSUME_BY_WHO, {"topic": "T"}),
            (RequestCode.GET_SUBSCRIPTIONGROUP_CONFIG, {"group": "g"}),
        ):
            answer = await user.ask(code, dict(ext))
            assert answer.code == ResponseCode.SUCCESS, (code, answer)
            assert answer.body
        assert (await user.ask(RequestCode.DELETE_SUBSCRIPTIONGROUP, {"groupName": "g"})).code == ResponseCode.SUCCESS


async def test_everything_is_there_again_after_a_restart(autojump_clock: MockClock) -> None:
    world = World()
    async with open_local(world) as (_, user, _world):
        for number in range(10):
            await user.send("T", b"%d" % number)
        update = UpdateOffsetHeader(consumer_group="g", topic="T", queue_id=0, commit_offset=7).to_ext()
        await user.ask(RequestCode.UPDATE_CONSUMER_OFFSET, update)
    async with open_local(world) as (_, user, _world):
        assert [m.body for m in await drained(user, "T", 0, 10)] == [b"%d" % number for number in range(10)]
        query = QueryOffsetHeader(consumer_group="g", topic="T", queue_id=0).to_ext()
        assert offset_of(await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, query)) == 7
        sent = await user.send("T", b"10")
        assert sent.ext["queueOffset"] == "10"


async def test_the_locks_of_a_consumer_that_died_are_free_after_35_seconds(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, world):
        await user.send("T", b"x")

        async def lock(by: User, client: str) -> int:
            body = LockRequest(
                clientId=client, consumerGroup="g", mqSet=[MQ(topic="T", brokerName="broker-a", queueId=0)]
            )
            answer = await by.ask(RequestCode.LOCK_BATCH_MQ, body=body.to_json())
            return len(LockResponse.from_json(answer.body).lockOKMQSet)

        async with open_user(world, user.address) as dying:
            await dying.heartbeat("dies", "g", {"T": "*"})
            assert await lock(dying, "dies") == 1
        await user.heartbeat("next", "g", {"T": "*"})
        began = trio.current_time()
        while not await lock(user, "next"):  # noqa: ASYNC110  (as a client does)
            await trio.sleep(1)
        assert 34 <= trio.current_time() - began < 38
