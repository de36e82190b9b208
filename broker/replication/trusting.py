"""The operator's word for a suspect log, when no leader can be elected that would make it good.

A suspect replica may lack entries that it had acknowledged, so it grants no vote until a leader elected without it has
shown it what is committed. When too many replicas are suspect, or lost, nobody can be elected: the group stands still
rather than go on without what was acknowledged. Only a person can know that the others will not come back; whoever says
so hears first what may be given up, and names that with a flag.

A *damaged* replica is not helped this way: what it lacks lies within its log, and only a peer has it.
"""

from __future__ import annotations

from typing import Final

import trio

from broker.replication.base import ReplicatorError
from broker.replication.ha.trust import Trust
from raft.core import RaftCore
from raft.core.errors import Refused
from raft.core.types import Health
from raft.group import RaftGroup

__all__ = ["TrustRefused", "trust_log"]

TURN_S: Final = 5.0


class TrustRefused(ReplicatorError):
    """The log is as suspect as before; the message says why, or what would be given up."""


async def trust_log(group: RaftGroup, kept: Trust, *, accept_loss: bool) -> str:
    """Let this replica vote and lead with the log that it has; returns what may be lost by it.

    Raises TrustRefused, OSError. That it was an order is on the disk before it counts.
    """

    def trust(core: RaftCore, now_ms: int) -> str:
        loss = may_be_lost(core)
        if not accept_loss and core.health is Health.SUSPECT:
            raise Refused(f"{loss}. To go on without: --accept-loss")
        core.trust_by_order(now_ms)
        return loss

    if group.core is None:
        raise TrustRefused(
            f"{group.node_id} waits for {group.waiting_for}: only a peer can help it (or replace it by an empty one)"
        )
    try:
        with trio.move_on_after(TURN_S):
            if accept_loss and group.core.health is Health.SUSPECT:
                await kept.accept()
            return await group.ask(trust)
    except Refused as error:
        raise TrustRefused(str(error)) from None
    raise TrustRefused("the replica stopped meanwhile: look at its state, then ask again")


def may_be_lost(core: RaftCore) -> str:
    """In words for an operator."""
    membership = core.membership
    voters = ", ".join(membership.voter_ids) if membership is not None else "unknown"
    return (
        f"{core.id} holds entries up to {core.last.index} (term {core.last.term}, position {core.last.end}) and may"
        f" have acknowledged more: messages behind that which no other voter holds are given up (voters: {voters})."
        " Bring the others back first; of several suspect replicas trust the one that holds most; one that returns"
        " later with more has to be replaced by an empty one"
    )
