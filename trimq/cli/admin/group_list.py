"""`trimq admin group list`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import click

from trimq.cli.admin.group_view import GroupView, statuses
from trimq.cli.admin.session import in_parallel, open_session
from trimq.cli.output import json_option, namesrv_option, print_json, print_table
from trimq.cli.run import run_async
from trimq.wire.body.group import ReplicaStatus

__all__ = ["list_groups"]


@dataclass(frozen=True, slots=True)
class Row:
    """One replica."""

    group: str
    strategy: str
    node: str
    kind: str
    """`voter` or `learner`."""
    role: str
    term: int
    last: int
    behind_bytes: int | None
    """Against the leader's log; None while that is not known."""
    address: str
    peer: str
    uuid: str


@click.command("list")
@namesrv_option
@click.option("-g", "--group", help="Only this one.")
@json_option
def list_groups(namesrv: str, group: str | None, as_json: bool) -> None:
    """Replica groups, their replicas, who leads and who lags."""
    run_async(partial(_list, namesrv, group, as_json))


async def _list(namesrv: str, group: str | None, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        info = await session.cluster()
        brokers = [each for name, each in sorted(info.brokerAddrTable.items()) if group in (None, name)]
        views = await in_parallel(brokers, partial(statuses, session))
    rows = [row for view in views for row in _rows(view)]
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    print_table(
        ["group", "strategy", "node", "kind", "role", "term", "last", "behind", "address", "peers", "store"],
        [
            [r.group, r.strategy, r.node, r.kind, r.role, r.term, r.last, r.behind_bytes, r.address, r.peer, r.uuid[:8]]
            for r in rows
        ],
    )


def _rows(view: GroupView) -> list[Row]:
    if view.replicas is None:
        return [Row(view.name, "?", "?", "", "unknown", 0, 0, None, addr, "", "") for addr in view.addresses]
    leader = view.replicas.get(view.leader) if view.leader else None
    return [
        Row(
            view.name,
            view.strategy,
            node,
            "learner" if each.learner else "voter",
            _role(each),
            each.term,
            each.last,
            max(0, leader.lastPosition - each.lastPosition) if leader is not None and each.lastPosition else None,
            each.addr,
            each.peer,
            each.uuid,
        )
        for node, each in sorted(view.replicas.items())
    ]


def _role(each: ReplicaStatus) -> str:
    if each.role == "leader" and not each.ready:
        return "leader (not ready)"
    return f"{each.role} (suspect)" if each.suspect else each.role
