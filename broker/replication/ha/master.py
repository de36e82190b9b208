"""What a master does beside leading: who is in sync, what producers are told, who belongs to the group.

Work is done in the group's turns and in its sweeps; nothing here waits. Membership entries are placed one after the
other, each when the one before is committed: the master's own name and settings first, then slaves that ask to join
(as learners), then learners that have caught up (as voters, whose grants and acknowledgements count).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from broker.replication.base import LeaderHint, Outcome, ReplicatorError, Replies, Verdict
from broker.replication.ha.config import HaConfig
from broker.replication.ha.in_sync import InSync, SlaveView
from broker.replication.ha.rules import RAFT, SYNC, GroupRules, detail_of
from broker.replication.ha.tickets import MasterTickets
from raft.core import RaftCore
from raft.core.errors import Refused
from raft.core.types import Health, Member, Membership, PeerState
from raft.group import RaftGroup

__all__ = ["JoinRefused", "Master"]

log = logging.getLogger(__name__)

Place = Callable[[RaftCore, Membership], object]
"""Append a membership entry, the open batch before it. Raises `raft.core.errors.Refused`."""


class JoinRefused(ReplicatorError):
    """This slave cannot follow here; the message says why."""


class Master:
    """One per replica, for all its masterships."""

    def __init__(self, config: HaConfig, rules: GroupRules, group: str, place: Place) -> None:
        self.tickets = MasterTickets(config)
        self._config = config
        self._rules = rules
        self._name = group
        self._place = place
        self._in_sync: InSync | None = None
        self._refusing = False
        self._joining: dict[str, Member] = {}
        """Slaves that asked to join and are not listed yet."""

    @property
    def in_sync(self) -> tuple[str, ...]:
        """The replicas in sync, as the master sees them; empty elsewhere."""
        return self._in_sync.members if self._in_sync is not None else ()

    @property
    def takes(self) -> bool:
        """Are at least `minInSyncReplicas` in sync?"""
        return not self._refusing

    @property
    def shortage(self) -> str:
        """What is missing, in words; "" while messages are taken."""
        if self.takes:
            return ""
        members = self.in_sync
        return (
            f"in-sync replicas not enough: {len(members)} ({', '.join(members)}) of minInSyncReplicas"
            f" {self._config.least}, nothing was stored: bring slaves back, or lower minInSyncReplicas"
        )

    def begin(self, group: RaftGroup, core: RaftCore, now: float) -> None:
        """This replica leads."""
        self._in_sync = InSync(core.id, self._slaves(group, core), now)
        self._tell_rules(core)

    def end(self, leader: LeaderHint) -> None:
        """It does not any more: what was in flight has an unknown fate."""
        self._in_sync = None
        self._refusing = False
        self._joining.clear()
        replies = Replies()
        self.tickets.settle_all(Outcome(Verdict.UNKNOWN, leader), replies)
        replies.flush()

    def sweep(self, group: RaftGroup, core: RaftCore, now: float) -> bool:
        """Now and then, and when links change. True: what counts may have moved, count again."""
        if self._in_sync is None:
            return False
        confirmed = core.commit
        changed = self._in_sync.update(
            self._slaves(group, core), confirmed=confirmed, gap_bytes=self._config.gap_bytes, now=now
        )
        if changed:
            self._tell_rules(core)
        if RAFT not in self._rules.strategies(core):
            self._keep_members(core)
        return changed

    def settle(self, core: RaftCore, now: float, leader: LeaderHint) -> None:
        """Answer producers whose entries' fate is known."""
        if self.tickets:
            replies = Replies()
            self.tickets.settle(
                acknowledged=core.acknowledged, durable=core.durable, now=now, leader=leader, replies=replies
            )
            replies.flush()

    def _tell_rules(self, core: RaftCore) -> None:
        config, members = self._config, self.in_sync
        self._rules.in_sync = members
        self._rules.wanted = max(config.least, min(config.wanted, len(members))) if config.lowers else 0
        if self._rules.raft_only(core):
            return
        log.info("replicas in sync", extra={"group": self._name, "in_sync": ",".join(members)})
        refusing = len(members) < config.least
        if refusing != self._refusing:
            self._refusing = refusing
            log.warning(
                "too few replicas in sync (minInSyncReplicas): messages are refused"
                if refusing
                else "enough replicas are in sync again",
                extra={"group": self._name, "in_sync": ",".join(members), "least": config.least},
            )

    @staticmethod
    def _slaves(group: RaftGroup, core: RaftCore) -> list[SlaveView]:
        found = []
        for peer in core.status().peers:
            if not peer.voter:
                continue
            held = core.entry_id(peer.match)
            found.append(
                SlaveView(
                    id=peer.id,
                    connected=group.members.connected(peer.id),
                    healthy=peer.health in (Health.OK, Health.FULL),
                    match=peer.match,
                    lag_bytes=core.last.end - (held.end if held is not None else 0),
                    silent_s=peer.silent_ms / 1000,
                )
            )
        return found

    # members

    def admit(self, group: RaftGroup, member: Member, strategy: str) -> str:
        """A slave asks to join; returns the peer address to follow. Raises JoinRefused."""
        if strategy == RAFT:
            raise JoinRefused("the group is under raft: its members are changed with `trimq admin group`")
        there = group.members.introductions.get(member.id)
        if member.id == group.node_id or (there is not None and there.store_uuid != member.uuid):
            raise JoinRefused(f"{member.id} is here already: every replica of a group needs a brokerId of its own")
        self._joining[member.id] = member
        return str(group.settings.own_address)

    def _keep_members(self, core: RaftCore) -> None:
        if core.memberships.index > core.commit or not core.own_term_committed or core.membership is None:
            return
        wanted = self._next_membership(core, core.membership)
        if wanted is not None:
            try:
                self._place(core, wanted)
            except Refused as error:
                log.debug("membership stays as it is", extra={"group": self._name, "reason": str(error)})

    def _next_membership(self, core: RaftCore, now: Membership) -> Membership | None:
        detail = detail_of(now)
        own = replace(
            detail,
            master=core.id,
            required=detail.required or (self._config.required if detail.strategy == SYNC else 1),
            flush_sync=self._config.flush_sync,
        )
        if own != detail:
            return replace(now, detail=own)
        for member in list(self._joining.values()):
            listed = now.member(member.id)
            if listed is not None and listed.uuid == member.uuid and listed.address == member.address:
                del self._joining[member.id]
            else:
                return self._joined(now, member, listed)
        for learner in now.learners:
            peer = core.peers.get(learner.id)
            if peer is not None and peer.catch_up_ok and peer.state is PeerState.REPLICATE:
                log.info("slave has caught up and counts", extra={"group": self._name, "slave": learner.id})
                learners = tuple(each for each in now.learners if each is not learner)
                return replace(now, voters=_sorted(*now.voters, learner), learners=learners)
        return None

    def _joined(self, now: Membership, member: Member, listed: Member | None) -> Membership:
        others = tuple(each for each in now.voters if each.id != member.id)
        learners = tuple(each for each in now.learners if each.id != member.id)
        if listed is None:
            log.info("slave joins", extra={"group": self._name, "slave": member.id, "address": member.address})
            return replace(now, learners=_sorted(*learners, member))
        if listed.uuid != member.uuid:
            log.warning("slave comes back with an empty disk", extra={"group": self._name, "slave": member.id})
            return replace(now, voters=others, learners=learners)
        if listed in now.voters:
            return replace(now, voters=_sorted(*others, member))
        return replace(now, learners=_sorted(*learners, member))


def _sorted(*members: Member) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: member.id))
