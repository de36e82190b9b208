"""Bugs that others really had (or nearly), planted into the core. The checker must find each of them.

Each mutant is a subclass that overrides one method, with the core's own assertion for it switched off where there is
one: the oracle has to see it from outside.
"""

from __future__ import annotations

from dataclasses import replace

from raft.core import (
    AppendReply,
    AppendRequest,
    ChangeRefused,
    EntryId,
    HardState,
    Health,
    Membership,
    Message,
    NodeId,
    RaftCore,
    Role,
    VoteReply,
    VoteRequest,
)
from raft.core.progress import Progress
from raft.core.quorum import agreed
from raft.core.writes import WriteQueue

__all__ = ["FOCUS", "PLANTED", "AcksItsOwnEnd", "TrustsItselfTooEarly"]


class AcksBeforeTheWrite(RaftCore):
    """An append is acknowledged when it arrives."""

    def _send_after_writes(self, message: Message) -> None:
        if isinstance(message, AppendReply):
            self._send(message)
        else:
            super()._send_after_writes(message)


class GrantsBeforeTheWrite(RaftCore):
    """A vote leaves before it is on disk."""

    def _send_after_writes(self, message: Message) -> None:
        if isinstance(message, VoteReply) and message.to != self.id:
            self._send(message)
        else:
            super()._send_after_writes(message)


class AsksBeforeTheWrite(RaftCore):
    """A candidate asks for votes before its own term and vote are on disk."""

    def _send_after_writes(self, message: Message) -> None:
        if isinstance(message, VoteRequest):
            self._send(message)
        else:
            super()._send_after_writes(message)


class ForgetsTheVote(RaftCore):
    """Only the term is stored."""

    def _persist(self) -> None:
        self.writes.hard_state(HardState(self.term, "", self._suspect, self.starts))


class ClearsTheVoteOnStepDown(RaftCore):
    """Hearing of a leader clears the vote of the current term."""

    def _become_follower(self, term: int, leader: NodeId) -> None:
        super()._become_follower(term, leader)
        if self.vote:
            self.vote = ""
            self._persist()


class VotesForAnyLog(RaftCore):
    """The candidate's log is not compared."""

    def _is_up_to_date(self, last: EntryId) -> bool:
        return True


class ComparesLengthOnly(RaftCore):
    """The longer log wins, whatever the terms say."""

    def _is_up_to_date(self, last: EntryId) -> bool:
        return last.index >= self.log.last.index


class CountsOldTerms(RaftCore):
    """An entry of an older term is committed by counting replicas (figure 8)."""

    def _count(self) -> None:
        reached = {p.id: p.counted for p in self.peers.values()}
        reached[self.id] = self.log.durable
        index = agreed(self._quorum, reached)
        if index > self.commit:
            self._commit_to(index)


class CountsItselfEarly(RaftCore):
    """The leader counts what it has not synced."""

    def _count(self) -> None:
        durable, self.log.durable = self.log.durable, self.log.last.index
        try:
            reached = {p.id: p.counted for p in self.peers.values()}
            reached[self.id] = self.log.durable
            index = agreed(self._quorum, reached)
        finally:
            self.log.durable = durable
        if index > self.commit and self.log.term_at(index) == self.term:
            self._commit_to(index)


class MatchOffByOne(RaftCore):
    """The leader believes one more than was acknowledged."""

    def _on_append_reply(self, reply: AppendReply, peer: Progress) -> bool:
        if reply.rejected < 0 and reply.match < self.log.last.index:
            reply = replace(reply, match=reply.match + 1)
        return super()._on_append_reply(reply, peer)


class AcksItsOwnEnd(RaftCore):
    """An acknowledgement names the follower's own end instead of what the request verified."""

    def _accept(self, request: AppendRequest, match: int) -> None:
        super()._accept(request, self.log.last.index)


class TruncatesEagerly(RaftCore):
    """Whatever lies behind `prev` is cut, also by a late duplicate and below the commit index."""

    def _on_append(self, request: AppendRequest) -> None:
        behind = request.prev.index < self.log.last.index and request.entries
        if request.term >= self.term and self.health == Health.OK and behind and self._agrees(request):
            self._follow(request.term, request.sender)
            kept = self.log.truncate_after(request.prev.index)
            self.memberships.truncated_after(request.prev.index)
            self._append(request.entries, kept)
            self._accept(request, self.log.last.index)
        else:
            super()._on_append(request)


class DoesNotCheckPrev(RaftCore):
    """Entries are taken although the entry before differs in term."""

    def _agrees(self, request: AppendRequest) -> bool:
        return self.log.entry_id(request.prev.index) is not None


class CommitsUnverified(RaftCore):
    """A follower takes over the leader's commit as far as its own log reaches."""

    def _on_append(self, request: AppendRequest) -> None:
        super()._on_append(request)
        if request.term == self.term and self.role != Role.LEADER:
            self._note_commit(request.commit)

    def _note_commit(self, index: int) -> None:
        index = min(index, self.log.last.index)
        if index > self.commit:
            self._commit_to(index)


class _UncappedWrites(WriteQueue):
    __slots__ = ()

    def _capped(self, reached: int) -> int:
        return reached


class ForgetsTheRace(RaftCore):
    """A finished write raises `durable` although a truncation below it is queued (ABA)."""

    def append_done(self, seq: int, now_ms: int) -> None:
        self.writes.__class__ = _UncappedWrites
        super().append_done(seq, now_ms)


class VotesWhileSuspect(RaftCore):
    """A replica that lost synced entries votes as if nothing had happened."""

    def _would_grant(self, request: VoteRequest) -> bool:
        health, self.health = self.health, Health.OK
        try:
            return super()._would_grant(request)
        finally:
            self.health = health


class TrustsItselfTooEarly(RaftCore):
    """Suspicion ends with the first entry that is taken."""

    def _maybe_clear_suspicion(self) -> None:
        if self.health == Health.SUSPECT and self._verified:
            self.health = Health.OK
            self._suspect = False
            self._persist()


class GrantsReadsUnconfirmed(RaftCore):
    """A barrier ends without a round of beats."""

    def _start_reads(self) -> None:
        if self.reads.wants_round and self.own_term_committed:
            self.reads.start(self._round, self.commit)
            self._grants.extend(self.reads.confirmed())


class ReadsBeforeTheNoop(RaftCore):
    """A barrier ends before the leader has committed an entry of its own term."""

    def _start_reads(self) -> None:
        if self.reads.wants_round:
            self._beat_all()
            self.reads.start(self._round, self.commit)
            self._confirm_reads()


class KeepsAWaitingGrant(RaftCore):
    """Reads are granted by answers to beats of before the barrier."""

    def _start_reads(self) -> None:
        if self.reads.wants_round and self.own_term_committed:
            self.reads.start(1, self.commit)
            self._confirm_reads()
            self._beat_all()


class ChangesTwoAtOnce(RaftCore):
    """Membership changes without guards."""

    def change_membership(self, membership: Membership, now_ms: int, *, allow_two: bool = False) -> int:
        self._require_admission()
        if not membership.voters:
            raise ChangeRefused("nobody would be left")
        self._append(self._maker.membership(self.log.last, self.term, self.commit, membership))
        self._feed_all()
        return self.log.last.index


PLANTED: tuple[type[RaftCore], ...] = (
    AcksBeforeTheWrite,
    GrantsBeforeTheWrite,
    AsksBeforeTheWrite,
    ForgetsTheVote,
    ClearsTheVoteOnStepDown,
    VotesForAnyLog,
    ComparesLengthOnly,
    CountsOldTerms,
    CountsItselfEarly,
    MatchOffByOne,
    TruncatesEagerly,
    DoesNotCheckPrev,
    CommitsUnverified,
    ForgetsTheRace,
    VotesWhileSuspect,
    GrantsReadsUnconfirmed,
    ReadsBeforeTheNoop,
    KeepsAWaitingGrant,
    ChangesTwoAtOnce,
)
"""Found by random runs. `AcksItsOwnEnd` and `TrustsItselfTooEarly` need schedules that chance takes long to find: they
have tests of their own."""

FOCUS: dict[type[RaftCore], tuple[str, ...]] = {
    KeepsAWaitingGrant: ("usurp", "barrier"),
    GrantsReadsUnconfirmed: ("usurp", "barrier"),
    ChangesTwoAtOnce: ("change_membership", "usurp"),
}
"""Faults that a run for this bug certainly has."""
