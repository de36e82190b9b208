"""Transactions of the library against a real broker, under Trio and asyncio, and from plain threads."""

from __future__ import annotations

import anyio
import pytest

import trimq
from tests.client.test_with_broker import BACKENDS, Names, run, until
from trimq import blocking
from trimq.errors import BadRequest


class Ledger:
    """What an application writes down about its transactions, and how often it was asked."""

    def __init__(self) -> None:
        self.outcomes: dict[str, trimq.Outcome] = {}
        self.asked: list[str] = []

    async def check(self, message: trimq.Received) -> trimq.Outcome:
        self.asked.append(message.body.decode())
        return self.outcomes.get(message.id, trimq.Outcome.UNKNOWN)


async def bodies(mq: trimq.Client, topic: str) -> list[str]:
    async with mq.pull() as reader:
        return sorted([message.body.decode() async for message in reader.iterate(topic)])


async def visible(mq: trimq.Client, topic: str, wanted: list[str]) -> None:
    """Wait until exactly these are there; the broker is in another thread, so there is no event to wait for."""
    with anyio.fail_after(10):
        while await bodies(mq, topic) != wanted:  # noqa: ASYNC110
            await anyio.sleep(0.02)


@BACKENDS
def test_leaving_the_block_commits_and_an_exception_rolls_back(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, ledger = fresh("bookings"), Ledger()
        async with trimq.connect(namesrv) as mq, mq.producer(fresh("booker"), check=ledger.check) as producer:
            async with producer.transaction(trimq.Message(topic=topic, body=b"yes", tag="paid", keys=["k"])) as tx:
                assert await bodies(mq, topic) == []
            assert tx.outcome is trimq.Outcome.COMMIT
            assert tx.receipt is not None
            with pytest.raises(RuntimeError, match="out of stock"):
                async with producer.transaction(trimq.Message(topic=topic, body=b"no")):
                    raise RuntimeError("out of stock")
            await mq.send(topic, b"plain")
            assert await bodies(mq, topic) == ["plain", "yes"]
            async with mq.pull() as reader:
                (first,) = (await reader.read(tx.receipt.queue, tx.receipt.offset, max=1)).messages
            assert (first.id, first.body, first.tag, first.keys) == (tx.id, b"yes", "paid", ("k",))
            assert first.properties == {}

    run(backend, body)


@BACKENDS
def test_what_is_undecided_is_decided_by_the_check(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, ledger, group = fresh("bookings"), Ledger(), fresh("booker")
        async with trimq.connect(namesrv) as mq, mq.producer(group, check=ledger.check) as producer:
            async with producer.transaction(trimq.Message(topic=topic, body=b"commit")) as tx:
                tx.unknown()
            ledger.outcomes[tx.id] = trimq.Outcome.COMMIT
            with anyio.CancelScope() as scope:  # cancelled in the block: nobody here knows
                async with producer.transaction(trimq.Message(topic=topic, body=b"rollback")) as tx:
                    ledger.outcomes[tx.id] = trimq.Outcome.ROLLBACK
                    scope.cancel()
                    await anyio.sleep(10)
            await until(lambda: {"commit", "rollback"} <= set(ledger.asked))
            await visible(mq, topic, ["commit"])
            asked = len(ledger.asked)
            await anyio.sleep(1)
            assert len(ledger.asked) == asked

    run(backend, body)


@BACKENDS
def test_another_process_of_the_group_answers_for_one_that_died(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, ledger, group = fresh("bookings"), Ledger(), fresh("booker")
        async with (
            trimq.connect(namesrv) as dying,
            dying.producer(group, check=Ledger().check) as producer,
            producer.transaction(trimq.Message(topic=topic, body=b"left behind")) as tx,
        ):
            tx.unknown()
        ledger.outcomes[tx.id] = trimq.Outcome.COMMIT
        # This one has never sent anything; the brokers know it all the same.
        async with trimq.connect(namesrv) as mq, mq.producer(group, check=ledger.check):
            await visible(mq, topic, ["left behind"])
        assert set(ledger.asked) == {"left behind"}

    run(backend, body)


@BACKENDS
def test_misuse_of_transactions_is_refused(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("bookings")
        async with trimq.connect(namesrv) as mq:
            async with mq.producer(fresh("plain")) as producer:
                with pytest.raises(BadRequest, match="cannot say what became"):
                    producer.transaction(trimq.Message(topic=topic, body=b""))
            with pytest.raises(BadRequest, match="a producer group of their own"):
                async with mq.producer(check=Ledger().check):
                    pass
            async with mq.producer(fresh("booker"), check=Ledger().check) as producer:
                tx = producer.transaction(trimq.Message(topic=topic, body=b""))
                with pytest.raises(BadRequest, match="has not begun"):
                    await tx.commit()
                async with tx:
                    await tx.rollback()
                    await tx.rollback()
                    with pytest.raises(BadRequest, match="cannot become"):
                        await tx.commit()

    run(backend, body)


def test_transactions_from_plain_threads(namesrv: str, fresh: Names) -> None:
    topic, asked = fresh("bookings"), list[str]()

    def check(message: blocking.Received) -> blocking.Outcome:
        asked.append(message.body.decode())
        return blocking.Outcome.COMMIT

    with blocking.connect(namesrv) as mq, mq.producer(fresh("booker"), check=check) as producer:
        with producer.transaction(blocking.Message(topic=topic, body=b"1")) as tx:
            pass
        assert tx.receipt is not None
        with (
            pytest.raises(RuntimeError, match="no"),
            producer.transaction(blocking.Message(topic=topic, body=b"2")),
        ):
            raise RuntimeError("no")
        with producer.transaction(blocking.Message(topic=topic, body=b"3")) as tx, mq.pull() as reader:
            tx.unknown()
            for message in reader.iterate(topic, follow=True):
                if message.body == b"3":
                    break
                assert message.body == b"1"
    assert set(asked) == {"3"}
