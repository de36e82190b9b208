"""Following: taking a leader's entries, in exactly this order (Raft thesis 3.5, with the lessons of others' bugs).

1. Term; reset the election timer on receipt, before any disk work.
2. `prev` below `commit`: answer with `commit` as match and touch nothing. This also covers a `prev` that retention has
   deleted or an install has jumped over.
3. The term at `prev` differs: reject with the largest own (index, term) that could still agree.
4. Terms agree but the header CRC does not: corruption or a broken invariant. Stop, never truncate.
5. Skip what is there with the same term; truncate only at the first *differing* term; append the rest. An empty request
   never truncates; one that lies wholly inside the log is acknowledged as the old duplicate that it is.
6. commit = min(leader's commit, last index verified by this request).

All answers wait for the writes before them: an acknowledgement says "durable", and a rejection may depend on state
that is not on disk yet. Answers to beats do not wait: they promise nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.errors import InvariantBroken, Refused
from raft.core.leadership import Leadership
from raft.core.log import check_chain
from raft.core.messages import AppendReply, AppendRequest, Beat, BeatReply
from raft.core.types import EntryLike, Health, NodeId, Role

__all__ = ["Following"]


class Following(Leadership):
    """What a replica does with the messages of its leader."""

    def _follow(self, term: int, leader: NodeId) -> None:
        """A message of the leader of `term` (this or a newer one) arrived."""
        if term == self.term and self.leader not in ("", leader):
            raise InvariantBroken("S1", f"{self.leader} and {leader} both lead term {term}")
        if term > self.term or self.leader != leader or self.role not in (Role.FOLLOWER, Role.LEARNER):
            self._become_follower(term, leader)
        self._contact_ms = self._clock_ms
        self._reset_election_timer()

    def _on_append(self, request: AppendRequest) -> None:
        if request.term < self.term:
            self._reject(request)  # L5: it learns our term from the answer
            return
        self._follow(request.term, request.sender)
        if self.health not in (Health.OK, Health.SUSPECT) or self._no_space:
            return  # S19; a full disk takes no entries either
        if request.prev.index < self.commit and self.rules.keeps_committed(self):
            self._accept(request, self.commit)
            return
        if not self._agrees(request):
            self._reject(request)
            return
        check_chain(request.prev, request.entries)
        verified = request.prev.index + len(request.entries)
        if not self._take(request.entries):
            return
        self._verified = max(self._verified, verified)
        self._note_commit(min(request.commit, verified))
        if self.health == Health.SUSPECT and request.echo == self.starts and self._clear_at < 0:
            self._clear_at = request.commit
        self._accept(request, verified)
        self._maybe_clear_suspicion()

    def _agrees(self, request: AppendRequest) -> bool:
        """Whether our entry at `prev` is the leader's."""
        own = self.log.entry_id(request.prev.index)
        if own is None or own.term != request.prev.term:
            return False
        if own != request.prev:
            raise InvariantBroken(
                "S4",
                f"entry {own.index} of term {own.term} ends at {own.end} with CRC {own.crc:08x} here, "
                f"at {request.prev.end} with {request.prev.crc:08x} on leader {request.sender}",
            )
        return True

    def _take(self, entries: Sequence[EntryLike]) -> bool:
        """Rule 5. False: a conflict below `commit`, for which the store has to be taken back (`Ready.rewind`)."""
        skip = 0
        for entry in entries:
            own = self.log.entry_id(entry.index)
            if own is None or own.term != entry.term:
                break
            if own.crc != entry.crc:
                raise InvariantBroken("S4", f"two entries {entry.index} of term {entry.term}")
            skip += 1
        fresh = entries[skip:]
        if not fresh:
            return True
        if fresh[-1].term > self.term:
            raise InvariantBroken("S4", f"entry {fresh[-1].index} of term {fresh[-1].term} in term {self.term}")
        cut = None
        if fresh[0].index <= self.log.last.index:
            after = fresh[0].index - 1
            if after < self.commit and not self.rules.keeps_committed(self):
                self._rewind = self.log.entry_id(after)
                return False
            cut = self._truncate_after(after)
        self._append(fresh, cut)
        return True

    def _note_commit(self, index: int) -> None:
        """Take over what the leader knows, never beyond what this leader has verified here (S9)."""
        if index > self.commit:
            if index > self._verified:
                raise InvariantBroken("S9", f"commit {index} beyond the verified index {self._verified}")
            self._commit_to(index)

    def _accept(self, request: AppendRequest, match: int) -> None:
        self._send_after_writes(
            AppendReply(
                self.term, self.id, request.sender, match, -1, 0, 0, self.log.first_index, self.health, self.starts
            )
        )

    def _reject(self, request: AppendRequest) -> None:
        index = self.log.last_index_at_most(request.prev.index, request.prev.term)
        term = self.log.term_at(index) or 0
        self._send_after_writes(
            AppendReply(
                self.term,
                self.id,
                request.sender,
                0,
                request.prev.index,
                index,
                term,
                self.log.first_index,
                self.health,
                self.starts,
            )
        )

    def _on_beat(self, beat: Beat) -> None:
        if beat.term >= self.term:
            self._follow(beat.term, beat.sender)
            if self.health in (Health.OK, Health.SUSPECT, Health.FULL):
                self._note_commit(min(beat.commit, self._verified))
        self._send(BeatReply(self.term, self.id, beat.sender, beat.round, self.health, self.starts))

    def _maybe_clear_suspicion(self) -> None:
        """A suspect replica is trusted again once it durably holds all that it can ever have acknowledged.

        That is everything up to a commit index that the leader told *after* it had begun to ignore what the earlier
        life of this replica said (it echoes our incarnation), and that lies in the leader's own term (so it covers
        all older commitments too). No leader can have been elected with our vote meanwhile: a suspect grants none.
        """
        if self.health != Health.SUSPECT or self._clear_at < 0:
            return
        if self.log.durable < self._clear_at or self._verified < self._clear_at:
            return
        if self.log.term_at(self._clear_at) != self.term:
            self._clear_at = -1  # a commit of an older term proves nothing: wait for the next one
            return
        self._trust()

    def trust_by_order(self, now_ms: int) -> None:
        """An operator takes this suspect replica's log as it is: whatever it lacks, the group may elect without.

        Raises Refused where that is not needed.
        """
        self._advance(now_ms)
        if self.health != Health.SUSPECT:
            raise Refused(f"the log of {self.id} is {self.health.name.lower()}, not suspect")
        if self._hears_leader:
            raise Refused(f"{self.leader} leads, and makes the log of {self.id} good")
        self._trust()

    def _trust(self) -> None:
        self.health = Health.OK
        self._suspect = False
        self._clear_at = -1
        self._persist()
