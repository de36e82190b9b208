"""`trimq admin group create`: running broker processes take a new group."""

from __future__ import annotations

from functools import partial

import click

from trimq.cli.admin.group_view import own_status
from trimq.cli.admin.session import Session, open_session
from trimq.cli.output import json_option, namesrv_option, print_json
from trimq.cli.run import run_async
from trimq.errors import BadRequest
from trimq.wire.codes import RequestCode
from trimq.wire.headers.group import CreateGroupHeader

__all__ = ["create", "create_group"]


@click.command("create")
@namesrv_option
@click.option("-g", "--group", required=True, metavar="NAME", help="The new group (brokerName).")
@click.option(
    "--on", "hosts", required=True, multiple=True, metavar="HOST:PORT",
    help="Client address of any replica of a broker process that shall take part; give it once for each.",
)  # fmt: skip
@click.option("--preferred", default="", metavar="NODE", help="Node id of the preferred leader.")
@json_option
def create(namesrv: str, group: str, hosts: tuple[str, ...], preferred: str, as_json: bool) -> None:
    """Let running brokers take a new group.

    Each process opens an empty replica that shares its peer listener, remembers it for its next start, and the group
    forms when all have opened theirs.
    """
    run_async(partial(_create, namesrv, group, hosts, preferred, as_json))


async def _create(namesrv: str, group: str, hosts: tuple[str, ...], preferred: str, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        known = (await session.cluster()).brokerAddrTable
        if group in known:
            raise BadRequest(f"there is a group {group} already: add-replica adds replicas to it")
        made = await create_group(session, group, hosts, preferred)
    if as_json:
        print_json({"group": group, "replicas": made})
        return
    for node, addr in made.items():
        click.echo(f"{group}: {node} at {addr}")


async def create_group(session: Session, group: str, hosts: tuple[str, ...], preferred: str = "") -> dict[str, str]:
    """Returns node id to client address. Raises `BrokerError` when a process refuses; asking again is harmless."""
    nodes: dict[str, tuple[str, str]] = {}
    for host in hosts:
        said, own = await own_status(session, host)
        if not own.peer:
            raise BadRequest(f"{host} has no peer listener that a new group could share (strategy {said.strategy})")
        if said.answeredBy in nodes:
            raise BadRequest(f"{host} and {nodes[said.answeredBy][0]} are the same node {said.answeredBy}")
        nodes[said.answeredBy] = (host, own.peer)
    peers = ";".join(f"{node}-{peer}" for node, (_, peer) in sorted(nodes.items()))
    made = {}
    for node, (host, _) in sorted(nodes.items()):
        header = CreateGroupHeader(group=group, node=node, peers=peers, preferred=preferred)
        answer = await session.ask(host, RequestCode.CREATE_GROUP, header.to_ext())
        made[node] = str(answer.ext.get("addr", ""))
    return made
