"""What replicas of one group say to each other.

Every message has `term`, `sender` and `to`. Cluster, group and lineage are the transport's business: it refuses frames
that do not match before they get here. Two lanes: everything except `AppendRequest` is small and goes ahead of bulk
data (`is_bulk`); requests to one peer must stay in order for speed, never for safety. Any message may be lost,
doubled, delayed or reordered.

Beats of many groups between two nodes travel in one frame: the driver collects the `Beat`s that one tick of all its
cores put out for a node, writes (group, term, commit, round, echo) of each, and hands them to the cores over there one
by one; the `BeatReply`s go back alike. A core beats all its peers in the same tick, so a driver that ticks all cores
together gets one frame per node and interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from raft.core.types import EntryId, EntryLike, Health, NodeId

__all__ = [
    "AppendReply",
    "AppendRequest",
    "Beat",
    "BeatReply",
    "CampaignNow",
    "Message",
    "VoteReply",
    "VoteRequest",
    "is_bulk",
]


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """Ask for a vote, or with `pre` whether one would be given (no state changes on either side)."""

    term: int
    """The term to be elected in: for a pre-vote the sender's term + 1."""
    sender: NodeId
    to: NodeId
    last: EntryId
    """End of the sender's log, durable when a real request leaves."""
    nonce: int
    """Random per round; the answer echoes it, so no answer reaches another round or another life of the sender."""
    pre: bool
    transfer: bool = False
    """The leader asked for this election: stickiness does not apply."""
    resumes: bool = False
    """Not Raft's (`Rules.resumes`): of the term of its last entry nothing counts that the sender's log lacks."""


@dataclass(frozen=True, slots=True)
class VoteReply:
    """A grant (durable before it leaves, unless `pre`) or a refusal."""

    term: int
    """The term of the answering replica, after the request."""
    sender: NodeId
    to: NodeId
    nonce: int
    pre: bool
    granted: bool
    sticky: bool = False
    """Refused only because a leader was heard from: worth asking again soon."""


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """The leader's entries (prev.index, last.index], possibly none.

    On the way out `entries` is empty: the driver fills in the range, what is not yet durable from `RaftCore.pending`,
    the rest from the log's cache or disk. If what it read does not end in `last` (index, term, crc), leadership was
    lost meanwhile: it drops the request, as if lost on the network.
    """

    term: int
    sender: NodeId
    to: NodeId
    prev: EntryId
    last: EntryId
    """The last entry of the range; equal to `prev` when the request is empty."""
    commit: int
    echo: int
    """The newest incarnation of the receiver that the leader knows of (0: none yet)."""
    entries: Sequence[EntryLike] = ()


@dataclass(frozen=True, slots=True)
class AppendReply:
    """To an append: the verified, durable prefix; or a rejection with a hint where to look next."""

    term: int
    sender: NodeId
    to: NodeId
    match: int
    """Accepted: everything up to here equals the leader's log and is durable. Rejected: 0."""
    rejected: int
    """Rejected: the `prev.index` that did not match. Accepted: -1."""
    hint_index: int
    """Rejected: the largest own index <= prev.index whose term is <= prev.term ..."""
    hint_term: int
    """... and its term."""
    first_index: int
    """The oldest entry that the sender still stores."""
    health: Health
    """Not OK: `match` steers the flow only, it is not an acknowledgement and counts for nothing."""
    incarnation: int
    """`HardState.starts` of the sender: what an earlier life of it said is ignored."""


@dataclass(frozen=True, slots=True)
class Beat:
    """I lead. Never waits for a disk or behind bulk data."""

    term: int
    sender: NodeId
    to: NodeId
    commit: int
    """Capped at what this peer is known to hold."""
    round: int
    """Grows with each round of beats in a term; answers to it confirm leadership for reads."""
    echo: int


@dataclass(frozen=True, slots=True)
class BeatReply:
    term: int
    sender: NodeId
    to: NodeId
    round: int
    health: Health
    incarnation: int


@dataclass(frozen=True, slots=True)
class CampaignNow:
    """Transfer: the leader asks this caught-up voter to campaign at once, without pre-vote."""

    term: int
    sender: NodeId
    to: NodeId


Message: TypeAlias = VoteRequest | VoteReply | AppendRequest | AppendReply | Beat | BeatReply | CampaignNow


def is_bulk(message: Message) -> bool:
    """Whether it belongs to the data lane; all others go ahead of it."""
    return type(message) is AppendRequest
