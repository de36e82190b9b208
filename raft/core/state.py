"""What every part of the core stands on: the state itself, its few movements, and the outbox.

`RaftCore` is one class cut by idea into a chain: `CoreState` (here) <- `Replication` (the leader feeding its peers) <-
`Leadership` (commit, barriers, transfer, membership changes) <- `Following` (taking a leader's entries) <- `Election`
<- `RaftCore` (the front). Each link uses only what is below it. All of it runs synchronously in one owner's hands;
nothing is locked because nothing else can run.

Time is logical: `_advance` adds what the driver's clock moved, but two ticks at most in one step, so a replica that was
stalled (and drains its sockets before it ticks) does not take its own pause for the death of the leader.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from raft.core.errors import InvariantBroken
from raft.core.log import RaftLog
from raft.core.membership import Memberships
from raft.core.messages import Message
from raft.core.progress import Progress
from raft.core.quorum import Quorum, quorum_of
from raft.core.read_index import ReadIndex
from raft.core.ready import InstallNeeded, ReadGrant, RoleChange, TransferEnd
from raft.core.rules import RAFT_RULES, Rules
from raft.core.types import (
    KIND_MEMBERSHIP,
    NOBODY,
    Campaign,
    EntryId,
    EntryLike,
    EntryMaker,
    HardState,
    Health,
    LogView,
    Membership,
    NodeId,
    RaftConfig,
    Recovered,
    Role,
)
from raft.core.writes import WriteQueue

__all__ = ["CoreState"]


class CoreState:
    """State, role changes, outbox. The driver may read what has no underscore, and write `retired` and `behind`."""

    def __init__(
        self,
        config: RaftConfig,
        rng: random.Random,
        log: LogView,
        maker: EntryMaker,
        recovered: Recovered,
        now_ms: int,
        rules: Rules = RAFT_RULES,
    ) -> None:
        self.config = config
        self.rules = rules
        self.id: NodeId = config.node_id
        self._rng = rng
        self._maker = maker
        self.log = RaftLog(log)
        self.memberships = Memberships(recovered.memberships)
        self._quorum: Quorum = quorum_of(self.memberships.current)

        hard = recovered.hard
        self.health = recovered.health
        self._suspect = hard.suspect or recovered.health == Health.SUSPECT
        if self._suspect and self.health == Health.OK:
            self.health = Health.SUSPECT
        self.term = max(hard.term, self.log.last.term)
        self.vote: NodeId = hard.vote if self.term == hard.term else NOBODY
        self.starts = hard.starts + 1
        self.commit = recovered.commit
        if not self.commit <= self.log.last.index:
            raise InvariantBroken(
                "S10", f"recovered commit {self.commit} lies behind the log's end {self.log.last.index}"
            )

        self.role = Role.FOLLOWER if self._is_voter else Role.LEARNER
        self.leader: NodeId = NOBODY
        self.noop_index = 0
        """Leader: the index of this term's no-op."""
        self.writes = WriteQueue()

        # Time.
        self._now_ms = now_ms
        self._clock_ms = 0
        self._contact_ms: int | None = None
        """When the leader was last heard, for stickiness; None: not, or its link is known to be down."""
        self._deadline_ms = 0
        """When this replica campaigns, unless it hears from a leader before."""
        self._rank_delay_ms = 0
        self._campaign_held = False
        """Storage is stalled: no campaign until it recovers."""
        self.retired = False
        """Set by the driver: a peer told of a later membership without this replica. It does not campaign any more."""
        self.behind = False
        """Set by the driver: much of what is committed is not applied here yet. As leader it would keep everybody
        waiting, so it lets others campaign first, for one election timeout."""
        self._no_space = False
        """Storage is full: no entries are taken until it recovers."""

        # Following.
        self._verified = 0
        """The last index that the leader of this term has verified here (S9)."""
        self._clear_at = -1
        """Suspect: the leader's commit index up to which the log must be whole again; -1: not known."""

        # Campaigning.
        self._nonce = 0
        self._votes: dict[NodeId, bool] = {}
        self.outvoted_by: set[NodeId] = set()
        """Candidate: who refused for good (a newer log, its vote given away), not because it hears a leader."""
        self._resend_ms = 0
        self.campaign = Campaign.ELECTION
        """Why this replica is a candidate, while it is one."""
        self.transfer_from: NodeId = NOBODY
        """Campaign by transfer: the leader that asked for it."""
        self.gone: set[NodeId] = set()
        """Whose process is known to have died (its port refuses): there is no answer to wait for."""
        self.unheard: frozenset[NodeId] = frozenset()
        """Candidate: who let the whole pre-vote pass without an answer."""

        # Leading.
        self.peers: dict[NodeId, Progress] = {}
        """Sorted by id; empty unless leader."""
        self.reads = ReadIndex()
        self._round = 0
        self._next_beat_ms = 0
        self.transfer_to: NodeId = NOBODY
        self._leaving = False
        """The removal of this leader is committed: it takes nothing more, and goes when all it took is committed."""
        self.successor: NodeId = NOBODY
        """Whom a leader that was removed handed over to."""
        self._transfer_deadline_ms = 0
        self._last_hand_over_ms: int | None = None

        self.acknowledged = self.commit
        """Clients may be told "stored" up to here; under Raft the same as `commit`."""

        # Outbox, emptied by `ready`.
        self._out: list[Message] = []
        self._grants: list[ReadGrant] = []
        self._installs: list[InstallNeeded] = []
        self._transfer_end: TransferEnd | None = None
        self._rewind: EntryId | None = None
        self._told_commit = self.commit
        self._told_acknowledged = self.acknowledged
        self._told_role: RoleChange | None = None
        self._told_membership: tuple[int, Membership | None] = (self.memberships.index, self.memberships.current)

        self._note_rank()
        self._persist()  # a new incarnation; also settles a term that only the log remembers
        self._reset_election_timer()

    # -- what is the case -------------------------------------------------------------------------------------------

    @property
    def last(self) -> EntryId:
        """The end of the log in memory, durable or not: what the next entry is sealed onto."""
        return self.log.last

    @property
    def durable(self) -> int:
        return self.log.durable

    @property
    def membership(self) -> Membership | None:
        """The membership in force: the newest in the log, committed or not."""
        return self.memberships.current

    @property
    def transferring(self) -> bool:
        """Leader: it takes nothing more, and goes."""
        return self.transfer_to != NOBODY or self._leaving

    @property
    def _is_voter(self) -> bool:
        return any(self.id in voters for voters in self._quorum)

    @property
    def own_term_committed(self) -> bool:
        """Leader: an entry of this term is committed, so `commit` is as new as anything ever acknowledged."""
        return self.role == Role.LEADER and 0 < self.noop_index <= self.commit

    @property
    def _hears_leader(self) -> bool:
        """Stickiness (L3): a leader was heard within the minimum election timeout, or this is it."""
        if self.role == Role.LEADER:
            return True
        return self._contact_ms is not None and self._clock_ms - self._contact_ms < self.config.election_ms

    # -- time -------------------------------------------------------------------------------------------------------

    def _advance(self, now_ms: int) -> None:
        passed = now_ms - self._now_ms
        self._now_ms = now_ms
        self._clock_ms += max(0, min(passed, 2 * self.config.tick_ms))

    def _reset_election_timer(self) -> None:
        """Draw a new timeout from [E, 2E) (L4), plus the delay of our rank."""
        timeout = self.config.election_ms
        self._deadline_ms = self._clock_ms + timeout + self._rng.randrange(timeout) + self._rank_delay_ms
        self._deadline_ms += self._apply_delay_ms

    @property
    def _apply_delay_ms(self) -> int:
        return self.config.election_ms if self.behind else 0

    def _note_rank(self) -> None:
        """Who is preferred campaigns first: rank x E/8, at most E/2."""
        member = self.membership.member(self.id) if self.membership is not None else None
        timeout = self.config.election_ms
        self._rank_delay_ms = min(member.rank * timeout // 8, timeout // 2) if member is not None else 0

    # -- outbox -----------------------------------------------------------------------------------------------------

    def _send(self, message: Message) -> None:
        if self.health != Health.IMPAIRED:  # S19
            self._out.append(message)

    def _send_after_writes(self, message: Message) -> None:
        """For everything that promises or depends on state: behind all writes that are under way (S3, S11)."""
        if self.health == Health.IMPAIRED:
            return
        if self.writes.idle and message.to != self.id:
            self._out.append(message)
        else:
            self.writes.release(message)

    def _persist(self) -> None:
        if self.health != Health.IMPAIRED:
            self.writes.hard_state(HardState(self.term, self.vote, self._suspect, self.starts))

    # -- movements --------------------------------------------------------------------------------------------------

    def _become_follower(self, term: int, leader: NodeId) -> None:
        """Follow in `term`, which is this one or a later one. The vote of this term stays (it is per term, not
        role)."""
        if term < self.term:
            raise InvariantBroken("S3", f"the term would go back from {self.term} to {term}")
        was = self.role
        if was == Role.LEADER:
            self._stop_leading(deposed=term > self.term)
        if term > self.term:
            self.term = term
            self.vote = NOBODY
            self._verified = 0
            self._clear_at = -1
            self._persist()
        if was == Role.LEADER:
            self._verified = 0
        self.role = Role.FOLLOWER if self._is_voter else Role.LEARNER
        self.leader = leader
        if was not in (Role.FOLLOWER, Role.LEARNER):
            self._reset_election_timer()

    def _stop_leading(self, *, deposed: bool) -> None:
        self.noop_index = 0
        self._leaving = False
        self.peers = {}
        self._grants.extend(self.reads.lost())
        if self.transfer_to:
            reason = "another term began" if deposed else "this leader stepped down before the target was elected"
            self._end_transfer(done=deposed, reason=reason)
        self._contact_ms = None

    def _end_transfer(self, *, done: bool, reason: str) -> None:
        self._transfer_end = TransferEnd(self.transfer_to, done, reason)
        self.transfer_to = NOBODY

    def _append(self, entries: Sequence[EntryLike], truncate_to: EntryId | None = None) -> None:
        """Put entries behind the log's end (already cut to `truncate_to`) and queue their write."""
        self.log.append(entries)
        self.writes.entries(entries, truncate_to)
        for entry in entries:
            if entry.kind == KIND_MEMBERSHIP:
                self.memberships.appended(entry.index, self._maker.read_membership(entry))
                self._membership_changed()

    def _truncate_after(self, index: int) -> EntryId:
        """Cut the log in memory; the returned id goes into the batch that brings what follows."""
        if self.role == Role.LEADER:
            raise InvariantBroken("S5", f"a leader would cut its own log after {index}")
        if index < self.commit:
            raise InvariantBroken("S10", f"a cut after {index} would remove committed entries (commit {self.commit})")
        if index < self._verified:
            raise InvariantBroken(
                "S9", f"a cut after {index} would remove what this leader verified ({self._verified})"
            )
        kept = self.log.truncate_after(index)
        if self.memberships.truncated_after(index):
            self._membership_changed()
        return kept

    def _membership_changed(self) -> None:
        self._quorum = quorum_of(self.memberships.current)
        self._note_rank()
        if self.role in (Role.FOLLOWER, Role.LEARNER):
            self.role = Role.FOLLOWER if self._is_voter else Role.LEARNER

    def _commit_to(self, index: int) -> None:
        """The one place where `commit` moves (S10)."""
        if index < self.commit:
            raise InvariantBroken("S10", f"commit would go back from {self.commit} to {index}")
        if index > self.log.last.index:
            raise InvariantBroken("S9", f"commit {index} behind the log's end {self.log.last.index}")
        self.commit = index
        if self.role != Role.LEADER and self.rules.keeps_committed(self):
            self.acknowledged = index
