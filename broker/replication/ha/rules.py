"""How a group decides under its strategy, and under two of them while it moves from one to the other.

| | `raft` | `sync` | `async`, `local` |
|---|---|---|---|
| committed (consumers see it) | a majority's disks | every replica in sync | the master itself |
| acknowledged | = committed | own end and `required` replicas in all | the master itself |
| campaigns by its timer | every voter | the master that the log names | the same |
| grants needed | a majority | n - required + 1 | n, or for its own master 1 |

The strategy is what the newest membership entry says. From its append until its commit is known, the entry before it
counts as well, and an entry must satisfy **both**: so nothing that was acknowledged under the old rule is missing in
whoever leads under the new one. The same holds for a change of members under master-slave, where a majority does not
make old and new groups meet.

Grants. An entry acknowledged under `sync` is held by `required` of n replicas, so any n - required + 1 include one that
has it, and as in Raft nobody grants to a shorter log. Under `async` only all n would do; with fewer an operator may
*force* it, and the tail that only the old master had is given up. A master that comes back and hears of no newer epoch
needs no grants under `async`: whatever was acknowledged in its epoch is in its own log.

Longer logs. A slave may hold what the master was killed while writing. Nobody was told of it, so where the master that
the log names comes back and hears of no newer epoch, a longer log *of its own epoch* is no reason to refuse it: the
slave grants, and its tail goes. Whose an epoch is, its low byte says (`epochs`); that the master's log has all that it
ever counted, the request says (`resumes`): not after a stop that may have cost it entries (`ha.trust`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.replication.ha.epochs import ORDERED_STEPS, RANKS, next_epoch
from broker.replication.membership import GroupDetail
from broker.store.boot import Belief
from raft.core.messages import AppendReply, Message, VoteRequest
from raft.core.quorum import Verdict, agreed, holds, quorum_of, tally
from raft.core.rules import Rules
from raft.core.state import CoreState
from raft.core.types import Campaign, Membership, NodeId, Role

__all__ = ["GroupRules", "detail_of", "grants_needed", "reached_by"]

RAFT = "raft"
SYNC = "sync"


def detail_of(membership: Membership | None) -> GroupDetail:
    """What a membership entry says beside the members."""
    detail = membership.detail if membership is not None else None
    return detail if isinstance(detail, GroupDetail) else GroupDetail()


def grants_needed(membership: Membership) -> int:
    """How many of the voters, the candidate included, must grant for a master to have all that was acknowledged."""
    detail = detail_of(membership)
    count = len(membership.voters)
    if detail.strategy == SYNC:
        return max(1, count - detail.required + 1)
    return count


def reached_by(count: int, voters: Sequence[NodeId], reached: Mapping[NodeId, int]) -> int:
    """The largest index that `count` of the voters hold; 0 when there are not so many."""
    values = sorted((reached.get(node, 0) for node in voters), reverse=True)
    return values[count - 1] if 0 < count <= len(values) else 0


class GroupRules(Rules):
    """One per replica; outlives its cores. A master keeps `in_sync` and `wanted` up to date (`ha.master`)."""

    def __init__(self) -> None:
        self.in_sync: tuple[NodeId, ...] = ()
        """Who is in sync, sorted, the master included. Only read on a master."""
        self.uuid = ""
        """Of the own store: an empty one is not the master that the first entries name."""
        self.wanted = 0
        """How many replicas a sync entry is acknowledged by now; 0: what the membership says."""
        self.unsafe_flush = False
        """raftUnsafeAsyncFlush."""
        self.belief = Belief.WHOLE
        """What this replica's own log proves (`ha.trust`): where it is doubted, the own grant counts for nothing."""
        self._plain: tuple[Membership | None, Membership | None] = (None, None)
        """The newest membership and the one before, when both are Raft's: asked several times a turn."""

    # what is in force

    @staticmethod
    def regimes(core: CoreState) -> tuple[Membership, ...]:
        """The memberships whose rules hold now: the newest, and the one before until a move between them is done."""
        current = core.membership
        if current is None:
            return ()
        before = core.memberships.before
        if core.memberships.index <= core.commit or before is None:
            return (current,)
        plain = detail_of(before).strategy == RAFT == detail_of(current).strategy
        return (current,) if plain else (before, current)

    def strategies(self, core: CoreState) -> tuple[str, ...]:
        """Of the regimes in force, the newest last."""
        return tuple(detail_of(each).strategy for each in self.regimes(core))

    def raft_only(self, core: CoreState) -> bool:
        """Nothing but Raft is in force."""
        current, before = core.membership, core.memberships.before
        if current is not None and current is self._plain[0] and before is self._plain[1]:
            return True
        if current is not None and all(
            detail_of(each).strategy == RAFT for each in (current, before) if each is not None
        ):
            self._plain = (current, before)
            return True
        return all(strategy == RAFT for strategy in self.strategies(core))

    def wants_sync(self, core: CoreState) -> bool:
        """Does a write count only when it is on the disk?"""
        regimes = self.regimes(core)
        return not regimes or any(self._wants_sync(detail_of(each)) for each in regimes)

    def _wants_sync(self, detail: GroupDetail) -> bool:
        return not self.unsafe_flush if detail.strategy == RAFT else detail.flush_sync

    def short(self, core: CoreState) -> bool:
        """Are there too few replicas in sync for an acknowledgement?"""
        return any(
            detail_of(each).strategy == SYNC and len(self.in_sync) < self._wanted(each) for each in self.regimes(core)
        )

    def _wanted(self, membership: Membership) -> int:
        return self.wanted or detail_of(membership).required

    # what counts

    def committed(self, core: CoreState, reached: Mapping[NodeId, int]) -> int:
        return min((self._committed(core, each, reached) for each in self.regimes(core)), default=0)

    def _committed(self, core: CoreState, membership: Membership, reached: Mapping[NodeId, int]) -> int:
        strategy = detail_of(membership).strategy
        if strategy == RAFT:
            return agreed(quorum_of(membership), reached)
        own = reached[core.id]
        if strategy == SYNC:
            voters = membership.voter_ids
            return min([own, *(reached.get(node, 0) for node in self.in_sync if node in voters)])
        return own

    def acknowledged(self, core: CoreState, reached: Mapping[NodeId, int]) -> int:
        if self.raft_only(core):
            return core.commit
        return min((self._acknowledged(core, each, reached) for each in self.regimes(core)), default=0)

    def _acknowledged(self, core: CoreState, membership: Membership, reached: Mapping[NodeId, int]) -> int:
        strategy = detail_of(membership).strategy
        if strategy == RAFT:
            return agreed(quorum_of(membership), reached)
        own = reached[core.id]
        if strategy == SYNC:
            return min(own, reached_by(self._wanted(membership), membership.voter_ids, reached))
        return own

    # who leads

    def elects(self, core: CoreState) -> bool:
        current = core.membership
        if current is None:
            return False
        regimes = self.regimes(core)
        for each in regimes:
            here = each is not current or core.durable >= core.memberships.index
            if here and detail_of(each).strategy == RAFT:
                return True
        me = current.member(core.id)
        named = detail_of(current).master == core.id and me is not None and me.uuid in ("", self.uuid)
        return named and detail_of(regimes[0]).strategy != RAFT

    def resumes(self, core: CoreState) -> bool:
        heard_of_none = core.campaign is Campaign.ELECTION and core.vote == core.id
        return heard_of_none and self.belief is Belief.WHOLE and self._names(core, core.id)

    def yields_tail(self, core: CoreState, request: VoteRequest) -> bool:
        sender = core.membership.member(request.sender) if core.membership is not None else None
        if sender is None or not request.resumes or not self._names(core, request.sender):
            return False
        return request.last.term == core.last.term and core.last.term % RANKS == sender.rank % RANKS

    def _names(self, core: CoreState, node: NodeId) -> bool:
        """Is this the master that the log names, and no regime Raft's?"""
        return detail_of(core.membership).master == node and RAFT not in self.strategies(core)

    def next_term(self, core: CoreState) -> int:
        if self.raft_only(core):
            return core.term + 1
        current = core.membership
        me = current.member(core.id) if current is not None else None
        ordered = core.campaign in (Campaign.ORDERED, Campaign.FORCED)
        return next_epoch(core.term, me.rank % 256 if me is not None else 0, steps=ORDERED_STEPS if ordered else 1)

    def tally(self, core: CoreState, votes: Mapping[NodeId, bool], *, over: bool) -> Verdict:
        raft = [each for each in self.regimes(core) if detail_of(each).strategy == RAFT]
        if raft:
            # The candidate has the entry of the move on its disk, hence all that the regime before acknowledged.
            return tally(quorum_of(raft[-1]), votes)
        verdicts = [self._tally(core, each, votes, over) for each in self.regimes(core)]
        if not verdicts or Verdict.LOST in verdicts:
            return Verdict.LOST
        return Verdict.PENDING if Verdict.PENDING in verdicts else Verdict.WON

    def _tally(self, core: CoreState, membership: Membership, votes: Mapping[NodeId, bool], over: bool) -> Verdict:
        """Everybody who can answer is heard before a master is made: a refusal says that somebody has more, or hears
        another master.

        An operator's order does not wait for a process that is known to have died, nor in the second round for who was
        silent in the first. A master that comes back by itself does: that costs it a second, and nobody waits for it.
        """
        if votes.get(core.id) is not True:
            return Verdict.PENDING
        if core.campaign is Campaign.FORCED:
            return Verdict.WON
        if core.campaign is Campaign.TRANSFER and votes.get(core.transfer_from) is True:
            return Verdict.WON  # the master itself: it had seen that nothing is missing here
        voters = membership.voter_ids
        if any(votes.get(node) is False for node in voters):
            return Verdict.LOST
        granted = [node for node in voters if votes.get(node) is True]
        hopeless = core.gone | core.unheard if core.campaign is Campaign.ORDERED else frozenset[NodeId]()
        if not over and any(node not in votes and node not in hopeless for node in voters):
            return Verdict.PENDING
        return Verdict.WON if self._enough(core, membership, granted) else Verdict.LOST

    def _enough(self, core: CoreState, membership: Membership, granted: Sequence[NodeId]) -> bool:
        detail = detail_of(membership)
        if detail.strategy != SYNC and detail.master == core.id and core.campaign is Campaign.ELECTION:
            return True
        alone = len(membership.voters) == 1  # what it lost nobody has
        own = self.belief is not Belief.DOUBTED or detail.flush_sync or alone
        count = len(granted) if own else sum(1 for node in granted if node != core.id)
        return count >= grants_needed(membership)

    def leads_on(self, core: CoreState, alive: set[NodeId]) -> bool:
        if self.raft_only(core):
            return holds(quorum_of(core.membership), alive)
        return True

    def confirms(self, core: CoreState, answered: set[NodeId]) -> bool:
        raft = [each for each in self.regimes(core) if detail_of(each).strategy == RAFT]
        return all(holds(quorum_of(each), answered) for each in raft)

    def hands_over(self, core: CoreState) -> bool:
        return self.raft_only(core)

    def refuses(self, core: CoreState, message: Message) -> str:
        if self.raft_only(core) or core.role is not Role.LEADER or not isinstance(message, AppendReply):
            return ""
        if message.term == core.term and message.match > core.last.index:
            return f"a report of {message.match} entries, this master has {core.last.index}: it is forged"
        return ""

    def keeps_committed(self, core: CoreState) -> bool:
        return self.raft_only(core)
