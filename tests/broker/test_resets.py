"""Offsets of a running consumer group are moved: in the log, and at its members."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.broker.cluster import open_cluster, until
from tests.broker.support import START_MS, User, messages, open_local, open_user
from trimq.wire.body.lock import MQ
from trimq.wire.body.reset import (
    consumer_table_body,
    queue_table_body,
    read_consumer_table,
    read_reset_body,
    reset_body,
)
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.offset import QueryOffsetHeader, UpdateOffsetHeader
from trimq.wire.headers.reset import ResetOffsetHeader


async def filled(user: User, count: int = 10) -> None:
    for number in range(count):
        await user.send("T", b"%d" % number)
    await user.pull("T", 0, count - 1, hold_ms=5_000, group="reader")


async def committed(user: User, group: str = "g") -> int:
    header = QueryOffsetHeader(consumer_group=group, topic="T", queue_id=0)
    return int((await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, header.to_ext())).ext["offset"])


async def commit(user: User, offset: int, group: str = "g") -> None:
    header = UpdateOffsetHeader(consumer_group=group, topic="T", queue_id=0, commit_offset=offset)
    assert (await user.ask(RequestCode.UPDATE_CONSUMER_OFFSET, header.to_ext())).code == ResponseCode.SUCCESS


async def reset(user: User, **fields: object) -> Command:
    header = ResetOffsetHeader(**{"topic": "T", "group": "g", "queue_id": 0, **fields})  # type: ignore[arg-type]
    return await user.ask(RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, header.to_ext())


@pytest.mark.parametrize("target", [2, 10])
@pytest.mark.trio
async def test_a_running_consumer_is_moved_back_and_forth_at_its_next_or_held_pull(
    autojump_clock: MockClock, target: int
) -> None:
    async with open_local() as (replica, user, world), open_user(world, replica.address) as consumer:
        await filled(user)
        await commit(consumer, 5)
        answers: list[Command] = []

        async def wait() -> None:
            answers.append(await consumer.pull("T", 0, 10 if target == 2 else 5, hold_ms=15_000, tags="none"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.5)
            done = await reset(user, offset=target)
        assert read_reset_body(done.body) == {MQ(brokerName="broker-a", queueId=0, topic="T"): target}
        if target == 2:
            (moved,) = answers
        else:
            moved = await consumer.pull("T", 0, 7)
        assert (moved.code, moved.ext["nextBeginOffset"]) == (ResponseCode.PULL_OFFSET_MOVED, str(target))
        await commit(consumer, 7)
        assert await committed(user) == target, "a late commit of the old place counts for nothing"
        there = await consumer.pull("T", 0, target, hold_ms=100)
        assert there.code in (ResponseCode.SUCCESS, ResponseCode.PULL_NOT_FOUND)
        if target == 2:
            await commit(consumer, 4)
            assert await committed(user) == 4, "from the new place on commits count again"


@pytest.mark.trio
async def test_a_reset_by_time_and_to_the_end(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"0")
        await trio.sleep(2)
        await filled(user, 5)
        await commit(user, 6)
        stored = messages(await user.pull("T", 0, 1, group="reader"))[0].store_ms
        assert stored > START_MS
        await reset(user, timestamp=stored)
        assert await committed(user) == 1
        await reset(user, timestamp=0)
        assert await committed(user) == 0
        await reset(user, timestamp=-1, queue_id=-1)
        assert await committed(user) == 6
        await reset(user, timestamp=-1, is_force=False)
        assert await committed(user) == 6
        await reset(user, timestamp=0)
        await reset(user, timestamp=-1, is_force=False)
        assert await committed(user) == 0, "without force it only goes back"


@pytest.mark.trio
async def test_bad_resets_are_refused_with_rocketmqs_codes(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await filled(user)
        await commit(user, 3)
        for fields, code, words in (
            ({"topic": "none"}, ResponseCode.TOPIC_NOT_EXIST, "create it"),
            ({"group": "none"}, ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, "first heartbeat"),
            ({"queue_id": 99}, ResponseCode.INVALID_PARAMETER, "read queues 0 to"),
            ({"offset": 11}, ResponseCode.INVALID_PARAMETER, "holds 0 to 10"),
        ):
            answer = await reset(user, **fields)
            assert (answer.code, words in answer.remark) == (code, True), answer.remark
        assert await committed(user) == 3


@pytest.mark.trio
async def test_with_client_side_resets_every_member_is_told_in_its_language(autojump_clock: MockClock) -> None:
    async with open_local(server_side_reset=False) as (replica, user, world):
        await filled(user)
        await commit(user, 3)
        nobody = await reset(user, offset=1)
        assert nobody.code == ResponseCode.CONSUMER_NOT_ONLINE
        async with open_user(world, replica.address) as member:
            await member.heartbeat("c1", "g", {"T": "*"})
            member.notices.clear()
            await reset(user, offset=1)
            await until(lambda: member.notices)
            (told,) = [each for each in member.notices if each.code == RequestCode.RESET_CONSUMER_CLIENT_OFFSET]
            assert (told.ext["group"], told.ext["topic"], told.is_oneway) == ("g", "T", True)
            assert read_reset_body(told.body) == {MQ(brokerName="broker-a", queueId=0, topic="T"): 1}


@pytest.mark.trio
async def test_a_clone_continues_where_its_source_is(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await filled(user)
        await commit(user, 7)
        answer = await user.ask(RequestCode.CLONE_GROUP_OFFSET, {"srcGroup": "g", "destGroup": "h"})
        assert answer.code == ResponseCode.SUCCESS
        assert await committed(user, "h") == 7
        none = await user.ask(RequestCode.CLONE_GROUP_OFFSET, {"srcGroup": "none", "destGroup": "h"})
        assert none.code == ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST


@pytest.mark.trio
async def test_members_are_asked_where_they_are(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await filled(user)
        ext = {"topic": "T", "group": "g", "clientAddr": ""}
        nobody = await user.ask(RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS, ext)
        assert (nobody.code, "No Any Consumer online" in nobody.remark) == (ResponseCode.SYSTEM_ERROR, True)
        await user.heartbeat("c1", "g", {"T": "*"})
        silent = await user.ask(RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS, ext)
        assert (silent.code, read_consumer_table(silent.body)) == (ResponseCode.SUCCESS, {})


@pytest.mark.trio
async def test_a_reset_survives_a_failover(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        async with open_user(cluster.world, leader.replica().address) as user:
            await filled(user)
            await commit(user, 8)
            assert (await reset(user, offset=3)).code == ResponseCode.SUCCESS
        await leader.kill()
        successor = await cluster.ready()
        async with open_user(cluster.world, successor.replica().address) as user:
            moved = await user.pull("T", 0, 8)
            assert (moved.code, moved.ext["nextBeginOffset"]) == (ResponseCode.PULL_OFFSET_MOVED, "3")
            await commit(user, 9)
            assert await committed(user) == 3
            assert (await user.pull("T", 0, 3)).code == ResponseCode.SUCCESS


def test_the_three_forms_of_the_table() -> None:
    table = {MQ(brokerName="b-0", queueId=3, topic="T"): 5}
    assert reset_body(table, "GO") == b'{"offsetTable":{{"brokerName":"b-0","queueId":3,"topic":"T"}:5}}'
    assert reset_body(table, "CPP") == b'{"offsetTable":[{"brokerName":"b-0","queueId":3,"topic":"T","offset":5}]}'
    for language in ("JAVA", "GO", "CPP"):
        assert read_reset_body(reset_body(table, language)) == table
    assert read_consumer_table(consumer_table_body({"c": table})) == {"c": table}
    assert b"messageQueueTable" in queue_table_body(table)
