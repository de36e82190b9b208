"""`trimq consume`: print messages as they come, with or without a consumer group."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import click

from trimq.cli.output import namesrv_option
from trimq.cli.run import fail, run_async

if TYPE_CHECKING:
    import trimq

__all__ = ["command"]


@click.command("consume")
@click.argument("topic")
@namesrv_option
@click.option("-g", "--group", help="Consumer group: messages are shared in it and its progress is kept.")
@click.option("-t", "--tag", default="*", help="Only these tags, as in 'paid || sent'.")
@click.option("--sql", help='Only what this SQL92 condition over properties wants, as in "price > 10".')
@click.option("--key", help="Only messages with this business key (without a group only).")
@click.option(
    "--from",
    "start",
    default=None,
    metavar="first|last|TIME",
    help="Where to begin; TIME as 2031-05-01T12:00. Default: first; with a new group: last.",
)
@click.option("--until", metavar="TIME", help="Stop at messages stored at or after TIME (without a group only).")
@click.option("--count", type=click.IntRange(1), help="Stop after so many messages.")
@click.option("--seconds", type=click.FloatRange(0.0), help="Stop after so many seconds.")
@click.option("--no-follow", is_flag=True, help="Stop at the end (without a group only).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def command(
    topic: str,
    namesrv: str,
    group: str | None,
    tag: str,
    sql: str | None,
    key: str | None,
    start: str | None,
    until: str | None,
    count: int | None,
    seconds: float | None,
    no_follow: bool,
    as_json: bool,
) -> None:
    """Print the messages of TOPIC.

    Without a group nothing is remembered: the queues are read from --from on. With a group the command is one more
    consumer of it: printing a message acknowledges it.
    """
    if group and no_follow:
        fail("--no-follow reads without a group: a group always waits for more", 2)
    if group and (key or until):
        fail("--key and --until read without a group", 2)
    if sql and tag != "*":
        fail("--sql and --tag exclude each other: write TAGS = 'paid' in the condition", 2)
    if group and start not in (None, "first", "last"):
        fail("--from TIME reads without a group; with one it is first or last", 2)
    follow = not no_follow and not until
    run_async(partial(_consume, topic, namesrv, group, tag, sql, key, start, until, count, seconds, follow, as_json))


async def _consume(
    topic: str,
    namesrv: str,
    group: str | None,
    tag: str,
    sql: str | None,
    key: str | None,
    start: str | None,
    until: str | None,
    count: int | None,
    seconds: float | None,
    follow: bool,
    as_json: bool,
) -> None:
    import math

    import trio

    import trimq

    wanted: trimq.Tag | trimq.Sql = trimq.Sql(sql) if sql else trimq.Tag(tag)
    left = math.inf if count is None else count
    with trio.move_on_after(math.inf if seconds is None else seconds):
        async with trimq.connect(namesrv) as mq:
            if group:
                begin = trimq.Start(start or "last")
                async with mq.subscribe(topic, group=group, filter=wanted, start=begin) as consumer:
                    async for message in consumer:
                        async with message:
                            _print(message, as_json)
                        left -= 1
                        if left <= 0:
                            break
            else:
                end = _time(until, "--until") if until else None
                async with mq.pull() as reader:
                    async for message in reader.iterate(
                        topic, start=_position(start), until=end, follow=follow, filter=wanted, key=key
                    ):
                        _print(message, as_json)
                        left -= 1
                        if left <= 0:
                            break


def _position(text: str | None) -> trimq.Start | datetime:
    import trimq

    if text in (None, "first", "last"):
        return trimq.Start(text or "first")
    return _time(text or "", "--from")


def _time(text: str, option: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        fail(f"{option} {text}: a time like 2031-05-01T12:00 is needed", 2)


def _print(message: trimq.Received, as_json: bool) -> None:
    text = message.body.decode("utf-8", "backslashreplace")
    if not as_json:
        tag = f" [{message.tag}]" if message.tag else ""
        click.echo(f"{message.queue.group}:{message.queue.id}@{message.offset}{tag} {text}")
        return
    fields = {
        "id": message.id,
        "topic": message.topic,
        "group": message.queue.group,
        "queue": message.queue.id,
        "offset": message.offset,
        "tag": message.tag,
        "keys": list(message.keys),
        "properties": dict(message.properties),
        "attempt": message.attempt,
        "stored_at": datetime.fromtimestamp(message.stored_ms / 1000, tz=UTC).isoformat(),
        "body": text,
    }
    click.echo(json.dumps(fields, ensure_ascii=False))
