"""What silently loses messages is found: different subscriptions within a group, one client id twice."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock

from broker.metadata.conflicts import Doubles, differences
from broker.pages import make_pages
from tests.broker.support import open_local, open_user
from trimq.wire.codes import RequestCode, ResponseCode

DIFFERENT = "members of one consumer group subscribe differently"
TWICE = "one client id is used by several clients"


def said(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.message for record in caplog.records)


@pytest.mark.trio
async def test_different_subscriptions_are_said_once_counted_and_shown(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with open_local() as (replica, user, world), open_user(world, replica.address) as other:
        await user.heartbeat("c1", "g", {"T": "A || B", "%RETRY%g": "*"})
        await other.heartbeat("c2", "g", {"T": "B||A"})
        assert not said(caplog, DIFFERENT), "the same, written differently"
        for version in (2, 3, 4):
            await other.heartbeat("c2", "g", {"T": "A", "U": "*"}, version=version)
        assert said(caplog, DIFFERENT) == 1
        _, _, page = make_pages(replica.parts)["/metrics"]()
        assert b"trimq_groups_subscribed_differently" in page
        assert next(line for line in page.splitlines() if b"subscribed_differently{" in line).endswith(b" 1")
        shown = await user.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": "g"})
        assert shown.code == ResponseCode.SUCCESS
        assert "subscribe differently to T: A / A || B" in shown.remark
        assert "to U: * / not subscribed" in shown.remark
        await other.heartbeat("c2", "g", {"T": "A || B"}, version=5)
        shown = await user.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": "g"})
        assert shown.remark == ""
        assert replica.parts.members.conflicts == {}


@pytest.mark.trio
async def test_a_client_id_used_twice_is_said_once_and_shown(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with open_local() as (replica, user, world):
        async with open_user(world, replica.address) as other:
            for _ in range(3):
                await user.heartbeat("same", "g", {"T": "*"})
                await trio.sleep(5)
                await other.heartbeat("same", "g", {"T": "*"})
                await trio.sleep(10)
            assert said(caplog, TWICE) == 1
            shown = await user.ask(RequestCode.GET_CONSUMER_CONNECTION_LIST, {"consumerGroup": "g"})
            assert "client id same is used by several clients" in shown.remark
        await trio.sleep(11)
        assert replica.parts.members.doubled == frozenset(), "one of them is gone"


@pytest.mark.trio
async def test_a_client_that_reconnects_is_not_taken_for_two(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with open_local() as (replica, user, world), open_user(world, replica.address) as again:
        await user.heartbeat("c", "g", {"T": "*"})
        for _ in range(3):
            await trio.sleep(11)
            await again.heartbeat("c", "g", {"T": "*"})
        assert not said(caplog, TWICE)


@pytest.mark.trio
async def test_strict_brokers_refuse_the_odd_one_and_the_double(autojump_clock: MockClock) -> None:
    async with (
        open_local(strict_subscription=True) as (replica, user, world),
        open_user(world, replica.address) as other,
    ):
        await user.send("T", b"x")
        assert (await user.heartbeat("c1", "g", {"T": "A"})).code == ResponseCode.SUCCESS
        assert (await user.heartbeat("c1", "g", {"T": "A || B"}, version=2)).code == ResponseCode.SUCCESS
        odd = await other.heartbeat("c2", "g", {"T": "A"})
        assert odd.code == ResponseCode.NO_PERMISSION
        assert "A / A || B" in odd.remark
        assert "give every member the same subscriptions" in odd.remark
        pulled = await other.pull("T", 0, 0, own=False, version=1)
        assert pulled.code in (ResponseCode.SUBSCRIPTION_NOT_EXIST, ResponseCode.PULL_RETRY_IMMEDIATELY)
        assert [c.client_id for c in replica.clients.consumer_group("g").members.values()] == ["c1"]  # type: ignore[union-attr]
        assert (await other.heartbeat("c2", "g", {"T": "B || A"}, version=2)).code == ResponseCode.SUCCESS
        assert (await other.heartbeat("c2", "h", {"T": "A"})).code == ResponseCode.SUCCESS
    async with (
        open_local(strict_subscription=True) as (replica, user, world),
        open_user(world, replica.address) as other,
    ):
        await user.heartbeat("same", "g", {"T": "*"})
        await trio.sleep(1)
        assert (await other.heartbeat("same", "g", {"T": "*"})).code == ResponseCode.SUCCESS, "perhaps it reconnected"
        await trio.sleep(1)
        assert (await user.heartbeat("same", "g", {"T": "*"})).code == ResponseCode.SUCCESS, "it was there first"
        await trio.sleep(1)
        double = await other.heartbeat("same", "g", {"T": "*"})
        assert double.code == ResponseCode.NO_PERMISSION
        assert "in use by another client" in double.remark
        for _ in range(3):
            await trio.sleep(10)
            assert (await user.heartbeat("same", "g", {"T": "*"})).code == ResponseCode.SUCCESS
            await trio.sleep(10)
            assert (await other.heartbeat("same", "g", {"T": "*"})).code == ResponseCode.NO_PERMISSION, "and stays out"


def test_differences_name_what_each_wants() -> None:
    tag, sql = {"T": ("TAG", "A")}, {"T": ("SQL92", "a > 1"), "U": ("TAG", "*")}
    assert differences({"1": tag, "2": tag}) == {}
    assert differences({"1": tag, "2": sql}) == {"T": ("A", "SQL92: a > 1"), "U": ("*", "not subscribed")}


def test_an_id_is_doubled_when_the_older_connection_speaks_after_the_newer_began() -> None:
    doubles = Doubles()
    doubles.spoke("c", "old", 0.0)
    doubles.spoke("c", "new", 10.0)
    doubles.spoke("c", "new", 40.0)
    assert doubles.all() == []
    doubles.spoke("c", "old", 50.0)
    assert doubles.all() == ["c"]
    assert (doubles.others("c", "new"), doubles.others("c", "old")) == (True, False)
    doubles.closed("new")
    assert doubles.all() == []
