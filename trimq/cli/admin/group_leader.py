"""`trimq admin group transfer`."""

from __future__ import annotations

from functools import partial

import click

from trimq.cli.admin.group_view import ask_group, find_group, group_option
from trimq.cli.admin.session import open_session
from trimq.cli.output import json_option, namesrv_option, print_json
from trimq.cli.run import run_async
from trimq.wire.codes import RequestCode
from trimq.wire.headers.group import TransferLeaderHeader

__all__ = ["transfer"]


@click.command("transfer")
@namesrv_option
@group_option
@click.option("-t", "--to", "node", default="", metavar="NODE", help="Node id. Default: whoever is best placed.")
@json_option
def transfer(namesrv: str, group: str, node: str, as_json: bool) -> None:
    """Hand leadership of a group to another replica. Takes some ten milliseconds; nothing is lost."""
    run_async(partial(_transfer, namesrv, group, node, as_json))


async def _transfer(namesrv: str, group: str, node: str, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        view = await find_group(session, group)
        await ask_group(
            session, view, RequestCode.TRANSFER_GROUP_LEADER, TransferLeaderHeader(group=group, node=node).to_ext()
        )
    if as_json:
        print_json({"group": group, "to": node or None})
        return
    click.echo(f"{group}: leadership handed over" + (f" to {node}" if node else ""))
