"""A Raft replica's picture of itself and its group, for clients, operators, metrics and tests."""

from __future__ import annotations

from collections.abc import Sequence

from broker.replication.base import Health, LeaderHint, PeerStatus, Replicas, ReplicaStatus, Role, RoleEvent
from broker.replication.ha.rules import RAFT
from broker.replication.raft_config import GroupConfig
from broker.replication.store_view import ReplicatedStore
from raft.core.types import Health as CoreHealth
from raft.core.types import Member, StorageFault
from raft.core.types import Role as CoreRole
from raft.group import RaftGroup

__all__ = ["ROLES", "group_replicas", "replica_status"]

ROLES = {
    CoreRole.FOLLOWER: Role.FOLLOWER,
    CoreRole.PRE_CANDIDATE: Role.CANDIDATE,
    CoreRole.CANDIDATE: Role.CANDIDATE,
    CoreRole.LEADER: Role.LEADER,
    CoreRole.LEARNER: Role.LEARNER,
}
_HEALTH = {
    CoreHealth.OK: Health.OK,
    CoreHealth.SUSPECT: Health.SUSPECT,
    CoreHealth.DAMAGED: Health.DAMAGED,
    CoreHealth.IMPAIRED: Health.IMPAIRED,
    CoreHealth.FULL: Health.IMPAIRED,
}


def replica_status(
    *,
    group: RaftGroup | None,
    store: ReplicatedStore,
    node_id: str,
    present: RoleEvent,
    leader: LeaderHint,
    commit: int,
    visible: int,
    failure: str,
    strategy: str,
) -> ReplicaStatus:
    """Put together what the parts know."""
    core = group.core if group is not None else None
    health, detail = _health(group, store, failure)
    return ReplicaStatus(
        strategy=strategy,
        node_id=node_id,
        role=present.role,
        term=present.term,
        ready=present.ready,
        leader=leader,
        health=health,
        detail=detail,
        first=store.log.first_index,
        last=core.last.index if core is not None else store.log.last.index,
        durable=core.durable if core is not None else store.log.durable.index,
        commit=commit,
        dispatched=store.dispatched,
        visible=visible,
        peers=_peers(group),
        store_uuid=group.store_uuid if group is not None else "",
        peer_address=str(group.settings.own_address) if group is not None else "",
        rank=group.settings.own_rank if group is not None else -1,
    )


def _health(group: RaftGroup | None, store: ReplicatedStore, failure: str) -> tuple[Health, str]:
    if failure:
        return Health.FAILED, failure
    fault = store.log.fault
    if group is None or group.core is None:
        if fault is not None:
            return Health.DAMAGED, fault.detail
        waiting = group.waiting_for if group is not None else "the start"
        return Health.SUSPECT if store.log.formed else Health.UNFORMED, f"waiting for {waiting}"
    disk, detail = group.fault
    if group.members.removed:
        return _HEALTH[group.core.health], "removed from the group: stop this replica; to take it back, add it again"
    if disk is StorageFault.FULL:
        detail = f"disk full: {detail}"
    elif not detail and fault is not None:
        detail = fault.detail
    return _HEALTH[group.core.health], detail


def _peers(group: RaftGroup | None) -> tuple[PeerStatus, ...]:
    core = group.core if group is not None else None
    if group is None or core is None or core.role is not CoreRole.LEADER:
        return ()
    peers = []
    for peer in core.status().peers:
        matched = core.entry_id(peer.match)
        lag = core.last.end - (matched.end if matched is not None else 0)
        connected = group.members.connected(peer.id)
        peers.append(PeerStatus(peer.id, peer.match, lag, connected, peer.state.name.lower()))
    return tuple(peers)


def group_replicas(
    group: RaftGroup | None, config: GroupConfig, *, strategy: str, in_sync: tuple[str, ...]
) -> Replicas:
    """Who belongs to the group, with the addresses that are known for clients."""
    if group is None:
        return Replicas(tuple((member.id, "") for member in config.members()))
    membership = group.core.membership if group.core is not None else None
    voters = membership.voters if membership is not None else group.members.all
    learners = membership.learners if membership is not None else ()
    gone = config.node_id if group.members.removed else ""  # known from a peer: the log does not say it yet
    return Replicas(
        tuple((member.id, group.members.client_address(member.id)) for member in voters if member.id != gone),
        tuple((member.id, group.members.client_address(member.id)) for member in learners if member.id != gone),
        () if strategy == RAFT else _numbers(config, (*voters, *learners)),
        in_sync,
    )


def _numbers(config: GroupConfig, members: Sequence[Member]) -> tuple[tuple[str, int], ...]:
    numbers = {member.id: member.rank for member in members}
    numbers.setdefault(config.node_id, config.ha.rank)  # not listed yet
    return tuple(sorted(numbers.items()))
