"""`trimq admin message`: find messages, see who has consumed one, have one consumed again."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from trimq.cli.output import json_option, namesrv_option, print_json, print_table
from trimq.cli.run import fail, run_async
from trimq.errors import NoRoute
from trimq.message.trace import TRACE_TOPIC

if TYPE_CHECKING:
    import trimq

__all__ = ["message"]

_id = click.option("-i", "--id", "id", required=True, help="Unique id or offset id.")
_topic = click.option("-t", "--topic", default="", help="Needed to look a unique id up.")


@click.group("message")
def message() -> None:
    """Find messages, see who has consumed one, have one consumed again."""


@message.command("show")
@_id
@_topic
@namesrv_option
@json_option
def show(id: str, topic: str, namesrv: str, as_json: bool) -> None:
    """One message, also when the broker whose address is in its id is gone."""

    async def run() -> None:
        import trimq

        async with trimq.connect(namesrv) as mq:
            found = await _one(mq, id, topic)
        fields = _fields(found)
        if as_json:
            print_json(fields)
        else:
            print_table(["field", "value"], [[name, str(value)] for name, value in fields.items()])

    run_async(run)


@message.command("find")
@click.option("-t", "--topic", required=True)
@click.option("-k", "--key", required=True, help="Business key, or unique id.")
@click.option("--since", metavar="TIME")
@click.option("--until", metavar="TIME")
@click.option("--limit", type=click.IntRange(1, 64), default=32, show_default=True)
@namesrv_option
@json_option
def find(topic: str, key: str, since: str | None, until: str | None, limit: int, namesrv: str, as_json: bool) -> None:
    """Messages with a business key, newest first."""

    async def run() -> None:
        import trimq

        async with trimq.connect(namesrv) as mq:
            found = await mq.admin.find(topic, key, since=_time(since), until=_time(until), limit=limit)
        if as_json:
            print_json([_fields(each) for each in found])
            return
        print_table(
            ["id", "broker", "queue", "offset", "tag", "stored (UTC)"],
            [[m.id, m.queue.group, m.queue.id, m.offset, m.tag or "", _stamp(m.stored_ms)] for m in found],
        )

    run_async(run)


@message.command("track")
@_id
@_topic
@namesrv_option
@json_option
def track(id: str, topic: str, namesrv: str, as_json: bool) -> None:
    """Who has consumed a message."""

    async def run() -> None:
        import trimq

        async with trimq.connect(namesrv) as mq:
            tracks = await mq.admin.track(await _one(mq, id, topic))
        if as_json:
            print_json([{"group": each.group, "track": each.kind.value, "detail": each.detail} for each in tracks])
        else:
            print_table(["group", "track", "detail"], [[each.group, each.kind.value, each.detail] for each in tracks])

    run_async(run)


@message.command("trace")
@click.option("-i", "--id", "id", required=True, help="Unique id, or a business key.")
@click.option("--trace-topic", default=TRACE_TOPIC, show_default=True)
@namesrv_option
@json_option
def trace(id: str, trace_topic: str, namesrv: str, as_json: bool) -> None:
    """What the traces say of a message: who sent it, who got it, how long each took."""

    async def run() -> None:
        import trimq

        async with trimq.connect(namesrv) as mq:
            found = await mq.admin.trace(id, trace_topic)
        if as_json:
            print_json([asdict(each) for each in found])
            return
        print_table(
            ["step", "group", "topic", "at (UTC)", "ms", "ok", "attempt", "host"],
            [
                [s.what, s.group, s.topic, _stamp(s.at_ms) if s.at_ms else "", s.cost_ms, s.success, s.attempt, s.host]
                for s in found
            ],
        )

    run_async(run)


@message.command("consume")
@_id
@_topic
@click.option("-g", "--group", required=True, help="Consumer group.")
@click.option("-c", "--client", required=True, help="Client id of the member that shall process it.")
@namesrv_option
@json_option
def consume(id: str, topic: str, group: str, client: str, namesrv: str, as_json: bool) -> None:
    """Have one member of a consumer group process one message now, outside its queues and offsets."""

    async def run() -> None:
        import trimq

        async with trimq.connect(namesrv) as mq:
            result = await mq.admin.consume_directly(group, client, await _one(mq, id, topic))
        if as_json:
            print_json({"result": result.consumeResult, "ms": result.spentTimeMills, "remark": result.remark})
        else:
            click.echo(f"{result.consumeResult} after {result.spentTimeMills} ms {result.remark or ''}".rstrip())

    run_async(run)


async def _one(mq: trimq.Client, id: str, topic: str) -> trimq.Received:
    found = await mq.admin.message(id, topic)
    if found is None:
        advice = "it may have expired" if topic else "a unique id needs its topic: -t"
        raise NoRoute(f"no message with the id {id} is known", advice=advice)
    return found


def _fields(found: trimq.Received) -> dict[str, Any]:  # Any: what JSON holds
    return {
        "id": found.id,
        "offset_id": found.offset_id,
        "topic": found.queue.topic,
        "broker": found.queue.group,
        "queue": found.queue.id,
        "offset": found.offset,
        "tag": found.tag,
        "keys": list(found.keys),
        "attempt": found.attempt,
        "born": _stamp(found.born_ms),
        "born_host": found.born_host,
        "stored": _stamp(found.stored_ms),
        "properties": dict(found.all_properties),
        "body": found.body.decode("utf-8", "backslashreplace"),
    }


def _stamp(millis: int) -> str:
    return (
        datetime.fromtimestamp(millis / 1000, tz=UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
    )


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        fail(f"{text}: a time like 2031-05-01T12:00 is needed", 2)
