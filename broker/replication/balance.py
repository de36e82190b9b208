"""Preferred leaders, softly: hand leadership to the replica it is meant for, once that is surely healthy.

A rank only delays campaigns; it never refuses a vote (that could elect nobody). What brings leadership back after a
restart is this: a leader that is not the preferred one transfers to a better-ranked member that has been healthy and
caught up for `STEADY_MS`, after a random pause (so that several groups of a node do not move at once), and not again
within `PAUSE_S` when that did not work.

A group that has just been formed is different: whoever came first leads all groups, nothing is at stake yet, and the
load should be spread before it comes. There the preferred replica gets its turn once it has answered for a moment.
"""

from __future__ import annotations

import random
from typing import Final

from raft.core import RaftCore
from raft.core.types import Health, NodeId
from raft.core.types import Role as CoreRole

__all__ = ["Balance"]

STEADY_MS: Final = 30_000
JITTER_S: Final = 10.0
PAUSE_S: Final = 60.0
FRESH_TERM: Final = 2
"""A group in its first term of office, the one after its formation."""
FRESH_STEADY_MS: Final = 500
FRESH_JITTER_S: Final = 0.5


class Balance:
    """Decides when to hand over, and to whom."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._due: float | None = None
        self._target: NodeId = ""

    def tried(self, now: float) -> None:
        """A transfer was tried: not again for a while."""
        self._due = now + PAUSE_S
        self._target = ""

    def target(self, core: RaftCore, now: float) -> NodeId:
        """Whom to hand leadership to now; "" nobody. Called every now and then."""
        best = self._better(core)
        if not best:
            if self._target:
                self._target, self._due = "", None
            return ""
        if self._due is None:
            self._due = now + self._rng.uniform(0, FRESH_JITTER_S if core.term <= FRESH_TERM else JITTER_S)
        self._target = best
        return best if now >= self._due else ""

    def _better(self, core: RaftCore) -> NodeId:
        """The best-ranked steady voter that ranks before this leader."""
        membership = core.membership
        if core.role is not CoreRole.LEADER or core.transferring or membership is None:
            return ""
        ranks = {member.id: member.rank for member in membership.voters}
        own = ranks.get(core.id)
        if own is None:
            return ""
        enough_ms = FRESH_STEADY_MS if core.term <= FRESH_TERM else STEADY_MS
        steady = [
            (ranks[peer.id], peer.id)
            for peer in core.status().peers
            if peer.id in ranks and peer.health is Health.OK and peer.steady_ms >= enough_ms and ranks[peer.id] < own
        ]
        return min(steady)[1] if steady else ""
