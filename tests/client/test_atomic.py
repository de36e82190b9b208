"""Messages of several topics stored together, against a real broker, under Trio and asyncio."""

from __future__ import annotations

from datetime import timedelta

import pytest

import trimq
from tests.client.test_with_broker import BACKENDS, Names, run
from trimq import blocking
from trimq.errors import BadRequest, Denied


async def bodies(mq: trimq.Client, topic: str) -> list[bytes]:
    async with mq.pull() as reader:
        return [message.body async for message in reader.iterate(topic)]


@BACKENDS
def test_messages_of_several_topics_are_one_entry_and_stored_once(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        orders, stock = fresh("orders"), fresh("stock")
        async with trimq.connect(namesrv) as mq, mq.producer() as producer:
            together = [
                trimq.Message(topic=orders, body=b"order", tag="new", keys=["k"]),
                trimq.Message(topic=stock, body=b"minus 1", order_key="sku"),
                trimq.Message(topic=stock, body=b"minus 2", order_key="sku"),
                trimq.Message(topic=stock, body=b"x" * 9_000, order_key="other"),
            ]
            first = await producer.send_atomic(together)
            assert [receipt.queue.topic for receipt in first] == [orders, stock, stock, stock]
            assert first[2].offset == first[1].offset + 1
            assert not any(receipt.duplicate for receipt in first)
            await producer.send(trimq.Message(topic=stock, body=b"after"))
            # The same objects again: recognised by their ids, as after an unknown outcome.
            again = await producer.send_atomic(together)
            assert [(r.queue, r.offset, r.offset_id) for r in again] == [
                (r.queue, r.offset, r.offset_id) for r in first
            ]
            assert all(receipt.duplicate for receipt in again)
            assert await bodies(mq, orders) == [b"order"]
            assert sorted(await bodies(mq, stock)) == sorted([b"after", b"minus 1", b"minus 2", b"x" * 9_000])
            assert await producer.send_atomic([]) == []

    run(backend, body)


@BACKENDS
def test_one_bad_message_keeps_all_of_them_out(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("orders")
        async with trimq.connect(namesrv) as mq, mq.producer() as producer:
            await producer.send(trimq.Message(topic=topic, body=b"0"))
            good = trimq.Message(topic=topic, body=b"1")
            with pytest.raises(Denied, match="reserved"):
                await producer.send_atomic([good, trimq.Message(topic="SELF_TEST_TOPIC", body=b"2")])
            with pytest.raises(BadRequest, match="cannot be delayed"):
                await producer.send_atomic([good, trimq.Message(topic=topic, body=b"", delay=timedelta(1))])
            assert await bodies(mq, topic) == [b"0"]
            await producer.send_atomic([good])
            assert sorted(await bodies(mq, topic)) == [b"0", b"1"]

    run(backend, body)


def test_atomic_sends_from_plain_threads(namesrv: str, fresh: Names) -> None:
    topics = [fresh("t"), fresh("t")]
    with blocking.connect(namesrv) as mq, mq.producer() as producer:
        receipts = producer.send_atomic([blocking.Message(topic=topic, body=b"x") for topic in topics])
        assert [receipt.queue.topic for receipt in receipts] == topics
