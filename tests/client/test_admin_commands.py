"""`trimq admin consumer` and `trimq admin message` against a running broker, as a shell calls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
from click.testing import CliRunner, Result

import trimq
from trimq.cli.admin.message import message
from trimq.cli.admin.moving import consumer

Names = Callable[[str], str]


def run(command: Any, namesrv: str, *arguments: str) -> Result:  # Any: a click group
    return CliRunner().invoke(command, [*arguments, "-n", namesrv], catch_exceptions=False)


def prepared(namesrv: str, topic: str, group: str) -> list[trimq.Receipt]:
    """A topic of one queue with five messages, three of them consumed by the group."""

    async def body() -> list[trimq.Receipt]:
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=1)
            receipts = [await mq.send(topic, b"%d" % number, keys=["k"]) for number in range(5)]
            async with mq.pull(group) as reader:
                await reader.commit({receipts[0].queue: 3})
        return receipts

    return anyio.run(body)


def test_a_group_is_reset_skipped_and_cloned_by_commands(namesrv: str, fresh: Names) -> None:
    topic, group, copy = fresh("t"), fresh("g"), fresh("h")
    prepared(namesrv, topic, group)
    where = ["-g", group, "-t", topic]
    result = run(consumer, namesrv, "reset", *where, "--to", "1", "-q", "solo:0", "--json")
    assert json.loads(result.stdout) == [{"topic": topic, "broker": "solo", "queue": 0, "offset": 1}]
    result = run(consumer, namesrv, "reset", *where, "--to", "first")
    assert result.stdout.split()[-4:] == [topic, "solo", "0", "0"]
    result = run(consumer, namesrv, "skip", *where, "--json")
    assert json.loads(result.stdout)[0]["offset"] == 5
    assert "stands where" in run(consumer, namesrv, "clone", "-s", group, "-d", copy).stdout
    result = run(consumer, namesrv, "reset", "-g", copy, "-t", topic, "--to", "first", "--only-back", "--json")
    assert json.loads(result.stdout)[0]["offset"] == 0
    assert json.loads(run(consumer, namesrv, "where", *where, "--json").stdout) == {}


def test_wrong_places_are_refused_with_what_to_write(namesrv: str, fresh: Names) -> None:
    topic, group = fresh("t"), fresh("g")
    prepared(namesrv, topic, group)
    where = ["-g", group, "-t", topic]
    for arguments, status, words in (
        ([*where, "--to", "soon"], 2, "a time like"),
        ([*where, "--to", "3"], 2, "-q BROKER:NUMBER"),
        ([*where, "--to", "3", "-q", "solo"], 2, "broker-a:0"),
        ([*where, "--to", "9", "-q", "solo:0"], 1, "holds 0 to 5"),
        (["-g", fresh("none"), "-t", topic, "--to", "first"], 1, "does not exist here"),
    ):
        result = run(consumer, namesrv, "reset", *arguments)
        assert (result.exit_code, words in result.stderr) == (status, True), result.stderr


def test_messages_are_shown_found_and_tracked_by_commands(namesrv: str, fresh: Names) -> None:
    topic, group = fresh("t"), fresh("g")
    receipts = prepared(namesrv, topic, group)
    shown = json.loads(run(message, namesrv, "show", "-i", receipts[1].id, "-t", topic, "--json").stdout)
    assert (shown["body"], shown["offset"], shown["keys"]) == ("1", 1, ["k"])
    by_place = json.loads(run(message, namesrv, "show", "-i", receipts[1].offset_id, "--json").stdout)
    assert by_place == shown
    found = json.loads(run(message, namesrv, "find", "-t", topic, "-k", "k", "--limit", "2", "--json").stdout)
    assert [each["body"] for each in found] == ["4", "3"]
    for receipt, track in ((receipts[1], "CONSUMED"), (receipts[4], "NOT_ONLINE")):
        result = run(message, namesrv, "track", "-i", receipt.id, "-t", topic, "--json")
        assert json.loads(result.stdout) == [{"group": group, "track": track, "detail": ""}]
    missing = run(message, namesrv, "show", "-i", "F" * 32, "-t", topic)
    assert (missing.exit_code, "no message with the id" in missing.stderr) == (1, True)
    nobody = run(message, namesrv, "consume", "-i", receipts[0].id, "-t", topic, "-g", group, "-c", "nobody")
    assert (nobody.exit_code, "not online" in nobody.stderr) == (1, True)
