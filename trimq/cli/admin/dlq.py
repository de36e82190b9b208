"""`trimq admin dlq`: dead letters of a consumer group, one by one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from trimq.cli.output import json_option, namesrv_option, print_json, print_table
from trimq.cli.run import fail, run_async
from trimq.errors import BadRequest, NoRoute

if TYPE_CHECKING:
    from trimq.client.dead_letters import Buried, DeadLetters, Edit

__all__ = ["dlq"]

group_option: Callable[[Any], Any] = click.option("-g", "--group", required=True, help="The consumer group.")
TO = click.Choice(["group", "topic"])


@click.group("dlq")
def dlq() -> None:
    """Dead letters: list, show, redrive, edit."""


@dlq.command("list")
@namesrv_option
@group_option
@click.option("--open", "only_open", is_flag=True, help="Leave out what was redriven.")
@click.option("-c", "--count", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@json_option
def list_letters(namesrv: str, group: str, only_open: bool, count: int, as_json: bool) -> None:
    """Dead letters, oldest first."""
    run_async(partial(_list, namesrv, group, only_open, count, as_json))


async def _list(namesrv: str, group: str, only_open: bool, count: int, as_json: bool) -> None:
    from trimq.client.client import connect

    found: list[Buried] = []
    async with connect(namesrv) as mq, mq.admin.dead_letters(group) as letters:
        async for letter in letters.read(again=not only_open):
            if len(found) == count:
                break
            found.append(letter)
    if as_json:
        print_json([_plain(letter) for letter in found])
        return
    print_table(
        ["broker", "offset", "buried (UTC)", "topic", "id", "tag", "keys", "attempts", "bytes", "redriven"],
        [
            [
                each.queue.group, each.offset, f"{each.buried_at:%Y-%m-%d %H:%M:%S}", each.topic, each.id, each.tag,
                " ".join(each.keys), each.attempts, len(each.body), "yes" if each.redriven else "",
            ]
            for each in found
        ],
    )  # fmt: skip


@dlq.command("show")
@namesrv_option
@group_option
@click.option("-i", "--id", "wanted", required=True, help="Unique id of the message.")
@json_option
def show_letter(namesrv: str, group: str, wanted: str, as_json: bool) -> None:
    """One dead letter with everything it carries."""
    run_async(partial(_show, namesrv, group, wanted, as_json))


async def _show(namesrv: str, group: str, wanted: str, as_json: bool) -> None:
    from trimq.client.client import connect

    async with connect(namesrv) as mq, mq.admin.dead_letters(group) as letters:
        letter = await _find(letters, wanted)
    if as_json:
        print_json({**_plain(letter), "body": _text(letter.body), "properties": dict(letter.properties)})
        return
    for name, value in _plain(letter).items():
        click.echo(f"{name}: {value}")
    for name, value in sorted(letter.properties.items()):
        click.echo(f"  {name} = {value}")
    click.echo(_text(letter.body))


@dlq.command("redrive")
@namesrv_option
@group_option
@click.option("--all", "everything", is_flag=True, help="All that were not redriven before.")
@click.option("-i", "--id", "ids", multiple=True, help="These only; may be given several times.")
@click.option("--to", type=TO, default="group", show_default=True, help="This consumer group only, or its topic.")
@json_option
def redrive_letters(namesrv: str, group: str, everything: bool, ids: tuple[str, ...], to: str, as_json: bool) -> None:
    """Send dead letters again, one result each. Exit status 1 when one of them failed."""
    if everything == bool(ids):
        raise click.UsageError("say --all, or which by -i ID")
    run_async(partial(_redrive, namesrv, group, ids, to, None, as_json))


@dlq.command("edit")
@namesrv_option
@group_option
@click.option("-i", "--id", "wanted", required=True, help="Unique id of the message.")
@click.option("--body", help="New body: text, or @FILE, or - for standard input.")
@click.option("--tag", help="New tag; empty takes it away.")
@click.option("--key", "keys", multiple=True, help="New keys, all of them.")
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="A property; an empty value takes it away.")
@click.option("--to", type=TO, default="group", show_default=True, help="This consumer group only, or its topic.")
@json_option
def edit_letter(
    namesrv: str,
    group: str,
    wanted: str,
    body: str | None,
    tag: str | None,
    keys: tuple[str, ...],
    changes: tuple[str, ...],
    to: str,
    as_json: bool,
) -> None:
    """Send a changed copy of one dead letter; with a changed body it is a new message (ORIGIN_MESSAGE_ID: the old)."""
    if body is None and tag is None and not keys and not changes:
        raise click.UsageError("nothing is changed: use redrive, or say what (--body, --tag, --key, --set)")
    content = None if body is None else _content(body)
    pairs = dict(_pair(each) for each in changes)

    def edit(letter: Buried) -> Buried:
        properties = {**letter.properties, **pairs}
        return replace(
            letter,
            body=letter.body if content is None else content,
            tag=letter.tag if tag is None else tag,
            keys=keys or letter.keys,
            properties={name: value for name, value in properties.items() if value},
        )

    run_async(partial(_redrive, namesrv, group, (wanted,), to, edit, as_json))


async def _redrive(
    namesrv: str, group: str, ids: Sequence[str], to: Any, edit: Edit | None, as_json: bool
) -> None:  # Any: one of TO
    from trimq.client.client import connect

    results: list[dict[str, object]] = []
    async with connect(namesrv) as mq, mq.admin.dead_letters(group) as letters:
        chosen = [await _find(letters, wanted) for wanted in ids] or None
        async for done in letters.redrive(chosen, to=to, edit=edit):
            place = {"queue": str(done.receipt.queue), "offset": done.receipt.offset} if done.receipt else {}
            error = {"error": done.error.message} if done.error else {}
            results.append({"id": done.letter.id, "ok": done.ok, **place, **error})
            if not as_json:
                what = f"stored at {place['queue']}, offset {place['offset']}" if place else f"failed: {error['error']}"
                click.echo(f"{done.letter.id}: {what}")
    if as_json:
        print_json(results)
    elif not results:
        click.echo(f"{group} has no dead letter that was not redriven")
    failed = sum(not result["ok"] for result in results)
    if failed:
        fail(f"{failed} of {len(results)} dead letters were not sent")


async def _find(letters: DeadLetters, wanted: str) -> Buried:
    letter = await letters.find(wanted)
    if letter is None:
        raise NoRoute(
            f"{letters.group} has no dead letter with the id {wanted}", advice="trimq admin dlq list -g shows them"
        )
    return letter


def _content(text: str) -> bytes:
    if text == "-":
        return sys.stdin.buffer.read()
    if text.startswith("@"):
        with open(text[1:], "rb") as file:
            return file.read()
    return text.encode()


def _pair(text: str) -> tuple[str, str]:
    name, sep, value = text.partition("=")
    if not sep or not name:
        raise BadRequest(f"--set {text!r}: NAME=VALUE is wanted")
    return name, value


def _plain(letter: Buried) -> dict[str, object]:
    return {
        "id": letter.id,
        "topic": letter.topic,
        "broker": letter.queue.group,
        "offset": letter.offset,
        "tag": letter.tag,
        "keys": list(letter.keys),
        "attempts": letter.attempts,
        "bytes": len(letter.body),
        "born": letter.born_at.isoformat(),
        "buried": letter.buried_at.isoformat(),
        "redriven": letter.redriven,
    }


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.hex()
