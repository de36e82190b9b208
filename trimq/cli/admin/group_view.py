"""What the `group` commands share: finding a group's replicas and asking whichever of them answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import trio

from trimq.cli.admin.session import Session, in_parallel
from trimq.errors import BrokerError, Disconnected, NoRoute, ProtocolError
from trimq.wire.body.group import GroupStatus, ReplicaStatus
from trimq.wire.body.route import BrokerData
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command

__all__ = ["GroupView", "ask_group", "find_group", "group_option", "own_status", "statuses", "until_done"]

AGAIN_S = 0.1

group_option: Callable[[Any], Any] = click.option(
    "-g", "--group", required=True, metavar="NAME", help="The replica group (brokerName)."
)


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group, as its replicas tell it."""

    name: str
    cluster: str
    addresses: tuple[str, ...]
    """Client addresses that the name server knows, the leader's first."""
    strategy: str = ""
    leader: str | None = None
    replicas: Mapping[str, ReplicaStatus] | None = None
    """By node id; each replica that answers describes itself. None: nobody answers, or it is not ours."""


async def find_group(session: Session, name: str) -> GroupView:
    """Raises `NoRoute` when no live broker has the group."""
    info = await session.cluster()
    broker = info.brokerAddrTable.get(name)
    if broker is None:
        known = ", ".join(sorted(info.brokerAddrTable)) or "none"
        raise NoRoute(f"no replica of group {name} is registered", advice=f"registered groups: {known}")
    return await statuses(session, broker)


async def statuses(session: Session, broker: BrokerData) -> GroupView:
    """Ask every replica how it is."""
    addresses = tuple(addr for _, addr in sorted(broker.brokerAddrs.items()))
    told = {addr: said for addr in addresses if (said := await _status(session, addr, broker.brokerName)) is not None}
    members = {r.addr for said in told.values() for r in said.replicas.values() if r.addr} - set(addresses)
    for addr, said in zip(
        sorted(members),
        await in_parallel(sorted(members), partial(_status, session, name=broker.brokerName)),
        strict=True,
    ):
        if said is not None:
            told[addr] = said
    if not told:
        return GroupView(broker.brokerName, broker.cluster, addresses)
    newest = max(told.values(), key=lambda said: (said.term, said.leader is not None))
    replicas = dict(newest.replicas)
    for said in told.values():
        own = said.replicas.get(said.answeredBy)
        if own is not None:
            replicas[said.answeredBy] = own
    return GroupView(
        broker.brokerName, broker.cluster, (*addresses, *sorted(members)), newest.strategy, newest.leader, replicas
    )


async def _status(session: Session, addr: str, name: str) -> GroupStatus | None:
    try:
        answer = await session.ask(addr, RequestCode.GROUP_STATUS, {"group": name})
        return GroupStatus.from_json(answer.body)
    except (Disconnected, BrokerError, ProtocolError):
        return None


async def own_status(session: Session, addr: str) -> tuple[GroupStatus, ReplicaStatus]:
    """What the replica at an address says of its group and of itself. Raises `Disconnected`, `BrokerError`."""
    answer = await session.ask(addr, RequestCode.GROUP_STATUS)
    said = GroupStatus.from_json(answer.body)
    own = said.replicas.get(said.answeredBy)
    if own is None:
        raise ProtocolError(f"{addr} does not say who it is")
    return said, own


async def ask_group(session: Session, view: GroupView, code: int, ext: Mapping[str, str]) -> Command:
    """A request for the leader, by way of the first replica that answers. Raises `NoRoute`, `BrokerError`."""
    failures = []
    leaderless: BrokerError | None = None
    for addr in view.addresses:
        try:
            return await session.ask(addr, code, ext)
        except Disconnected as error:
            failures.append(error.message)
        except BrokerError as error:
            # A replica that was removed hears of no leader any more: the next one may.
            if error.code != ResponseCode.SERVICE_NOT_AVAILABLE:
                raise
            leaderless = error
    if leaderless is not None:
        raise leaderless
    raise NoRoute(f"no replica of group {view.name} answers: {'; '.join(failures)}")


async def until_done(session: Session, view: GroupView, code: int, ext: Mapping[str, str], wait_s: float) -> Command:
    """`ask_group`, again while only time is missing (no leader yet, a learner that catches up), for `wait_s`."""
    deadline = trio.current_time() + wait_s
    while True:
        try:
            return await ask_group(session, view, code, ext)
        except BrokerError as error:
            later = error.code in (ResponseCode.SYSTEM_BUSY, ResponseCode.SERVICE_NOT_AVAILABLE)
            if not later or trio.current_time() >= deadline:
                raise
        await trio.sleep(AGAIN_S)
