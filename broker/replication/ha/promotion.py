"""Making a slave the master by hand, and what the operator hears about it.

An election whose timer is a person: the candidate opens an epoch, asks every voter for a grant, and leads with
n - required + 1 of them. Whoever can answer is waited for; a refusal (somebody has more, or hears a living master) ends
it. `force` needs nobody: then the report says what may be lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio

from broker.replication.base import ReplicatorError
from broker.replication.ha.rules import GroupRules, detail_of, grants_needed
from raft.core import RaftCore
from raft.core.errors import Refused
from raft.core.types import NodeId, Role
from raft.group import RaftGroup

__all__ = ["Promotion", "PromotionRefused", "promote"]

PROMOTION_S: Final = 2.0
_LOOK_S: Final = 0.02
_PAUSE_S: Final = 0.05


class PromotionRefused(ReplicatorError):
    """This replica did not become the master; the message says what was missing."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """How it went."""

    epoch: int
    granted: tuple[NodeId, ...]
    silent: tuple[NodeId, ...]
    needed: int
    forced: bool

    @property
    def may_lose(self) -> str:
        """What a forced promotion may have given up; "" for one that had its grants."""
        if len(self.granted) >= self.needed:
            return ""
        return (
            f"{len(self.granted)} of the {self.needed} grants that rule out a loss: messages acknowledged by"
            f" {', '.join(self.silent) or 'others'} that had not reached {', '.join(self.granted)} are given up"
        )


async def promote(group: RaftGroup, rules: GroupRules, *, force: bool) -> Promotion:
    """Make this replica the master; returns when it leads. Raises PromotionRefused, with the number missing."""
    core = group.core
    if core is None or core.membership is None:
        raise PromotionRefused(f"this replica waits for {group.waiting_for or 'its group'}")
    if rules.raft_only(core):
        raise PromotionRefused("the group elects its leader itself (strategy raft): hand leadership over instead")
    deadline = trio.current_time() + PROMOTION_S
    while True:
        votes = await _ask(group, core, force)
        if core.role is Role.LEADER:
            return _report(core, votes, force)
        refused = any(granted is False for granted in votes.values()) and not core.outvoted_by
        if not refused or core is not group.core or trio.current_time() > deadline:
            raise PromotionRefused(_missing(core, votes))
        await trio.sleep(_PAUSE_S)  # whoever heard the old master a moment ago refuses, but not for long


async def _ask(group: RaftGroup, core: RaftCore, force: bool) -> dict[NodeId, bool]:
    """One campaign; returns who answered, and how. Raises PromotionRefused when this replica cannot lead."""
    try:
        with trio.move_on_after(PROMOTION_S):
            await group.ask(lambda core, now_ms: core.campaign_by_order(now_ms, force=force))
            while core is group.core and core.role in (Role.PRE_CANDIDATE, Role.CANDIDATE):  # noqa: ASYNC110 - the core wakes nobody
                await trio.sleep(_LOOK_S)
    except Refused as error:
        raise PromotionRefused(str(error)) from None
    return core.votes


def _report(core: RaftCore, votes: dict[NodeId, bool], force: bool) -> Promotion:
    membership = core.membership
    assert membership is not None, "a leader has a membership"
    granted = tuple(node for node in membership.voter_ids if votes.get(node))
    silent = tuple(node for node in membership.voter_ids if node not in votes)
    return Promotion(core.term, granted, silent, grants_needed(membership), force)


def _missing(core: RaftCore, votes: dict[NodeId, bool]) -> str:
    membership = core.membership
    assert membership is not None, "checked before"
    needed, detail = grants_needed(membership), detail_of(membership)
    granted = [node for node in membership.voter_ids if votes.get(node)]
    refused = [node for node in membership.voter_ids if votes.get(node) is False]
    silent = [node for node in membership.voter_ids if node not in votes]
    words = [f"{len(granted)} of {needed} grants ({needed - len(granted)} missing, {detail.strategy})"]
    if refused:
        words.append(f"{', '.join(refused)} refused: it hears a master, or has a newer log (promote that one)")
    elif silent:
        words.append(f"no answer from {', '.join(silent)}")
    words.append("bring them back, or use --force and lose what only they have")
    return "; ".join(words)
