"""`trimq admin clusterList`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import click

from trimq.cli.admin.session import Session, in_parallel, open_session
from trimq.cli.output import json_option, namesrv_option, print_json, print_table
from trimq.cli.run import run_async
from trimq.errors import BrokerError, Disconnected, ProtocolError
from trimq.wire.body.group import GroupStatus
from trimq.wire.body.route import BrokerData
from trimq.wire.codes import RequestCode

__all__ = ["cluster_list"]


@dataclass(frozen=True, slots=True)
class Row:
    """One replica. Fields after `address` are None where the broker does not tell them (it is not ours)."""

    cluster: str
    broker: str
    id: int | None
    """None: a member of the group that is not registered now."""
    address: str
    node: str | None = None
    role: str | None = None
    ready: bool | None = None
    term: int | None = None
    last: int | None = None
    commit: int | None = None
    dispatched: int | None = None


@click.command("clusterList")
@namesrv_option
@click.option("-c", "--cluster", help="Only this cluster.")
@json_option
def cluster_list(namesrv: str, cluster: str | None, as_json: bool) -> None:
    """Brokers, who leads, how far each replica is.

    `last`, `commit` and `dispatched` are log indexes; a replica without an id is known to its group but not registered.
    """
    run_async(partial(_run, namesrv, cluster, as_json))


async def _run(namesrv: str, cluster: str | None, as_json: bool) -> None:
    async with open_session(namesrv) as session:
        info = await session.cluster()
        brokers = [b for _, b in sorted(info.brokerAddrTable.items()) if cluster in (None, b.cluster)]
        groups = await in_parallel(brokers, partial(_rows, session))
    rows = [row for group in groups for row in group]
    if as_json:
        print_json([asdict(row) for row in rows])
    elif not rows:
        click.echo("no brokers are registered", err=True)
    else:
        print_table(
            ["cluster", "broker", "id", "address", "node", "role", "term", "last", "commit", "dispatched"],
            [
                [r.cluster, r.broker, r.id, r.address, r.node, _role(r), r.term, r.last, r.commit, r.dispatched]
                for r in rows
            ],
        )


def _role(row: Row) -> str | None:
    if row.role == "leader" and row.ready is False:
        return "leader (not ready)"
    return row.role or ("master" if row.id == 0 else "slave")


async def _rows(session: Session, broker: BrokerData) -> list[Row]:
    status = await _status(session, broker)
    if status is None:
        return [Row(broker.cluster, broker.brokerName, i, addr) for i, addr in sorted(broker.brokerAddrs.items())]
    ids = {addr: broker_id for broker_id, addr in broker.brokerAddrs.items()}
    rows = [
        Row(
            broker.cluster,
            broker.brokerName,
            ids.pop(replica.addr, None),
            replica.addr,
            node,
            replica.role,
            replica.ready,
            replica.term,
            replica.last,
            replica.commit,
            replica.dispatched,
        )
        for node, replica in sorted(status.replicas.items())
    ]
    return rows + [Row(broker.cluster, broker.brokerName, i, addr) for addr, i in sorted(ids.items())]


async def _status(session: Session, broker: BrokerData) -> GroupStatus | None:
    """The group as its leader (else any replica) sees it; None when nobody can tell."""
    for _, addr in sorted(broker.brokerAddrs.items()):
        try:
            answer = await session.ask(addr, RequestCode.GROUP_STATUS, {"group": broker.brokerName})
            return GroupStatus.from_json(answer.body)
        except (Disconnected, BrokerError, ProtocolError):
            continue
    return None
