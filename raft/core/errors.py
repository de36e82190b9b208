"""What the core raises.

`InvariantBroken` means that this replica's picture of the world contradicts itself: the group stops, its driver answers
waiters "unknown" and goes on only from disk, with full verification. The others are refusals of a request: nothing has
changed.
"""

from __future__ import annotations

from raft.core.types import NodeId

__all__ = ["ChangeRefused", "InvariantBroken", "NotLeader", "Refused", "TransferRefused", "Transferring"]


class InvariantBroken(Exception):
    """A safety invariant does not hold. Fatal for the group on this replica, never caught inside the core."""

    def __init__(self, invariant: str, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}")
        self.invariant = invariant
        """Its number in the list of safety invariants, `S1` to `S22`."""


class Refused(Exception):
    """A request that cannot be served now; nothing was changed."""


class NotLeader(Refused):
    def __init__(self, leader: NodeId) -> None:
        super().__init__(f"not the leader; known leader: {leader or 'none'}")
        self.leader = leader


class Transferring(Refused):
    """Leadership is being handed over: no proposals until that ends, one election timeout at most."""


class TransferRefused(Refused):
    """The target cannot take over: unknown, learner, unhealthy, silent or too far behind."""


class ChangeRefused(Refused):
    """A membership change that one of the guards forbids."""

    def __init__(self, reason: str, *, later: bool = False) -> None:
        super().__init__(reason)
        self.later = later
        """Only time is missing: an entry has to commit, a learner has to catch up."""
