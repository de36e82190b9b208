"""Members that leave the choice of their queues to the broker."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from broker.processor.assignment import _Queue, allocate_for_pop
from tests.broker.support import User, World, open_local
from tests.broker.test_pop import create
from tests.broker.test_registration import NAMESRV, name_server
from trimq.message.allocation import Averagely
from trimq.wire.body.pop import (
    QueryAssignmentRequest,
    QueryAssignmentResponse,
    RequestModeTable,
    SetRequestModeRequest,
)
from trimq.wire.codes import RequestCode


async def assigned(user: User, client: str, **fields: str) -> list[tuple[int, str]] | None:
    body = QueryAssignmentRequest(topic=fields.pop("topic", "T"), consumerGroup="g", clientId=client, **fields)
    answer = await user.ask(RequestCode.QUERY_ASSIGNMENT, body=body.to_json())
    assert answer.code == 0, answer
    found = QueryAssignmentResponse.from_json(answer.body).messageQueueAssignments
    return None if found is None else [(each.messageQueue.queueId, each.mode) for each in found]


async def set_mode(user: User, **fields: object) -> int:
    body = SetRequestModeRequest(**{"topic": "T", "consumerGroup": "g", "mode": "POP", **fields})  # type: ignore[arg-type]
    return (await user.ask(RequestCode.SET_MESSAGE_REQUEST_MODE, body=body.to_json())).code


@pytest.mark.trio
async def test_queues_are_assigned_by_strategy_and_by_mode(autojump_clock: MockClock) -> None:
    world = World()
    async with name_server(world), open_local(world, namesrv=(NAMESRV,)) as (replica, user, _):
        await create(user, "T", 4)
        assert await assigned(user, "c1") is None, "nobody is a member yet"
        await user.heartbeat("c1", "g", {"T": "*"})
        assert await assigned(user, "c1") == [(0, "PULL"), (1, "PULL"), (2, "PULL"), (3, "PULL")]
        assert await assigned(user, "stranger") == []
        assert await assigned(user, "c1", strategyName="NONSENSE") is None
        assert await assigned(user, "c1", topic="nowhere") is None
        assert await assigned(user, "stranger", messageModel="BROADCASTING") is not None
        assert await set_mode(user) == 0
        assert await assigned(user, "c1") == [(-1, "POP")]
        assert await assigned(user, "c1", topic="%RETRY%g") == [(0, "PULL")]
        assert replica.state.pop.mode("T", "g") == ("POP", 0)
        answer = await user.ask(RequestCode.GET_ALL_MESSAGE_REQUEST_MODE)
        table = RequestModeTable.from_json(answer.body).messageRequestModeMap
        assert table["T"]["g"].mode == "POP"


@pytest.mark.trio
async def test_modes_that_cannot_be_set(autojump_clock: MockClock) -> None:
    async with open_local() as (_, user, _world):
        await create(user, "T", 4)
        assert await set_mode(user) == 26
        await user.heartbeat("c1", "g", {"T": "*"})
        assert await set_mode(user, topic="%RETRY%g") == 16
        assert await set_mode(user, topic="nowhere") == 17
        assert await set_mode(user, mode="NONSENSE") == 29
        await trio.lowlevel.checkpoint()
        assert await assigned(user, "c1") is None, "there is no name server to ask"


def test_pop_shares_as_rocketmq_does() -> None:
    queues = [_Queue("T", "b", number) for number in range(4)]
    members = ["a", "b", "c", "d"]

    def ids(me: str, share: int, of: list[str] = members) -> list[int]:
        return [queue.id for queue in allocate_for_pop(Averagely(), queues, of, me, share)]

    assert ids("a", 0) == ids("a", 3) == [-1, -1, -1, -1]
    assert ids("a", 1) == [0, 1]
    assert ids("d", 1) == [3, 0]
    many = [f"m{number}" for number in range(6)]
    assert [ids(each, 2, many) for each in many] == [[0], [1], [2], [3], [0], [1]]
    assert ids("stranger", 1) == []
