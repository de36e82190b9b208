"""Changing who belongs to a Raft group, one replica at a time.

What a change makes of a membership, and what is wrong with it, is a function (`changed`). Beside the core's own guards
(own-term entry committed, one change in flight, a learner has caught up, one voter at a time) two more stand here:

- *Identity.* A replica joins with the uuid of its store. Whoever comes under its name with another store is refused by
  every member, and has to be removed and added again: a wiped disk cannot vote twice in one term.
- *Liveness.* A removal must leave a majority of voters that answer now. Two voters or fewer are a maintenance state
  and need the word: such a group stands still when one of them fails.

A change is in force on each replica from the moment its entry is appended; the caller hears of it when it is committed.
A leader that removes itself leads on until then, does not count itself, and leaves to the best of the others.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Protocol

from broker.replication.base import ChangeKind, ChangeRefused, LeaderHint, MembershipChange, NotLeader
from broker.replication.leading import Leading, Moved
from raft.core import RaftCore
from raft.core.errors import ChangeRefused as CoreChangeRefused
from raft.core.errors import NotLeader as CoreNotLeader
from raft.core.errors import Refused
from raft.core.types import Health, Member, Membership
from raft.group import RaftGroup
from raft.transport import Address

__all__ = ["MemberChanges", "changed"]

log = logging.getLogger(__name__)

LEARNERS_MAX = 8
FULL_STRENGTH = 3
"""Fewer voters than this cannot lose one."""


class Place(Protocol):
    """Appends a membership entry behind all that is open; returns its index."""

    def __call__(self, core: RaftCore, membership: Membership, *, allow_two: bool) -> int: ...


class MemberChanges:
    """Makes changes at a leader. One per replica."""

    def __init__(self, leading: Leading, moved: Moved, place: Place) -> None:
        self._leading = leading
        self._moved = moved
        self._place = place

    async def make(self, group: RaftGroup, change: MembershipChange, hint: LeaderHint) -> None:
        """Returns when the change is committed. Raises NotLeader, ChangeRefused."""
        term = self._leading.term
        told: list[int | Exception] = []

        def propose(core: RaftCore, now_ms: int) -> None:
            try:
                told.append(self._propose(core, change))
            except CoreNotLeader:
                told.append(NotLeader(hint))
            except CoreChangeRefused as error:
                told.append(ChangeRefused(str(error), later=error.later))
            except Refused as error:  # a transfer is under way
                told.append(ChangeRefused(str(error), later=True))
            except ChangeRefused as error:
                told.append(error)
            self._moved.note()

        group.call(propose)
        while not told:
            await self._wait(term, hint)
        if isinstance(told[0], Exception):
            raise told[0]
        index = told[0]
        log.info(
            "membership changes",
            extra={
                "group": group.settings.group,
                "change": change.kind.value,
                "member": change.node_id,
                "index": index,
            },
        )
        while not _committed(group, index, term):
            await self._wait(term, hint)

    async def _wait(self, term: int, hint: LeaderHint) -> None:
        if self._leading.term != term:
            raise NotLeader(hint)
        await self._moved.wait()

    def _propose(self, core: RaftCore, change: MembershipChange) -> int:
        """In a turn of the group's loop: the entry's index. Raises what the core raises, ChangeRefused."""
        if not self._leading.ready:
            raise ChangeRefused("this leader is not ready yet", later=True)
        old = core.membership
        assert old is not None, "a leader has a membership"
        return self._place(core, changed(old, change, alive=_alive(core)), allow_two=change.maintenance)


def _alive(core: RaftCore) -> frozenset[str]:
    """Who answers and may be counted, this replica included."""
    found = {core.id}
    found.update(
        peer.id
        for peer in core.status().peers
        if peer.silent_ms < core.config.election_ms and peer.health in (Health.OK, Health.FULL)
    )
    return frozenset(found)


def _committed(group: RaftGroup, index: int, term: int) -> bool:
    core = group.core
    if core is None or core.commit < index:
        return False
    entry = core.entry_id(index)
    return entry is not None and entry.term == term


def changed(old: Membership, change: MembershipChange, *, alive: Collection[str]) -> Membership:
    """The membership after a change. Raises ChangeRefused with the reason."""
    match change.kind:
        case ChangeKind.ADD:
            return _added(old, change)
        case ChangeKind.PROMOTE:
            return _promoted(old, change.node_id)
        case ChangeKind.REMOVE:
            return _removed(old, change, alive)


def _added(old: Membership, change: MembershipChange) -> Membership:
    node = change.node_id
    members = (*old.voters, *old.learners)
    present = old.member(node)
    if present is not None:
        what = "a voter" if node in old.voter_ids else "a learner"
        if present.uuid == change.uuid:
            raise ChangeRefused(f"{node} is {what} of this group already")
        raise ChangeRefused(
            f"{node} is {what} of this group with another store ({present.uuid[:8]}, not {change.uuid[:8]}): its disk "
            f"was replaced; remove it first, then add it again"
        )
    if not node or not change.uuid:
        raise ChangeRefused("a replica joins with its node id and the uuid of its store: ask the replica itself (9001)")
    try:
        address = Address.parse(change.address)
    except ValueError as error:
        raise ChangeRefused(f"peer address {change.address!r}: {error}") from None
    for member in members:
        if member.address == str(address):
            raise ChangeRefused(f"{member.id} listens for its peers at {address} already")
    if len(old.learners) >= LEARNERS_MAX:
        raise ChangeRefused(f"there are {len(old.learners)} learners already: promote or remove one first")
    rank = change.rank if change.rank >= 0 else max((member.rank for member in members), default=-1) + 1
    joining = Member(node, rank, str(address), change.client_address, change.uuid)
    return replace(old, learners=_sorted(*old.learners, joining))


def _promoted(old: Membership, node: str) -> Membership:
    if node in old.voter_ids:
        raise ChangeRefused(f"{node} is a voter of this group already")
    learner = old.member(node)
    if learner is None:
        raise ChangeRefused(f"{node} is no learner of this group: add it first (members: {_names(old)})")
    return replace(old, voters=_sorted(*old.voters, learner), learners=_without(old.learners, node))


def _removed(old: Membership, change: MembershipChange, alive: Collection[str]) -> Membership:
    node = change.node_id
    if old.member(node) is None:
        raise ChangeRefused(f"{node} is no member of this group (members: {_names(old)})")
    new = replace(old, voters=_without(old.voters, node), learners=_without(old.learners, node))
    left = new.voter_ids
    if len(left) == len(old.voters):
        return new  # a learner: nobody counts on it
    if not left:
        raise ChangeRefused(f"{node} is the last voter: a group cannot remove it")
    if len(left) < FULL_STRENGTH and not change.maintenance:
        raise ChangeRefused(
            f"without {node} there are {len(left)} voters left, and the group stands still when one of them fails: add "
            "a replica first, or allow it for the time of a maintenance (--maintenance)"
        )
    answering = [voter for voter in left if voter in alive]
    if len(answering) <= len(left) // 2:
        raise ChangeRefused(
            f"without {node} only {len(answering)} of {len(left)} voters answer: the group would have no majority",
            later=True,
        )
    return new


def _sorted(*members: Member) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: member.id))


def _without(members: tuple[Member, ...], node: str) -> tuple[Member, ...]:
    return tuple(member for member in members if member.id != node)


def _names(membership: Membership) -> str:
    learners = [f"{node} (learner)" for node in membership.learner_ids]
    return ", ".join([*membership.voter_ids, *learners])
