"""Code 9021 by frames: one entry, recognised when it is repeated, also by the next leader."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tests.broker.cluster import open_cluster
from tests.broker.support import User, drained, open_local, open_user
from trimq.wire.body.atomic import AtomicMessage, decode_places, encode_atomic
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.atomic import AtomicHeader

pytestmark = pytest.mark.trio

PID = "00000000000000ab"


async def send(user: User, messages: list[AtomicMessage], first: int, *, floor: int | None = None) -> Command:
    header = AtomicHeader(born_timestamp=1, pid=PID, pe=0, ps=first, pf=first if floor is None else floor)
    return await user.ask(RequestCode.SEND_ATOMIC, header.to_ext(), encode_atomic(messages))


def messages(*places: tuple[str, int]) -> list[AtomicMessage]:
    return [
        AtomicMessage(topic, queue, 0, 0, b"UNIQ_KEY\x01%s%d%d\x02" % (topic.encode(), queue, number), b"%d" % number)
        for number, (topic, queue) in enumerate(places)
    ]


async def test_several_topics_go_into_one_entry(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, _world):
        before = replica.store.log.last.index
        given = messages(("A", 0), ("A", 0), ("B", 1), ("A", 0), ("A", 1))
        answer = await send(user, given, 0)
        assert answer.code == 0, answer
        assert replica.store.log.last.index == before + 1
        places = decode_places(answer.body)
        assert [place[:2] for place in places] == [(0, 0), (0, 1), (1, 0), (0, 2), (1, 0)]
        assert [message.body for message in await drained(user, "A", 0, 3)] == [b"0", b"1", b"3"]
        (other,) = await drained(user, "B", 1, 1)
        assert (other.body, other.offset_message_id) == (b"2", places[2][2])

        again = await send(user, given, 0)
        assert (again.code, again.ext["dup"], again.body) == (0, "1", answer.body)
        assert (await send(user, given[:1], 9, floor=0)).code == ResponseCode.OUT_OF_SEQUENCE
        following = await send(user, messages(("B", 1)), 5)
        assert [place[:2] for place in decode_places(following.body)] == [(1, 1)]
        assert (await send(user, given, 0)).code == ResponseCode.STALE_SEQUENCE


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not CBOR"),
        (b"\x80", "1 to 1024 messages"),
        (encode_atomic([AtomicMessage("A", 70_000, 0, 0, b"", b"")]), "is no [topic"),
        (encode_atomic([AtomicMessage("A", 0, 0, 0, b"DELAY\x013\x02", b"")]), "cannot be stored together"),
    ],
)
async def test_what_cannot_be_stored_is_refused_with_the_reason(
    autojump_clock: MockClock, body: bytes, words: str
) -> None:
    async with open_local() as (replica, user, _world):
        last = replica.store.log.last.index
        answer = await user.ask(RequestCode.SEND_ATOMIC, AtomicHeader(born_timestamp=1).to_ext(), body)
        assert answer.code == ResponseCode.MESSAGE_ILLEGAL
        assert words in (answer.remark or "")
        assert replica.store.log.last.index == last


async def test_the_next_leader_recognises_it(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        old = await cluster.ready()
        given = messages(("A", 0), ("B", 0), ("B", 0))
        async with open_user(cluster.world, old.replica().address) as user:
            first = await send(user, given, 0)
        await old.kill()
        new = await cluster.ready()
        async with open_user(cluster.world, new.replica().address) as user:
            again = await send(user, given, 0)
            assert (again.code, again.ext["dup"]) == (0, "1")
            assert [each[:2] for each in decode_places(again.body)] == [each[:2] for each in decode_places(first.body)]
