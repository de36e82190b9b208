"""Leading: commitment, CheckQuorum, barriers, transfer, membership changes.

Commitment counts only onto entries of the leader's own term; older ones follow implicitly (S8, figure 8 of the paper).
The leader counts itself like any other replica, by what its own disk has finished, so an entry may commit on the
followers' disks first, and a group of one commits only after its own sync.
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.errors import ChangeRefused, InvariantBroken, NotLeader, TransferRefused, Transferring
from raft.core.membership import check_change
from raft.core.messages import CampaignNow
from raft.core.progress import Progress
from raft.core.replication import Replication
from raft.core.types import KIND_MEMBERSHIP, NOBODY, EntryLike, Health, Membership, NodeId, PeerState, Role

__all__ = ["Leadership"]

_HAND_OVER_PAUSE_MS = 60_000
"""At most one hand-over because of a slow disk in this time: a cluster that is slow everywhere must not flap.

A write that hangs is another matter: whoever takes over has just written everything that this leader has.
"""


class Leadership(Replication):
    """What only a leader does."""

    def _start_leading(self) -> None:
        """The vote is won. The no-op goes out at once: older entries commit with it (L8)."""
        self.role = Role.LEADER
        self.leader = self.id
        self._sync_peers()
        entries = self._maker.noop(self.log.last, self.term, self.commit)
        if not entries or entries[-1].term != self.term:
            raise InvariantBroken("S8", "the no-op must be an entry of the new term")
        self._append(entries)
        self.noop_index = self.log.last.index
        self._beat_all()
        self._feed_all()

    def _tick_leader(self) -> None:
        if not self._reaches_quorum():
            self._become_follower(self.term, NOBODY)  # L2: CheckQuorum
            return
        if self._leaving and self._clock_ms >= self._transfer_deadline_ms:
            self._leave()
            return
        if self.transferring and self._clock_ms >= self._transfer_deadline_ms:
            self._end_transfer(done=False, reason="the target was not elected within one election timeout")
        if self._clock_ms >= self._next_beat_ms:
            self._beat_all()
            if self.transferring:
                self._push_transfer()

    def _reaches_quorum(self) -> bool:
        horizon = self._clock_ms - self.config.election_ms
        alive = {p.id for p in self.peers.values() if p.heard_ms > horizon and p.can_vote}
        alive.add(self.id)
        return self.rules.leads_on(self, alive)

    # -- commitment -------------------------------------------------------------------------------------------------

    def _count(self) -> None:
        """Advance `commit` to what a quorum holds on disk, if that is an entry of this term."""
        reached = {p.id: p.counted for p in self.peers.values()}
        reached[self.id] = self.log.durable
        index = self.rules.committed(self, reached)
        moves = index > self.commit and self.log.term_at(index) == self.term
        if moves:
            self._check_own_term(index)
            self._commit_to(index)
        self.acknowledged = max(self.acknowledged, self.rules.acknowledged(self, reached))
        if moves:
            self._start_reads()
        if not self._is_voter and self.memberships.index <= self.commit:
            self._leave()

    def recount(self, now_ms: int) -> None:
        """The rules may see it differently now."""
        self._advance(now_ms)
        if self.role == Role.LEADER:
            self._count()

    def _check_own_term(self, index: int) -> None:
        if self.log.term_at(index) != self.term:
            raise InvariantBroken("S8", f"entry {index} of an older term would be committed by counting")

    def _leave(self) -> None:
        """This leader's own removal is committed: take nothing more, let what was taken commit, hand over and go.

        Nobody would tell it afterwards what became of entries that it took: no later leader speaks to it. So it stays
        for them, but not longer than a transfer may last.
        """
        best = self._best_successor()
        if best is not None and not self._leaving:
            self._leaving = True
            self._transfer_deadline_ms = self._clock_ms + self.config.election_ms
        if self._leaving and self.commit < self.log.last.index and self._clock_ms < self._transfer_deadline_ms:
            return
        self.successor = best.id if best is not None else NOBODY
        if best is not None:
            self._send(CampaignNow(self.term, self.id, best.id))
        self._become_follower(self.term, NOBODY)

    # -- proposals --------------------------------------------------------------------------------------------------

    def propose(self, entries: Sequence[EntryLike], now_ms: int) -> None:
        """Append entries that were sealed onto `last` in this term; an empty sequence does nothing.

        Raises NotLeader, Transferring (nothing was changed), InvariantBroken (they do not chain).
        """
        self._advance(now_ms)
        self._require_admission()
        for entry in entries:
            if entry.term != self.term or entry.kind == KIND_MEMBERSHIP:
                raise InvariantBroken(
                    "S17", f"entry {entry.index} of term {entry.term}, kind {entry.kind} is no proposal"
                )
        if entries:
            self._append(entries)
            self._feed_all()

    def _require_admission(self) -> None:
        if self.role != Role.LEADER:
            raise NotLeader(self.leader)
        if self.transferring:
            raise Transferring(f"leadership is going to {self.transfer_to or 'another: this leader was removed'}")

    def change_membership(self, membership: Membership, now_ms: int, *, allow_two: bool = False) -> int:
        """Propose a membership; it is in force at once. Returns the index of its entry.

        A voter that was no member before has to be a learner first. Raises NotLeader, Transferring, ChangeRefused.
        """
        self._advance(now_ms)
        self._require_admission()
        old = self.membership
        assert old is not None, "a leader has a membership"
        check_change(
            old,
            self.memberships.index,
            membership,
            commit=self.commit,
            own_term_committed=self.own_term_committed,
            allow_two=allow_two,
        )
        for node in membership.voter_ids:
            if node not in old.voter_ids:
                self._require_caught_up(node)
        self._append(self._maker.membership(self.log.last, self.term, self.commit, membership))
        if self.memberships.index != self.log.last.index:
            raise InvariantBroken("S17", "the membership entry was not appended")
        self._feed_all()
        self._count()
        return self.log.last.index

    def _require_caught_up(self, node: NodeId) -> None:
        peer = self.peers.get(node)
        if peer is None:
            raise ChangeRefused(f"{node} must be a learner and catch up before it becomes a voter")
        silent = self._clock_ms - peer.heard_ms >= self.config.election_ms
        late = self._clock_ms - peer.catch_up_from_ms > self.config.election_ms and peer.match < peer.catch_up_to
        if silent or late or not peer.catch_up_ok or peer.health != Health.OK or peer.state != PeerState.REPLICATE:
            held = f"it holds {peer.match} of {self.log.last.index}"
            if silent:
                held += f" and has been silent for {self._clock_ms - peer.heard_ms} ms"
            raise ChangeRefused(f"{node} has not caught up yet: {held}", later=True)

    def _membership_changed(self) -> None:
        super()._membership_changed()
        if self.role == Role.LEADER:
            self._sync_peers()
            if self.transferring and self.transfer_to not in self.peers:
                self._end_transfer(done=False, reason="the target was removed")

    def _sync_peers(self) -> None:
        membership = self.membership
        assert membership is not None, "only a member leads"
        old, self.peers = self.peers, {}
        voters = membership.voter_ids
        for node in sorted((*voters, *membership.learner_ids)):
            if node == self.id:
                continue
            peer = old.get(node)
            if peer is None:
                peer = Progress(node, node in voters, self.log.last.index + 1, self._clock_ms)
            peer.voter = node in voters
            self.peers[node] = peer

    # -- barriers ---------------------------------------------------------------------------------------------------

    def barrier(self, token: int, now_ms: int) -> None:
        """Ask for a read point; it comes in `Ready.reads` under this token. Raises NotLeader."""
        self._advance(now_ms)
        if self.role != Role.LEADER:
            raise NotLeader(self.leader)
        self.reads.add(token)
        self._start_reads()

    def _start_reads(self) -> None:
        if self.reads.wants_round and self.own_term_committed:
            self._beat_all()
            self.reads.start(self._round, self.commit)
            self._confirm_reads()

    def _confirm_reads(self) -> None:
        """Close the round under way once a quorum has answered it, and start the next one for who came later."""
        wanted = self.reads.round
        if not wanted:
            return
        answered = {p.id for p in self.peers.values() if p.round >= wanted}
        answered.add(self.id)
        if self.rules.confirms(self, answered):
            self._grants.extend(self.reads.confirmed())
            self._start_reads()

    # -- transfer ---------------------------------------------------------------------------------------------------

    def transfer(self, target: NodeId | None, now_ms: int) -> NodeId:
        """Hand leadership to `target`, or to the best follower. Returns whom; ends in `Ready.transfer` within E.

        Proposals are refused meanwhile. Raises NotLeader, TransferRefused.
        """
        self._advance(now_ms)
        if self.role != Role.LEADER:
            raise NotLeader(self.leader)
        if self._leaving:
            raise TransferRefused("this leader was removed and is going")
        if self.transferring:
            if target in (None, self.transfer_to):
                return self.transfer_to
            raise TransferRefused(f"a transfer to {self.transfer_to} is under way")
        peer = self._best_successor() if target is None else self.peers.get(target)
        if target == self.id:
            raise TransferRefused(f"{target} leads already")
        self._check_target(peer, target)
        assert peer is not None, "checked"
        self.transfer_to = peer.id
        self._transfer_deadline_ms = self._clock_ms + self.config.election_ms
        self._push_transfer()
        return peer.id

    def _check_target(self, peer: Progress | None, target: NodeId | None) -> None:
        if peer is None:
            raise TransferRefused("no healthy follower" if target is None else f"{target} is no member")
        if not peer.voter:
            raise TransferRefused(f"{peer.id} is a learner")
        if peer.health != Health.OK:
            raise TransferRefused(f"{peer.id} is {peer.health.name.lower()}")
        if self._clock_ms - peer.heard_ms >= self.config.election_ms:
            raise TransferRefused(f"{peer.id} has been silent for {self._clock_ms - peer.heard_ms} ms")
        held = self.log.entry_id(peer.match)
        if held is None or self.log.last.end - held.end > self.config.transfer_lag_bytes:
            raise TransferRefused(f"{peer.id} is too far behind: it holds {peer.match} of {self.log.last.index}")

    def _push_transfer(self) -> None:
        """Tell the target to campaign as soon as it holds everything; repeated with the beats, since it may get
        lost."""
        if self._leaving:
            return  # it is told when everything taken is committed
        peer = self.peers.get(self.transfer_to)
        if peer is None or peer.health != Health.OK:
            self._end_transfer(done=False, reason="the target is not able any more")
        elif peer.match == self.log.last.index:
            self._send(CampaignNow(self.term, self.id, peer.id))

    def _best_successor(self) -> Progress | None:
        """The healthy voter that holds most, the preferred one among equals."""
        membership = self.membership
        assert membership is not None, "a leader has a membership"
        horizon = self._clock_ms - self.config.election_ms
        best: Progress | None = None
        for member in sorted(membership.voters, key=lambda m: (m.rank, m.id)):
            peer = self.peers.get(member.id)
            if peer is None or peer.health != Health.OK or peer.heard_ms <= horizon:
                continue
            if best is None or peer.match > best.match:
                best = peer
        return best

    def _give_up_leading(self) -> None:
        """Stop leading in this very turn; whoever is best placed may campaign at once."""
        best = self._best_successor() if self.rules.hands_over(self) else None
        if best is not None:
            self._send(CampaignNow(self.term, self.id, best.id))
        self._become_follower(self.term, NOBODY)

    def _try_hand_over(self, *, even_again: bool) -> None:
        """The own disk is slow: hand over if somebody can take over, else go on."""
        last = self._last_hand_over_ms
        if not even_again and last is not None and self._clock_ms - last < _HAND_OVER_PAUSE_MS:
            return
        if not self.rules.hands_over(self):
            return
        try:
            self.transfer(None, self._now_ms)
        except TransferRefused:
            return
        self._last_hand_over_ms = self._clock_ms
