"""Running a replica group: members (9002), leadership (9003), new groups (9004).

All but 9004 are the leader's business and reach it from any replica. They change what the cluster *is*, so they are
guarded (`admin.guard`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from broker.processor.request import Refused, Request
from broker.replication.base import (
    ChangeKind,
    ChangeRefused,
    MembershipChange,
    Replicator,
    TransferFailed,
)
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.group import (
    ChangeMembersHeader,
    CreateGroupHeader,
    TransferLeaderHeader,
)

__all__ = ["ReplicationAdmin", "TakeGroup"]

log = logging.getLogger(__name__)

TakeGroup = Callable[[CreateGroupHeader], Awaitable[str]]
"""Makes the process take a replica of a new group; returns its client address. Raises `Refused`."""


class ReplicationAdmin:
    """Serves one replica."""

    def __init__(self, group: str, replicator: Replicator, take_group: TakeGroup | None) -> None:
        self._group = group
        self._replicator = replicator
        self._take_group = take_group

    async def change_members(self, request: Request) -> bytes:
        """Code 9002. SYSTEM_BUSY says that only time is missing: ask again."""
        header = ChangeMembersHeader.from_ext(request.ext)
        self._check_group(header.group)
        try:
            kind = ChangeKind(header.action)
        except ValueError:
            known = ", ".join(each.value for each in ChangeKind)
            raise Refused(ResponseCode.INVALID_PARAMETER, f"action {header.action!r} is none of {known}") from None
        change = MembershipChange(
            kind=kind,
            node_id=header.node,
            address=header.peer_addr,
            client_address=header.client_addr,
            uuid=header.store_uuid,
            rank=header.rank,
            maintenance=header.maintenance,
        )
        try:
            await self._replicator.change(change)
        except ChangeRefused as error:
            code = ResponseCode.SYSTEM_BUSY if error.later else ResponseCode.ILLEGAL_OPERATION
            raise Refused(code, str(error)) from None
        replicas = self._replicator.replicas
        names = {"voters": replicas.voters, "learners": replicas.learners}
        return request.success({key: ",".join(node for node, _ in members) for key, members in names.items()})

    async def transfer(self, request: Request) -> bytes:
        """Code 9003."""
        header = TransferLeaderHeader.from_ext(request.ext)
        self._check_group(header.group)
        try:
            await self._replicator.transfer(header.node or None)
        except TransferFailed as error:
            raise Refused(ResponseCode.ILLEGAL_OPERATION, f"leadership was not handed over: {error}") from None
        return request.success()

    async def create_group(self, request: Request) -> bytes:
        """Code 9004: any replica of the process may be asked."""
        header = CreateGroupHeader.from_ext(request.ext)
        if self._take_group is None:
            raise Refused(
                ResponseCode.ILLEGAL_OPERATION,
                "this process takes no further groups by command: give it another -c file and restart it",
            )
        return request.success({"addr": await self._take_group(header)})

    def _check_group(self, group: str) -> None:
        if group != self._group:
            raise Refused(
                ResponseCode.INVALID_PARAMETER,
                f"group {group!r} is not served here: this address serves {self._group}",
            )
