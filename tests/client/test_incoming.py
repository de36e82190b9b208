"""From the bytes of a pull answer to messages."""

from __future__ import annotations

import zlib

import pytest

from trimq.client.incoming import decode_records
from trimq.client.model import EVERYTHING, Queue, Tag
from trimq.client.pull_consumer import UNACKNOWLEDGED
from trimq.client.received import Received
from trimq.errors import BadRequest, RecordError
from trimq.message.ids import host_bytes
from trimq.message.properties import format
from trimq.message.record import pack_record

QUEUE = Queue("t", "broker-a", 2)
HOST = host_bytes("127.0.0.1:10911")


def record(offset: int, body: bytes = b"x", *, sys_flag: int = 0, reconsume: int = 0, **properties: str) -> bytes:
    return pack_record(
        topic=b"t",
        queue_id=2,
        queue_offset=offset,
        position=1000 + offset,
        flag=7,
        sys_flag=sys_flag,
        born_ms=1_700_000_000_000,
        born_host=host_bytes("10.0.0.1:5000"),
        store_ms=1_700_000_000_500,
        store_host=HOST,
        reconsume_times=reconsume,
        prepared_offset=0,
        body=body,
        properties=format(properties).encode(),
    )


def decode(data: bytes, wanted: Tag = EVERYTHING) -> list[Received]:
    return decode_records(data, QUEUE, wanted, UNACKNOWLEDGED)


def test_every_field_arrives() -> None:
    (got,) = decode(record(5, b"hello", UNIQ_KEY="ID", TAGS="paid", KEYS="a b", __SHARDINGKEY="42", colour="red"))
    assert (got.topic, got.body, got.tag, got.keys, got.order_key) == ("t", b"hello", "paid", ("a", "b"), "42")
    assert (got.id, got.queue, got.offset, got.position, got.attempt, got.flag) == ("ID", QUEUE, 5, 1005, 1, 7)
    assert got.properties == {"colour": "red"}
    assert got.all_properties["TAGS"] == "paid"
    assert got.born_host == "10.0.0.1:5000"
    assert (got.stored_at - got.born_at).total_seconds() == 0.5
    assert got.offset_id == "7F00000100002A9F00000000000003ED"


def test_a_message_without_a_unique_id_is_known_by_its_offset_id() -> None:
    (got,) = decode(record(5))
    assert got.id == got.offset_id


def test_tags_are_compared_exactly() -> None:
    data = record(0, TAGS="a") + record(1, TAGS="b") + record(2) + record(3, TAGS="c")
    assert [got.offset for got in decode(data, Tag("a || c"))] == [0, 3]
    assert [got.offset for got in decode(data, Tag("*"))] == [0, 1, 2, 3]


def test_a_retried_message_shows_its_original_topic() -> None:
    (got,) = decode(record(0, reconsume=2, RETRY_TOPIC="orders"))
    assert (got.topic, got.queue.topic, got.attempt) == ("orders", "t", 3)


def test_compressed_bodies_are_expanded() -> None:
    (got,) = decode(record(0, zlib.compress(b"a" * 9000), sys_flag=1))
    assert got.body == b"a" * 9000


def test_a_body_that_cannot_be_expanded_is_delivered_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    (got,) = decode(record(0, b"no zlib", sys_flag=1))
    assert got.body == b"no zlib"
    assert "cannot be expanded" in caplog.text


def test_damaged_answers_raise() -> None:
    with pytest.raises(RecordError):
        decode(record(0)[:-1])


async def _leave(got: Received, error: Exception | None) -> bool:
    async with got:
        if error is not None:
            raise error
    return True


def test_read_messages_cannot_be_handed_back() -> None:
    import anyio

    (got,) = decode(record(0))
    assert anyio.run(_leave, got, None)
    with pytest.raises(BadRequest, match="cannot be handed back"):
        anyio.run(_leave, got, ValueError("failed"))
