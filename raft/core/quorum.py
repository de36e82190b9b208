"""Who together decides: quorums as sets of sets.

A quorum system is a tuple of voter sets and a decision needs a majority in *every* set. Single-server changes need one
set only; joint consensus would be two, and no caller would notice. The three questions ever asked: did a vote
succeed, up to which index does a majority agree, and is this set of replicas a majority.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from enum import Enum
from typing import TypeAlias

from raft.core.types import Membership, NodeId

__all__ = ["Quorum", "Verdict", "agreed", "holds", "majority", "quorum_of", "tally"]

Quorum: TypeAlias = tuple[tuple[NodeId, ...], ...]
"""Each inner tuple sorted. An empty inner set can never decide anything."""


class Verdict(Enum):
    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def quorum_of(membership: Membership | None) -> Quorum:
    return ((),) if membership is None else (membership.voter_ids,)


def majority(size: int) -> int:
    """How many of `size` are more than half."""
    return size // 2 + 1


def tally(quorum: Quorum, votes: Mapping[NodeId, bool]) -> Verdict:
    """The state of a vote: won when every set has a majority of yes, lost when some set cannot get one any more."""
    verdict = Verdict.WON
    for voters in quorum:
        need = majority(len(voters))
        yes = sum(1 for v in voters if votes.get(v) is True)
        no = sum(1 for v in voters if votes.get(v) is False)
        if len(voters) - no < need:
            return Verdict.LOST
        if yes < need:
            verdict = Verdict.PENDING
    return verdict


def agreed(quorum: Quorum, reached: Mapping[NodeId, int]) -> int:
    """The largest value that a majority of every set has reached; who is missing counts as 0."""
    lowest: int | None = None
    for voters in quorum:
        if not voters:
            return 0
        values = sorted((reached.get(v, 0) for v in voters), reverse=True)
        value = values[majority(len(voters)) - 1]
        lowest = value if lowest is None else min(lowest, value)
    return lowest or 0


def holds(quorum: Quorum, nodes: Container[NodeId]) -> bool:
    """Whether `nodes` contain a majority of every set."""
    return all(sum(1 for v in voters if v in nodes) >= majority(len(voters)) for voters in quorum)
