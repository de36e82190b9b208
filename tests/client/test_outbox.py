"""The outbox: in the application's transaction, sent in order, stored once through crashes of the relay."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

import trimq
from tests.client.test_with_broker import BACKENDS, Names, run
from trimq import blocking, outbox
from trimq.errors import BadRequest


def shop(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path)
    outbox.create(db)
    db.execute("PRAGMA synchronous = OFF")  # no power fails in here
    db.execute("CREATE TABLE IF NOT EXISTS orders (name TEXT)")
    return db


def order(db: sqlite3.Connection, topic: str, name: str, **fields: object) -> str:
    with db:
        db.execute("INSERT INTO orders VALUES (?)", (name,))
        message = trimq.Message(topic=topic, body=name.encode(), **fields)  # type: ignore[arg-type]  # of the caller
        return outbox.put(db, message)


async def stored(mq: trimq.Client, topic: str) -> list[trimq.Received]:
    async with mq.pull() as reader:
        return [message async for message in reader.iterate(topic)]


@BACKENDS
def test_what_commits_is_sent_and_what_rolls_back_is_not(
    backend: str, namesrv: str, fresh: Names, tmp_path: Path
) -> None:
    async def body() -> None:
        topic, path = fresh("orders"), tmp_path / "shop.db"
        with closing(shop(path)) as db:
            first = order(db, topic, "0", tag="paid", keys=["k"], order_key="a", properties={"colour": "red"})
            db.execute("INSERT INTO orders VALUES ('never')")
            outbox.put(db, trimq.Message(topic=topic, body=b"never"))
            db.rollback()
            async with trimq.connect(namesrv) as mq, outbox.open_relay(mq, path) as relay:
                with anyio.fail_after(15):
                    await relay.drain()
                    for number in range(1, 150):
                        order(db, topic, str(number), order_key="a" if number % 3 else f"{number}")
                    await relay.drain()
                assert outbox.pending(db) == 0
                assert (relay.sent, relay.duplicates) == (150, 0)
                messages = await stored(mq, topic)
                assert sorted(int(message.body) for message in messages) == list(range(150))
                ordered = [int(message.body) for message in messages if message.order_key == "a"]
                assert ordered == sorted(ordered)
                (zero,) = [message for message in messages if message.body == b"0"]
                assert (zero.id, zero.tag, zero.keys, zero.properties) == (first, "paid", ("k",), {"colour": "red"})

    run(backend, body)


class Dies(Exception):
    """The process ends here."""


@BACKENDS
@pytest.mark.parametrize("moment", ["before sending", "before noting it"])
def test_a_relay_that_dies_sends_nothing_twice(
    backend: str, moment: str, namesrv: str, fresh: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        topic, path = fresh("orders"), tmp_path / "shop.db"
        with closing(shop(path)) as db:
            for number in range(40):
                order(db, topic, str(number), order_key=str(number % 4))
            left = 4

            def dying(work: Callable[..., object]) -> Callable[..., object]:
                def maybe(*args: object) -> object:
                    nonlocal left
                    if left:
                        left -= 1
                        raise Dies
                    return work(*args)

                return maybe

            async def before_sending(self: outbox.Relay, batch: object, *, again: bool) -> None:
                nonlocal left
                if left:
                    left -= 1
                    raise Dies
                await send(self, batch, again=again)  # type: ignore[arg-type]  # private

            send = outbox.Relay._send
            if moment == "before sending":
                monkeypatch.setattr(outbox.Relay, "_send", before_sending)
            else:
                monkeypatch.setattr(outbox, "_settle", dying(outbox._settle))
            lives = 0
            async with trimq.connect(namesrv) as mq:
                with anyio.fail_after(20):
                    while outbox.pending(db):
                        lives += 1
                        try:
                            async with outbox.open_relay(mq, path) as relay:
                                await relay.drain()
                        except* Dies:
                            pass
                assert lives == 5
                messages = await stored(mq, topic)
                assert sorted(int(message.body) for message in messages) == list(range(40))

    run(backend, body)


@BACKENDS
def test_two_relays_on_one_outbox_do_no_harm(backend: str, namesrv: str, fresh: Names, tmp_path: Path) -> None:
    async def body() -> None:
        topic, path = fresh("orders"), tmp_path / "shop.db"
        with closing(shop(path)) as db:
            async with (
                trimq.connect(namesrv) as mq,
                trimq.connect(namesrv) as other,
                outbox.open_relay(mq, path) as one,
                outbox.open_relay(other, path) as two,
            ):
                with anyio.fail_after(20):
                    for number in range(60):
                        order(db, topic, str(number), order_key=str(number))
                        one.notify()
                        two.notify()
                        await anyio.sleep(0.005)
                    while outbox.pending(db):
                        await one.drain()
                        await two.drain()
                messages = await stored(mq, topic)
                assert sorted(int(message.body) for message in messages) == list(range(60))

    run(backend, body)


def test_what_is_refused_is_put_aside_and_holds_up_nobody(namesrv: str, fresh: Names, tmp_path: Path) -> None:
    topic, path = fresh("orders"), tmp_path / "shop.db"
    with closing(shop(path)) as db:
        order(db, topic, "1")
        bad = order(db, "SELF_TEST_TOPIC", "2")
        order(db, topic, "3", delay=timedelta(milliseconds=1))
        with blocking.connect(namesrv) as mq, mq.outbox(path) as relay:
            relay.notify()
            relay.drain(timeout=15)
            (row,) = outbox.failed(db)
            assert (row.id, row.topic, row.body) == (bad, "SELF_TEST_TOPIC", b"2")
            assert "reserved" in row.error
            with db:
                outbox.forget(db, row.number, retry=True)
            relay.drain(timeout=15)
            (row,) = outbox.failed(db)
            with db:
                outbox.forget(db, row.number)
            assert outbox.failed(db) == []
            with mq.pull() as reader:
                seen = set()
                for message in reader.iterate(topic, follow=True):
                    seen.add(message.body)
                    if seen == {b"1", b"3"}:
                        break


def test_messages_that_no_broker_takes_are_refused_in_the_transaction(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "empty.db")) as db:
        with pytest.raises(BadRequest, match=r"trimq\.outbox\.create"):
            outbox.put(db, trimq.Message(topic="t", body=b""))
        outbox.create(db)
        with pytest.raises(BadRequest, match="is reserved"):
            outbox.put(db, trimq.Message(topic="t", body=b"", properties={"TAGS": "x"}))
