"""Filters at a broker: what a subscription lets through, what it costs on the wire, what is refused and how."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.broker.support import User, messages, open_local, open_user
from trimq.wire.body.consumer_list import CheckClientRequest
from trimq.wire.body.heartbeat import RawSubscription
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.send import SendBackHeader

pytestmark = pytest.mark.trio


async def check(user: User, expression: str, kind: str = "SQL92") -> Command:
    subscription = RawSubscription(topic="T", subString=expression, expressionType=kind)
    body = CheckClientRequest(clientId="c", group="g", subscriptionData=subscription).to_json()
    return await user.ask(RequestCode.CHECK_CLIENT_CONFIG, body=body)


async def read(user: User, expression: str, *, kind: str = "SQL92", end: int) -> tuple[list[bytes], int]:
    """All bodies that a filter lets through, and the bytes of all answers."""
    found: list[bytes] = []
    at = size = 0
    while at < end:
        answer = await user.pull("T", 0, at, tags=expression, kind=kind, count=1000)
        assert answer.code in (ResponseCode.SUCCESS, ResponseCode.PULL_RETRY_IMMEDIATELY), answer
        found += [message.body for message in messages(answer)]
        size += len(answer.body)
        at = int(answer.ext["nextBeginOffset"])
    return found, size


async def test_a_condition_in_the_pull_selects_by_properties(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        for number in range(50):
            colour = "red" if number % 2 else "blue"
            await user.send("T", b"%d" % number, props={"price": str(number), "colour": colour})
        got, _ = await read(user, "price BETWEEN 10 AND 19 AND colour = 'red'", end=50)
        assert got == [b"%d" % number for number in range(11, 20, 2)]
        got, _ = await read(user, "weight IS NOT NULL", end=50)
        assert got == []


async def test_a_condition_in_the_heartbeat_is_used_by_pulls_that_bring_none(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"no", props={"price": "1"})
        await user.send("T", b"yes", props={"price": "11"})
        await user.heartbeat("c", "g", {"T": "price > 10"}, kind="SQL92", version=5)
        answer = await user.pull("T", 0, 0, own=False, version=5)
        assert [message.body for message in messages(answer)] == [b"yes"]
        assert answer.ext["nextBeginOffset"] == "2"
        stale = await user.pull("T", 0, 0, own=False, version=6)
        assert stale.code == ResponseCode.SUBSCRIPTION_NOT_LATEST
        await user.heartbeat("c", "g", {"T": "price >"}, kind="SQL92", version=7)
        broken = await user.pull("T", 0, 0, own=False, version=7)
        assert broken.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED


async def test_a_held_pull_wakes_for_a_message_that_matches_its_condition(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, world), open_user(world, replica.address) as other:
        await user.send("T", b"0", props={"price": "1"})
        got: list[Command] = []

        async def wait() -> None:
            got.append(await other.pull("T", 0, 1, tags="price > 10", kind="SQL92", hold_ms=15_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(1)
            await user.send("T", b"1", props={"price": "2"})
            await trio.sleep(1)
            assert not got
            await user.send("T", b"2", props={"price": "12"})
        assert [message.body for message in messages(got[0])] == [b"2"]
        assert got[0].ext["nextBeginOffset"] == "3"


async def test_a_filter_that_wants_one_in_a_hundred_moves_about_one_percent_of_the_bytes(
    autojump_clock: MockClock,
) -> None:
    async with open_local() as (_, user, _world):
        async with trio.open_nursery() as nursery:
            limit = trio.CapacityLimiter(64)

            async def send(number: int) -> None:
                async with limit:
                    hit = "rare" if number % 100 == 0 else f"t{number % 7}"
                    await user.send("T", b"x" * 200, props={"TAGS": hit, "price": str(number % 100)})

            for number in range(2_000):
                nursery.start_soon(send, number)
        _, whole = await read(user, "*", kind="TAG", end=2_000)
        for expression, kind in (("rare", "TAG"), ("price = 0", "SQL92")):
            found, size = await read(user, expression, kind=kind, end=2_000)
            assert len(found) == 20
            assert 0.009 < size / whole < 0.011


async def test_conditions_are_evaluated_on_messages_that_are_on_disk_only(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, _world):
        for number in range(300):
            await user.send("T" if number % 3 else "other", b"%d" % number, props={"n": str(number)})
        wanted, _ = await read(user, "n > 250", end=200)
        replica.store.log._recent.clear()  # as after a restart, or when the tail is far away
        again, _ = await read(user, "n > 250", end=200)
        assert wanted == again == [b"%d" % number for number in range(251, 300) if number % 3]


async def test_a_retried_message_comes_back_although_the_filter_does_not_want_it_any_more(
    autojump_clock: MockClock,
) -> None:
    async with open_local() as (_, user, _world):
        await user.heartbeat("c", "g", {"T": "price > 10", "%RETRY%g": "*"}, version=1)
        await user.send("T", b"failed", props={"price": "1"})
        (message,) = messages(await user.pull("T", 0, 0))
        header = SendBackHeader(offset=message.position, group="g", delay_level=1)
        assert (await user.ask(RequestCode.CONSUMER_SEND_MSG_BACK, header.to_ext())).code == 0
        answer = await user.pull("%RETRY%g", 0, 0, hold_ms=10_000)
        assert [each.body for each in messages(answer)] == [b"failed"]


async def test_refusals_of_filters_have_rocketmqs_codes_and_say_what_to_do(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await user.send("T", b"x")
        assert (await check(user, "price > 10")).code == ResponseCode.SUCCESS
        assert (await check(user, "A || B", "TAG")).code == ResponseCode.SUCCESS
        bad = await check(user, "price > 10 AND OR")
        assert bad.code == ResponseCode.SUBSCRIPTION_PARSE_FAILED
        assert "line 1, column 16" in bad.remark
        pulled = await user.pull("T", 0, 0, tags="price > 10 AND OR", kind="SQL92")
        assert (pulled.code, pulled.remark) == (bad.code, bad.remark)
        again = await user.pull("T", 0, 0, tags="price > 10 AND OR", kind="SQL92")
        assert (again.code, again.remark) == (bad.code, bad.remark)
        other = await user.pull("T", 0, 0, tags="x", kind="XPATH")
        assert other.code == ResponseCode.SYSTEM_ERROR
        assert "use TAG or SQL92" in other.remark


async def test_where_property_filters_are_off_they_are_refused(autojump_clock: MockClock) -> None:
    async with open_local(property_filter=False) as (_, user, _world):
        await user.send("T", b"x")
        for answer in (await check(user, "a = 1"), await user.pull("T", 0, 0, tags="a = 1", kind="SQL92")):
            assert answer.code == ResponseCode.SYSTEM_ERROR
            assert "enablePropertyFilter=true" in answer.remark
            assert answer.remark.startswith("The broker does not support consumer to filter message by SQL92")
