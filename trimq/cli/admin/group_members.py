"""`trimq admin group add-replica`, `promote-learner`, `remove-replica`: who belongs to a replica group.

A replica is replaced in this order: add the new one (it copies the log as a learner), promote it, remove the old one.
Only a replica whose disk was replaced under its old name has to be removed first.
"""

from __future__ import annotations

from functools import partial

import click

from trimq.cli.admin.group_view import GroupView, find_group, group_option, own_status, until_done
from trimq.cli.admin.session import Session, open_session
from trimq.cli.output import json_option, namesrv_option, print_json
from trimq.cli.run import run_async
from trimq.errors import BadRequest
from trimq.wire.codes import RequestCode
from trimq.wire.headers.group import ChangeMembersHeader

__all__ = ["add_replica", "change_members", "joining", "promote_learner", "remove_replica"]

wait_option = click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="SECONDS",
    help="How long to try while only time is missing: an election, a learner that still catches up.",
)  # fmt: skip
node_option = click.option("-r", "--replica", "node", required=True, metavar="NODE", help="Its node id, as `n1`.")


@click.command("add-replica")
@namesrv_option
@group_option
@click.option("-a", "--address", required=True, metavar="HOST:PORT", help="Client address of the new replica.")
@click.option(
    "--rank", type=int, default=-1, help="Place among the preferred leaders, 0 first. Default: by its own file."
)
@wait_option
@json_option
def add_replica(namesrv: str, group: str, address: str, rank: int, wait_s: float, as_json: bool) -> None:
    """Add a replica as a learner.

    Start its broker first, with the group's brokerName, an empty store and dLegerPeers that name itself and the present
    members: it then waits to be added. It copies the log; make it a voter with promote-learner.
    """
    run_async(partial(_add, namesrv, group, address, rank, wait_s, as_json))


@click.command("promote-learner")
@namesrv_option
@group_option
@node_option
@wait_option
@json_option
def promote_learner(namesrv: str, group: str, node: str, wait_s: float, as_json: bool) -> None:
    """Make a learner a voter, once it has caught up."""
    run_async(partial(_change, namesrv, group, "promote", node, False, wait_s, as_json))


@click.command("remove-replica")
@namesrv_option
@group_option
@node_option
@click.option("--maintenance", is_flag=True, help="Two voters or fewer may be left, for the time of a maintenance.")
@wait_option
@json_option
def remove_replica(namesrv: str, group: str, node: str, maintenance: bool, wait_s: float, as_json: bool) -> None:
    """Remove a voter or a learner. A leader that is removed hands over.

    Its broker may be stopped afterwards. To take the node back it needs an empty store: add-replica.
    """
    run_async(partial(_change, namesrv, group, "remove", node, maintenance, wait_s, as_json))


async def _add(namesrv: str, group: str, address: str, rank: int, wait_s: float, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        view = await find_group(session, group)
        header = await joining(session, group, address, rank)
        print_members(view, await change_members(session, view, header, wait_s), as_json)


async def joining(session: Session, group: str, address: str, rank: int = -1) -> ChangeMembersHeader:
    """What a replica that waits to be added says of itself. Raises `BadRequest` when it cannot be added."""
    said, own = await own_status(session, address)
    if said.group != group:
        raise BadRequest(f"{address} serves group {said.group}, not {group}")
    if not own.uuid or not own.peer:
        raise BadRequest(f"{address} has no store that could join (strategy {said.strategy})")
    return ChangeMembersHeader(
        group=group,
        action="add",
        node=said.answeredBy,
        peer_addr=own.peer,
        client_addr=own.addr or address,
        store_uuid=own.uuid,
        rank=rank if rank >= 0 else own.rank,
    )


async def _change(
    namesrv: str, group: str, action: str, node: str, maintenance: bool, wait_s: float, as_json: bool
) -> None:
    async with open_session(namesrv) as session:
        view = await find_group(session, group)
        header = ChangeMembersHeader(group=group, action=action, node=node, maintenance=maintenance)
        print_members(view, await change_members(session, view, header, wait_s), as_json)


async def change_members(
    session: Session, view: GroupView, header: ChangeMembersHeader, wait_s: float
) -> dict[str, str]:
    """Make one change; returns `voters` and `learners` as the leader has them now, joined by commas."""
    answer = await until_done(session, view, RequestCode.CHANGE_GROUP_MEMBERS, header.to_ext(), wait_s)
    return {key: str(answer.ext.get(key, "")) for key in ("voters", "learners")}


def print_members(view: GroupView, members: dict[str, str], as_json: bool) -> None:
    """The group as it is now."""
    if as_json:
        print_json({"group": view.name, **{key: value.split(",") if value else [] for key, value in members.items()}})
        return
    learners = f", learners {members['learners']}" if members["learners"] else ""
    click.echo(f"{view.name}: voters {members['voters']}{learners}")
