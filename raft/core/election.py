"""Elections: PreVote, votes, and what keeps them rare (Raft thesis 3.4, 4.2.3, 9.6).

- PreVote (L1): ask at term + 1 without changing anything; only a quorum of pre-grants starts a real election.
- Stickiness (L3): refused while a leader was heard within E; a transfer overrides. A pre-vote refused for this reason
  is asked again after H/2.
- Who still has much to apply lets others go first for E, unless its log is the newer one.
- Two pre-candidates that meet do not both go on: see `_yields_to`.
- A candidate persists its term and own vote first: the requests ride on that write, with the durable end of its log,
  and its own vote counts when the write is done. A random nonce per round keeps late answers away from other rounds
  and lives.
- A grant leaves when the vote is durable. The vote stays until the term changes, whatever happens to the role.
- Learners, and whoever may have been promoted without knowing it, grant votes (L11). Rank never refuses one.
"""

from __future__ import annotations

from raft.core.errors import Refused
from raft.core.following import Following
from raft.core.messages import CampaignNow, VoteReply, VoteRequest
from raft.core.quorum import Verdict
from raft.core.types import NOBODY, Campaign, EntryId, Health, NodeId, Role

__all__ = ["Election"]


class Election(Following):
    """Campaigning and voting."""

    @property
    def _may_campaign(self) -> bool:
        """Healthy, and a voter, also while its own removal is not committed (its vote does not count then)."""
        needed = self.memberships.is_needed(self.id, self.commit)
        return needed and self.health == Health.OK and not (self._campaign_held or self.retired)

    def _tick_others(self) -> None:
        """Follower or candidate: has the timer run out?"""
        if self._clock_ms >= self._deadline_ms:
            role, term = self.role, self.term
            if role in (Role.PRE_CANDIDATE, Role.CANDIDATE) and self.id in self._votes:
                self._tally(over=True)
                if (self.role, self.term) != (role, term):
                    return
            if self.role == Role.CANDIDATE and self.id not in self._votes:
                self._reset_election_timer()  # our own vote is still being written: another term would not be faster
            elif self._may_campaign and self.rules.elects(self):
                self._campaign(pre=True)
            else:
                if self.role in (Role.PRE_CANDIDATE, Role.CANDIDATE):
                    self._become_follower(self.term, NOBODY)
                self.leader = NOBODY
                self._reset_election_timer()
        elif self.role in (Role.PRE_CANDIDATE, Role.CANDIDATE) and self._clock_ms >= self._resend_ms:
            self._ask_for_votes()

    def campaign_by_order(self, now_ms: int, *, force: bool) -> None:
        """An operator makes this replica ask for leadership, whatever its timer says; `votes` shows how it goes.

        Raises Refused where this replica cannot lead. Without enough grants it is a follower again after one timeout.
        """
        self._advance(now_ms)
        if self.role == Role.LEADER:
            return
        if not self._may_campaign:
            raise Refused(f"{self.id} cannot lead: {self._why_not()}")
        if force:
            self._campaign(pre=False, why=Campaign.FORCED)
        else:
            self._campaign(pre=True, why=Campaign.ORDERED)  # a living leader is not disturbed by asking

    def _why_not(self) -> str:
        if self.health != Health.OK:
            return f"its storage is {self.health.name.lower()}"
        return "it has no vote in its group" if not self._campaign_held else "its disk is stalled"

    @property
    def votes(self) -> dict[NodeId, bool]:
        """Candidate: who has answered, and how."""
        return dict(self._votes)

    def _campaign(self, *, pre: bool, why: Campaign = Campaign.ELECTION) -> None:
        self._nonce = self._rng.getrandbits(63)
        heard, self._votes = self._votes, {}
        self.outvoted_by = set()
        # Whoever let the pre-vote of this very campaign pass is not waited for again.
        self.unheard = frozenset()
        if self.role == Role.PRE_CANDIDATE and not pre and self.membership is not None:
            self.unheard = frozenset(self.membership.voter_ids).difference(heard)
        self.campaign = why
        self.leader = NOBODY
        self._reset_election_timer()
        if pre:
            self.role = Role.PRE_CANDIDATE
            self._ask_for_votes()
            self._on_own_vote()
            return
        self.role = Role.CANDIDATE
        self.term = self.rules.next_term(self)
        self.vote = self.id
        self._verified = 0
        self._clear_at = -1
        self._persist()
        self._ask_for_votes()
        self._send_after_writes(VoteReply(self.term, self.id, self.id, self._nonce, False, True))

    def _ask_for_votes(self) -> None:
        """To everybody who has not answered this round. A real request waits until our own vote is durable."""
        pre = self.role == Role.PRE_CANDIDATE
        self._resend_ms = self._clock_ms + self.config.election_ms // 2
        term = self.rules.next_term(self) if pre else self.term
        by_transfer = self.campaign is Campaign.TRANSFER
        resumes = self.rules.resumes(self)
        membership = self.membership
        assert membership is not None, "only a voter campaigns"
        for node in membership.voter_ids:
            if node == self.id or node in self._votes:
                continue
            request = VoteRequest(term, self.id, node, self.log.last, self._nonce, pre, by_transfer, resumes)
            if pre:
                self._send(request)
            else:
                self._send_after_writes(request)

    def _on_own_vote(self) -> None:
        self._votes[self.id] = True
        self._tally()

    def _tally(self, *, over: bool = False) -> None:
        verdict = self.rules.tally(self, self._votes, over=over)
        if verdict is Verdict.WON:
            if self.role == Role.PRE_CANDIDATE:
                self._campaign(pre=False, why=self.campaign)
            else:
                self._start_leading()
        elif verdict is Verdict.LOST:
            again_ms = self._deadline_ms
            self._become_follower(self.term, NOBODY)
            if self.role == Role.FOLLOWER:
                self._deadline_ms = min(self._deadline_ms, again_ms)

    # -- answering --------------------------------------------------------------------------------------------------

    def _on_vote_request(self, request: VoteRequest) -> None:
        sticky = self._hears_leader and not request.transfer
        if request.pre:
            granted = self._would_grant(request) and not sticky
            self._send(
                VoteReply(self.term, self.id, request.sender, request.nonce, True, granted, sticky and not granted)
            )
            if granted and self.role == Role.PRE_CANDIDATE and self._yields_to(request):
                self._become_follower(self.term, NOBODY)
            if self.behind and not (granted or sticky) and not self._is_up_to_date(request.last):
                self._deadline_ms = self._clock_ms  # nobody can lead before this one, however much it has to apply
            return
        if request.term > self.term and not sticky:
            self._become_follower(request.term, NOBODY)
        granted = request.term == self.term and self._would_grant(request) and not sticky
        if granted and self.vote != request.sender:
            self.vote = request.sender
            self._persist()
        if granted:
            self._reset_election_timer()
        self._send_after_writes(
            VoteReply(self.term, self.id, request.sender, request.nonce, False, granted, sticky and not granted)
        )

    def _would_grant(self, request: VoteRequest) -> bool:
        """Health (S19), one vote per term (S2), and a log at least as new as ours (S6), or the rules' word for it."""
        if self.health not in (Health.OK, Health.FULL) or self.membership is None:
            return False
        if request.term < self.term:
            return False
        if request.term == self.term and self.vote not in (NOBODY, request.sender):
            return False
        return self._is_up_to_date(request.last) or self.rules.yields_tail(self, request)

    def _yields_to(self, request: VoteRequest) -> bool:
        """Two pre-candidates whose requests cross would split the vote: one of them steps back, both agree which.

        The newer log goes first, then the preferred rank. Nothing is refused by it.
        """
        own = self.log.last
        if (request.last.term, request.last.index) != (own.term, own.index):
            return True  # we have granted it, so its log is the newer one
        membership = self.membership
        other = membership.member(request.sender) if membership is not None else None
        me = membership.member(self.id) if membership is not None else None
        return other is not None and me is not None and (other.rank, other.id) < (me.rank, me.id)

    def _is_up_to_date(self, last: EntryId) -> bool:
        own = self.log.last
        return (last.term, last.index) >= (own.term, own.index)

    def _on_vote_reply(self, reply: VoteReply) -> None:
        if reply.term > self.term and not reply.granted:
            self._become_follower(reply.term, NOBODY)
            return
        wanted = Role.PRE_CANDIDATE if reply.pre else Role.CANDIDATE
        if self.role != wanted or reply.nonce != self._nonce or reply.sender in self._votes:
            return
        self._votes[reply.sender] = reply.granted
        if not (reply.granted or reply.sticky):
            self.outvoted_by.add(reply.sender)
        if reply.sticky and reply.pre:
            # Whoever heard the leader lately refuses; if the leader is dead, that passes soon. The vote may stay open
            # for long (a dead voter never answers), so the next round does not wait for its end.
            self._deadline_ms = min(self._deadline_ms, self._clock_ms + self.config.beat_ms // 2)
        self._tally()

    def _on_campaign_now(self, order: CampaignNow) -> None:
        """The leader hands over to us: no pre-vote, and the others' stickiness does not count."""
        if order.term != self.term or self.leader not in (NOBODY, order.sender):
            return
        if self.role in (Role.FOLLOWER, Role.LEARNER, Role.PRE_CANDIDATE) and self._may_campaign:
            self.transfer_from = order.sender
            self._campaign(pre=False, why=Campaign.TRANSFER)
