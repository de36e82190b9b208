"""An offset by time at a broker that gives the message nearest to the time, as Apache's before 5.0 do."""

from __future__ import annotations

import pytest

from tests.client.scripted import Cluster, Server, client_of, reply, run
from trimq.client.model import Queue, from_ms
from trimq.message.record import pack_record
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.offset import SearchOffsetHeader
from trimq.wire.headers.pull import PullHeader

STORED_MS = (1_000, 2_000, 3_000)
BEFORE_5 = 403


class NearestCluster(Cluster):
    """One queue with three messages."""

    def answer(self, server: Server, command: Command) -> Command | None:
        answer = super().answer(server, command)
        if command.code == RequestCode.SEARCH_OFFSET_BY_TIMESTAMP:
            when = SearchOffsetHeader.from_ext(command.ext).timestamp
            nearest = min(range(len(STORED_MS)), key=lambda offset: abs(STORED_MS[offset] - when))
            answer = reply(command, 0, ext={"offset": str(len(STORED_MS) if when > STORED_MS[-1] else nearest)})
        elif command.code == RequestCode.PULL_MESSAGE:
            offset = PullHeader.from_ext(command.ext).queue_offset
            there = offset < len(STORED_MS)
            places = {"nextBeginOffset": str(offset + there), "minOffset": "0", "maxOffset": str(len(STORED_MS))}
            code = ResponseCode.SUCCESS if there else ResponseCode.PULL_NOT_FOUND
            answer = reply(command, code, ext=places, body=_record(offset) if there else b"")
        if answer is not None and server.group is not None:
            answer.version = server.group.version
        return answer


def _record(offset: int) -> bytes:
    return pack_record(
        topic=b"t",
        queue_id=0,
        queue_offset=offset,
        position=100 * offset,
        flag=0,
        sys_flag=0,
        born_ms=0,
        born_host=bytes(8),
        store_ms=STORED_MS[offset],
        store_host=bytes(8),
        reconsume_times=0,
        prepared_offset=0,
        body=b"",
        properties=b"",
    )


@pytest.mark.parametrize(
    ("when_ms", "offset"), [(0, 0), (1_000, 0), (1_001, 1), (1_999, 1), (2_400, 2), (3_000, 2), (3_001, 3)]
)
def test_the_nearest_message_may_be_the_one_before(when_ms: int, offset: int) -> None:
    async def body() -> None:
        cluster = NearestCluster({"a": 1}, topics={"t": 1})
        cluster.groups["a"].ours = False
        cluster.groups["a"].version = BEFORE_5
        async with client_of(cluster) as mq, mq.pull() as reader:
            assert await reader.offset_at(Queue("t", "a", 0), from_ms(when_ms)) == offset

    run("trio", body)
