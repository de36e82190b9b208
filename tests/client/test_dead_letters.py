"""Retries through the configured steps into the dead letters; looked at, edited and sent again, one result each."""

from __future__ import annotations

import json
from dataclasses import replace

import anyio
import pytest
from click.testing import CliRunner

import trimq
from tests.client.test_with_broker import BACKENDS, Names, run
from trimq import blocking
from trimq.cli.admin import command
from trimq.client.dead_letters import Buried


async def bury(mq: trimq.Client, topic: str, group: str, count: int, *, attempts: int = 3) -> list[str]:
    """Messages whose handler always fails, until all are dead letters; the attempts that each had."""
    seen: list[str] = []

    async def fail(message: trimq.Received) -> None:
        seen.append(f"{message.body.decode()}/{message.attempt}")
        raise RuntimeError("always")

    async with (
        mq.subscribe(topic, group=group, max_attempts=attempts) as consumer,
        anyio.create_task_group() as nursery,
    ):
        await nursery.start(consumer.run, fail)
        for number in range(count):
            await mq.send(topic, f"{number}", tag="t", keys=[f"k{number}"], properties={"colour": "red"})
        with anyio.fail_after(25):
            while len(await letters_of(mq, group)) < count:  # noqa: ASYNC110  (the broker is in another thread)
                await anyio.sleep(0.05)
        nursery.cancel_scope.cancel()
    return sorted(seen)


async def letters_of(mq: trimq.Client, group: str) -> list[Buried]:
    async with mq.admin.dead_letters(group) as letters:
        return [letter async for letter in letters.read()]


@BACKENDS
def test_what_always_fails_ends_in_the_dead_letters_and_each_is_redriven(
    backend: str, namesrv: str, fresh: Names
) -> None:
    async def body() -> None:
        topic, group = fresh("orders"), fresh("billing")
        async with trimq.connect(namesrv) as mq:
            seen = await bury(mq, topic, group, 4)
            assert seen == [f"{number}/{attempt}" for number in range(4) for attempt in (1, 2, 3)]
            found = await letters_of(mq, group)
            assert sorted(letter.body for letter in found) == [b"0", b"1", b"2", b"3"]
            assert {(letter.topic, letter.tag, letter.attempts, letter.redriven) for letter in found} == {
                (topic, "t", 3, False)
            }
            got: dict[str, trimq.Received] = {}

            async def take(message: trimq.Received) -> None:
                got[message.body.decode()] = message

            async with mq.subscribe(topic, group=group) as consumer, anyio.create_task_group() as nursery:
                await nursery.start(consumer.run, take)
                async with mq.admin.dead_letters(group) as letters:
                    results = [done async for done in letters.redrive()]
                    assert all(done.ok for done in results)
                    assert sorted(done.letter.id for done in results) == sorted(letter.id for letter in found)
                    assert [done async for done in letters.redrive()] == []
                    assert [letter.redriven async for letter in letters.read()] == [True] * 4
                with anyio.fail_after(20):
                    while len(got) < 4:  # noqa: ASYNC110
                        await anyio.sleep(0.02)
                nursery.cancel_scope.cancel()
            ids = {letter.body.decode(): letter.id for letter in found}
            for name, message in got.items():
                assert (message.topic, message.attempt, message.id) == (topic, 1, ids[name])
                assert (message.tag, message.keys, message.properties) == ("t", (f"k{name}",), {"colour": "red"})

    run(backend, body)


@BACKENDS
def test_an_edited_letter_goes_to_its_topic_as_a_new_message(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("orders"), fresh("billing")
        async with trimq.connect(namesrv) as mq:
            await bury(mq, topic, group, 1, attempts=1)
            (letter,) = await letters_of(mq, group)
            async with mq.admin.dead_letters(group) as letters:
                (done,) = [
                    each
                    async for each in letters.redrive(
                        [letter], to="topic", edit=lambda old: replace(old, body=b"mended", tag="fixed", keys=())
                    )
                ]
                assert [each.redriven async for each in letters.read()] == [False]
            assert done.receipt is not None
            async with mq.pull() as reader:
                (message,) = (await reader.read(done.receipt.queue, done.receipt.offset, max=1)).messages
            assert (message.topic, message.body, message.tag, message.keys) == (topic, b"mended", "fixed", ())
            assert message.id != letter.id
            assert message.all_properties["ORIGIN_MESSAGE_ID"]

    run(backend, body)


def test_dead_letters_by_command_and_from_threads(namesrv: str, fresh: Names) -> None:
    topic, group = fresh("orders"), fresh("billing")

    async def prepare() -> None:
        async with trimq.connect(namesrv) as mq:
            await bury(mq, topic, group, 2, attempts=1)

    anyio.run(prepare, backend="trio")

    def admin(*args: str, status: int = 0) -> object:
        done = CliRunner().invoke(command, ["dlq", *args, "-n", namesrv, "-g", group])
        assert done.exit_code == status, done.output
        return json.loads(done.stdout) if "--json" in args else done.output

    listed = admin("list", "--json")
    assert isinstance(listed, list)
    assert [(row["topic"], row["tag"], row["redriven"]) for row in listed] == [(topic, "t", False)] * 2
    first = listed[0]["id"]
    shown = admin("show", "-i", first, "--json")
    assert isinstance(shown, dict)
    assert (shown["id"], shown["properties"]["colour"]) == (first, "red")
    assert "no dead letter with the id NOPE" in str(admin("redrive", "-i", "NOPE", status=1))
    assert "say --all, or which" in str(admin("redrive", status=2))
    edited = admin("edit", "-i", first, "--body", "new", "--set", "colour=", "--to", "topic", "--json")
    assert isinstance(edited, list)
    assert [row["ok"] for row in edited] == [True]
    assert "stored at" in str(admin("redrive", "--all"))
    assert admin("list", "--open", "--json") == []
    assert first in str(admin("list"))
    with blocking.connect(namesrv) as mq, mq.admin.dead_letters(group) as letters:
        assert [letter.redriven for letter in letters.read()] == [True, True]
        assert list(letters.redrive()) == []


def test_a_group_without_dead_letters_has_none(namesrv: str, fresh: Names) -> None:
    with blocking.connect(namesrv) as mq, mq.admin.dead_letters(fresh("nobody")) as letters:
        assert list(letters.read()) == []
        with pytest.raises(StopIteration):
            next(iter(letters.redrive()))
