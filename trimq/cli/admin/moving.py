"""`trimq admin consumer`: move a consumer group while it runs, and see where its members are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import click

from trimq.cli.output import json_option, namesrv_option, print_json, print_table
from trimq.cli.run import fail, run_async

if TYPE_CHECKING:
    import trimq

__all__ = ["consumer"]


@click.group("consumer")
def consumer() -> None:
    """Move a consumer group while it runs; see where its members are."""


@consumer.command("reset")
@click.option("-g", "--group", required=True, help="Consumer group.")
@click.option("-t", "--topic", required=True)
@click.option("-s", "--to", "to", required=True, metavar="first|last|TIME|OFFSET", help="TIME as 2031-05-01T12:00.")
@click.option("-q", "--queue", "queue", metavar="BROKER:NUMBER", help="Only this queue; needed with OFFSET.")
@click.option("--only-back", is_flag=True, help="Leave queues alone where it would go forward.")
@namesrv_option
@json_option
def reset(group: str, topic: str, to: str, queue: str | None, only_back: bool, namesrv: str, as_json: bool) -> None:
    """Have GROUP go on from another place: its members are moved at once."""
    run_async(partial(_reset, namesrv, group, topic, to, queue, not only_back, as_json))


async def _reset(namesrv: str, group: str, topic: str, to: str, queue: str | None, force: bool, as_json: bool) -> None:
    import trimq

    place = _place(to)
    if isinstance(place, int) and queue is None:
        fail(f"--to {to}: an offset belongs to one queue, give it with -q BROKER:NUMBER", 2)
    only = _queue(topic, queue) if queue else None
    async with trimq.connect(namesrv) as mq:
        _show(await mq.admin.reset(group, topic, to=place, queue=only, force=force), as_json)


@consumer.command("skip")
@click.option("-g", "--group", required=True, help="Consumer group.")
@click.option("-t", "--topic", required=True)
@namesrv_option
@json_option
def skip(group: str, topic: str, namesrv: str, as_json: bool) -> None:
    """Skip what GROUP has not consumed: it goes on with what is sent from now on."""
    run_async(partial(_reset, namesrv, group, topic, "last", None, True, as_json))


@consumer.command("clone")
@click.option("-s", "--source", required=True, help="Consumer group that is copied.")
@click.option("-d", "--destination", required=True, help="Consumer group that then stands where the source stands.")
@click.option("-t", "--topic", default="", help="Only this topic; else all of the source's.")
@namesrv_option
@json_option
def clone(source: str, destination: str, topic: str, namesrv: str, as_json: bool) -> None:
    """Copy one consumer group's offsets to another."""

    async def run() -> None:
        import trimq

        async with trimq.connect(namesrv) as mq:
            await mq.admin.clone(source, destination, topic)
        if as_json:
            print_json({"source": source, "destination": destination, "topic": topic or None})
        else:
            click.echo(f"{destination} stands where {source} stands")

    run_async(run)


@consumer.command("where")
@click.option("-g", "--group", required=True, help="Consumer group.")
@click.option("-t", "--topic", required=True)
@namesrv_option
@json_option
def where(group: str, topic: str, namesrv: str, as_json: bool) -> None:
    """What each connected member says it has reached."""

    async def run() -> None:
        import trimq

        async with trimq.connect(namesrv) as mq:
            found = await mq.admin.positions(group, topic)
        if as_json:
            print_json({client: {str(q): at for q, at in sorted(table.items())} for client, table in found.items()})
            return
        rows = [
            [client, queue.group, queue.id, offset]
            for client, table in sorted(found.items())
            for queue, offset in sorted(table.items())
        ]
        print_table(["client", "broker", "queue", "offset"], rows)

    run_async(run)


def _place(text: str) -> int | trimq.Start | datetime:
    import trimq

    if text in ("first", "last"):
        return trimq.Start(text)
    if text == "now":
        return trimq.Start.LAST
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        fail(f"--to {text}: first, last, an offset, or a time like 2031-05-01T12:00 is needed", 2)


def _queue(topic: str, text: str) -> trimq.Queue:
    import trimq

    broker, sep, number = text.rpartition(":")
    if not sep or not number.isascii() or not number.isdigit():
        fail(f"-q {text}: a queue is written BROKER:NUMBER, as in broker-a:0", 2)
    return trimq.Queue(topic, broker, int(number))


def _show(offsets: Mapping[trimq.Queue, int], as_json: bool) -> None:
    rows = [[queue.topic, queue.group, queue.id, offset] for queue, offset in sorted(offsets.items())]
    if as_json:
        print_json([dict(zip(("topic", "broker", "queue", "offset"), row, strict=True)) for row in rows])
    else:
        print_table(["topic", "broker", "queue", "offset"], rows)
