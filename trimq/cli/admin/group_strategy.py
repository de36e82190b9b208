"""`trimq admin group set-strategy` and `promote`: how a group is replicated, and who is master."""

from __future__ import annotations

from functools import partial

import click

from trimq.cli.admin.group_view import ask_group, find_group, group_option
from trimq.cli.admin.session import open_session
from trimq.cli.output import json_option, namesrv_option, print_json
from trimq.cli.run import run_async
from trimq.errors import NoRoute
from trimq.wire.codes import RequestCode
from trimq.wire.headers.group import PromoteMasterHeader, SetStrategyHeader

__all__ = ["promote", "set_strategy"]


@click.command("set-strategy")
@namesrv_option
@group_option
@click.option("-s", "--strategy", required=True, type=click.Choice(["raft", "sync", "async"]))
@click.option("--required", type=click.IntRange(min=0), default=0, help="sync: replicas that must hold an entry.")
@json_option
def set_strategy(namesrv: str, group: str, strategy: str, required: int, as_json: bool) -> None:
    """Move a live group to another replication strategy."""
    header = SetStrategyHeader(group=group, strategy=strategy, required=required)
    run_async(partial(_set_strategy, namesrv, header, as_json))


async def _set_strategy(namesrv: str, header: SetStrategyHeader, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        view = await find_group(session, header.group)
        await ask_group(session, view, RequestCode.SET_GROUP_STRATEGY, header.to_ext())
    if as_json:
        print_json({"group": header.group, "strategy": header.strategy})
        return
    click.echo(f"{header.group}: strategy {header.strategy}")


@click.command("promote")
@namesrv_option
@group_option
@click.option("-r", "--replica", "node", required=True, metavar="NODE", help="The slave that becomes the master.")
@click.option("--force", is_flag=True, help="Also without proof that it holds every acknowledged message.")
@json_option
def promote(namesrv: str, group: str, node: str, force: bool, as_json: bool) -> None:
    """Make a slave of a master-slave group its master."""
    run_async(partial(_promote, namesrv, PromoteMasterHeader(group=group, node=node, force=force), as_json))


async def _promote(namesrv: str, header: PromoteMasterHeader, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        view = await find_group(session, header.group)
        candidate = (view.replicas or {}).get(header.node)
        if candidate is None or not candidate.addr:
            known = ", ".join(sorted(view.replicas or {})) or "none answers"
            raise NoRoute(f"{header.node} is no known replica of {header.group}", advice=f"replicas: {known}")
        answer = await session.ask(candidate.addr, RequestCode.PROMOTE_MASTER, header.to_ext())
    may_lose = answer.ext.get("mayLose", "")
    if as_json:
        print_json({"group": header.group, "master": header.node, "may_lose": may_lose})
        return
    click.echo(f"{header.group}: {header.node} is master")
    if may_lose:
        click.echo(f"what may be lost: {may_lose}")
