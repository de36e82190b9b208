"""How a group decides: what the core asks whenever more than one answer is possible.

The core moves entries, terms and votes; *when* an entry is committed or acknowledged, who may campaign, how many
grants make a leader and what a leader needs to go on are questions of the strategy. `Rules` gives Raft's answers: a
majority for everything. A host that replicates under another regime passes its own (`broker.replication.ha.rules`), and
a group may change its regime while it runs, since the rules are asked anew each time.

Whatever the rules say, the core's own promises hold: one vote per term, terms never fall, logs match by (index, term),
an entry is never replaced but by a newer term's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from raft.core.quorum import Quorum, Verdict, agreed, holds, quorum_of, tally
from raft.core.types import NodeId

if TYPE_CHECKING:
    from raft.core.messages import Message, VoteRequest
    from raft.core.state import CoreState

__all__ = ["RAFT_RULES", "Rules"]


class Rules:
    """Raft's. Asked synchronously by the core, of which they may read everything and change nothing."""

    def elects(self, core: CoreState) -> bool:
        """May this replica campaign because its timer ran out?"""
        return True

    def resumes(self, core: CoreState) -> bool:
        """Candidate: is nothing acknowledged or committed, of the term of its last entry, that its own log lacks?"""
        return False

    def yields_tail(self, core: CoreState, request: VoteRequest) -> bool:
        """Voter: may the sender lead although this log is longer? What it lacks is then cut off here."""
        return False

    def next_term(self, core: CoreState) -> int:
        """The term a candidate asks to lead."""
        return core.term + 1

    def tally(self, core: CoreState, votes: Mapping[NodeId, bool], *, over: bool) -> Verdict:
        """The state of the vote under way (`core.campaign` says what kind it is); `over`: its time has run out."""
        return tally(_quorum(core), votes)

    def committed(self, core: CoreState, reached: Mapping[NodeId, int]) -> int:
        """The index up to which entries are committed, by what each replica (this one included) holds."""
        return agreed(_quorum(core), reached)

    def acknowledged(self, core: CoreState, reached: Mapping[NodeId, int]) -> int:
        """The index up to which clients may be told "stored", asked after `committed` was taken over."""
        return core.commit

    def leads_on(self, core: CoreState, alive: set[NodeId]) -> bool:
        """Does a leader that hears from these (itself included) go on leading? (CheckQuorum)"""
        return holds(_quorum(core), alive)

    def confirms(self, core: CoreState, answered: set[NodeId]) -> bool:
        """Do these answers to a round of beats prove that nobody else leads? (barrier reads)"""
        return holds(_quorum(core), answered)

    def hands_over(self, core: CoreState) -> bool:
        """May a leader in trouble ask another replica to take over, without anybody's word?"""
        return True

    def refuses(self, core: CoreState, message: Message) -> str:
        """What is wrong with a peer's message, so that its link is to be closed; "" nothing. Raft trusts its members:
        what cannot be true is a bug of ours, and stops the group."""
        return ""

    def keeps_committed(self, core: CoreState) -> bool:
        """Is what this replica knows to be committed in the log of every later leader?

        Where it is not (an acknowledgement of one replica alone, and another was made the master), the core asks for a
        `Ready.rewind` instead of taking a conflict below `commit` for a broken invariant.
        """
        return True


def _quorum(core: CoreState) -> Quorum:
    return quorum_of(core.membership)


RAFT_RULES = Rules()
