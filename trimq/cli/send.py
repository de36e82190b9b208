"""`trimq send`: messages from the command line or from standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from trimq.cli.output import json_option, namesrv_option, print_json
from trimq.cli.run import fail, run_async

if TYPE_CHECKING:
    import trimq

__all__ = ["command"]

SHOWN_MAX = 20
"""Up to so many messages are sent one by one, each with a line; more go as a stream with one line at the end."""


@click.command("send")
@click.argument("topic")
@click.argument("bodies", nargs=-1, metavar="[BODY]...")
@namesrv_option
@click.option("-t", "--tag", help="Tag to filter by.")
@click.option("-k", "--key", "keys", multiple=True, help="Business key to look the message up by. Repeatable.")
@click.option("--order-key", help="Messages with the same order key keep their order.")
@click.option("-p", "--property", "properties", multiple=True, metavar="NAME=VALUE", help="Own property. Repeatable.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="Send everything so many times.")
@click.option("--timeout", type=click.FloatRange(0.01), default=10.0, show_default=True, help="Seconds, per message.")
@json_option
def command(
    topic: str,
    bodies: tuple[str, ...],
    namesrv: str,
    tag: str | None,
    keys: tuple[str, ...],
    order_key: str | None,
    properties: tuple[str, ...],
    count: int,
    timeout: float,
    as_json: bool,
) -> None:
    """Send messages to TOPIC: each BODY is one; without any, each line of standard input.

    The exit status is 0 only when every message is stored.
    """
    own: dict[str, str] = {}
    for item in properties:
        name, equals, value = item.partition("=")
        if not equals or not name:
            fail(f"--property {item}: NAME=VALUE is needed", 2)
        own[name] = value
    if not bodies and sys.stdin.isatty():
        click.echo("one message a line, Ctrl-D ends", err=True)
    if not bodies and count > 1:
        fail("--count needs a BODY: standard input can be read only once", 2)
    fields: dict[str, Any] = {"tag": tag, "keys": keys, "order_key": order_key, "properties": own}
    run_async(partial(_send, topic, bodies, namesrv, fields, count, timeout, as_json))


def _lines() -> Iterator[bytes]:
    for line in sys.stdin.buffer:
        yield line.rstrip(b"\r\n")


async def _send(
    topic: str,
    bodies: tuple[str, ...],
    namesrv: str,
    fields: dict[str, Any],
    count: int,
    timeout: float,
    as_json: bool,
) -> None:
    import trio

    import trimq

    async with trimq.connect(namesrv, default_timeout=timeout) as mq, mq.producer() as producer:
        if bodies and len(bodies) * count <= SHOWN_MAX:
            receipts = [
                await producer.send(trimq.Message(topic=topic, body=body.encode(), **fields))
                for _ in range(count)
                for body in bodies
            ]
            _show(receipts, as_json)
            return
        began, sent = trio.current_time(), 0
        async with producer.stream() as stream:
            for _ in range(count):
                for body in (body.encode() for body in bodies) if bodies else _lines():
                    await stream.send(trimq.Message(topic=topic, body=body, **fields))
                    sent += 1
        took = trio.current_time() - began
    if as_json:
        print_json({"topic": topic, "stored": sent, "seconds": round(took, 3)})
    else:
        click.echo(f"{sent} messages stored in {topic} within {took:.2f} s")


def _show(receipts: Sequence[trimq.Receipt], as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "id": receipt.id,
                    "topic": receipt.queue.topic,
                    "group": receipt.queue.group,
                    "queue": receipt.queue.id,
                    "offset": receipt.offset,
                    "status": receipt.status.name,
                    "duplicate": receipt.duplicate,
                }
                for receipt in receipts
            ]
        )
        return
    for receipt in receipts:
        queue = receipt.queue
        click.echo(f"stored {receipt.id} in {queue.topic}, {queue.group} queue {queue.id}, offset {receipt.offset}")
