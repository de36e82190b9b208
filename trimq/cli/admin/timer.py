"""`trimq admin timer`: messages that wait for their time."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import click

from trimq.cli.output import json_option, namesrv_option, print_json, print_table
from trimq.cli.run import fail, run_async

__all__ = ["timer"]


@click.group("timer")
def timer() -> None:
    """Messages that wait for their time (delay, at): list, cancel."""


@timer.command("list")
@namesrv_option
@click.option("-t", "--topic", help="Only messages of this topic.")
@click.option("-c", "--count", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many.")
@json_option
def timer_list(namesrv: str, topic: str | None, count: int, as_json: bool) -> None:
    """What waits, by due time."""
    run_async(partial(_list, namesrv, topic, count, as_json))


async def _list(namesrv: str, topic: str | None, count: int, as_json: bool) -> None:
    from trimq.client.client import connect

    async with connect(namesrv) as mq:
        found = (await mq.admin.timers(topic, limit=count))[:count]
    if as_json:
        print_json([{**asdict(each), "due": each.due.isoformat(), "sent": each.sent.isoformat()} for each in found])
        return
    print_table(
        ["due (UTC)", "topic", "broker", "queue", "id", "keys", "bytes", "rolled"],
        [
            [f"{t.due:%Y-%m-%d %H:%M:%S}", t.topic, t.group, t.queue, t.id, " ".join(t.keys), t.body_bytes, t.rolled]
            for t in found
        ],
    )


@timer.command("cancel")
@namesrv_option
@click.option("-t", "--topic", required=True)
@click.option("-i", "--id", "ids", required=True, multiple=True, help="Unique id; may be given several times.")
@json_option
def timer_cancel(namesrv: str, topic: str, ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel messages by their ids, one result each. Exit status 1 when one of them did not wait any more."""
    run_async(partial(_cancel, namesrv, topic, ids, as_json))


async def _cancel(namesrv: str, topic: str, ids: tuple[str, ...], as_json: bool) -> None:
    from trimq.client.client import connect

    results: list[dict[str, object]] = []
    async with connect(namesrv) as mq:
        waiting = {each.id: each for each in await mq.admin.timers(topic, limit=1_000_000)}
        for wanted in ids:
            each = waiting.get(wanted)
            cancelled = each is not None and await mq.admin.cancel_timer(each)
            results.append({"id": wanted, "cancelled": cancelled})
    if as_json:
        print_json(results)
    else:
        for result in results:
            click.echo(f"{result['id']}: {'cancelled' if result['cancelled'] else 'does not wait (any more)'}")
    missed = sum(not result["cancelled"] for result in results)
    if missed:
        fail(f"{missed} of {len(results)} messages did not wait any more")
