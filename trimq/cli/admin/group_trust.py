"""`trimq admin group trust-log`: the operator's word for a suspect log, when no leader can be elected without it."""

from __future__ import annotations

from functools import partial

import click

from trimq.cli.admin.group_view import find_group, group_option
from trimq.cli.admin.session import open_session
from trimq.cli.output import json_option, namesrv_option, print_json
from trimq.cli.run import run_async
from trimq.errors import NoRoute
from trimq.wire.codes import RequestCode
from trimq.wire.headers.group import TrustLogHeader

__all__ = ["trust_log"]


@click.command("trust-log")
@namesrv_option
@group_option
@click.option("-r", "--replica", "node", required=True, metavar="NODE", help="The suspect replica, as `n1`.")
@click.option("-a", "--address", default="", metavar="HOST:PORT", help="Its client address, if no name server has it.")
@click.option("--accept-loss", is_flag=True, help="What only lost replicas hold is given up.")
@json_option
def trust_log(namesrv: str, group: str, node: str, address: str, accept_loss: bool, as_json: bool) -> None:
    """Let a suspect replica vote and lead with the log that it has.

    Only for a group that elects no leader because too many replicas are suspect or lost for good. Without --accept-loss
    nothing is done: the refusal says what may be lost.
    """
    header = TrustLogHeader(group=group, node=node, accept_loss=accept_loss)
    run_async(partial(_trust, namesrv, header, address, as_json))


async def _trust(namesrv: str, header: TrustLogHeader, address: str, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        if not address:
            view = await find_group(session, header.group)
            candidate = (view.replicas or {}).get(header.node)
            if candidate is None or not candidate.addr:
                known = ", ".join(sorted(view.replicas or {})) or "none answers"
                raise NoRoute(f"{header.node} is no known replica of {header.group}", advice=f"replicas: {known}")
            address = candidate.addr
        answer = await session.ask(address, RequestCode.TRUST_LOG, header.to_ext())
    may_lose = answer.ext.get("mayLose", "")
    if as_json:
        print_json({"group": header.group, "trusted": header.node, "may_lose": may_lose})
        return
    click.echo(f"{header.group}: the log of {header.node} is trusted; it votes again")
    click.echo(f"what may be lost: {may_lose}")
