"""The front of the consensus core: one replica's share of one group, as a pure state machine.

In: messages, ticks, proposals, finished writes, faults. Out: one `Ready` per turn. The driver's loop is

    drain the inbox -> step / propose / append_done for each thing in it -> tick if it is time -> ready() -> route it

with no `await` between draining and routing. Messages in `Ready.send` may leave at once, also before the writes of the
same `Ready` are done: whatever may not leave before a write rides on that write (`writes.py`). Two Readies' messages
to one peer should be kept in order; nothing depends on it but speed.

Any `InvariantBroken` that comes out of a method ends this core: the group stops on this replica and is reopened from
disk, never continued from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from raft.core.election import Election
from raft.core.messages import (
    AppendReply,
    AppendRequest,
    Beat,
    BeatReply,
    CampaignNow,
    Message,
    VoteReply,
    VoteRequest,
)
from raft.core.ready import Ready, RoleChange
from raft.core.types import (
    NOBODY,
    EntryId,
    EntryLike,
    Health,
    NodeId,
    PeerState,
    PeerStatus,
    Role,
    Status,
    StorageFault,
)

__all__ = ["RaftCore"]


class RaftCore(Election):
    """One replica's share of consensus. `now_ms` is any monotonic clock in milliseconds.

    To read at any time: `id role term vote leader health commit durable last noop_index membership transferring
    starts`. Also part of the front: `propose`, `change_membership`, `barrier`, `transfer` (see `leadership.py`).
    """

    def tick(self, now_ms: int) -> None:
        """Time passes: call every `config.tick_ms`, after draining what has arrived."""
        self._advance(now_ms)
        if self.role == Role.LEADER:
            self._tick_leader()
        else:
            self._tick_others()

    def step(self, message: Message, now_ms: int) -> None:
        """Take a message of a peer. Old, doubled and foreign ones do no harm; InvariantBroken is fatal."""
        self._advance(now_ms)
        if message.to == self.id:
            _STEPS[type(message)](self, message)

    def _step_append_reply(self, reply: AppendReply) -> None:
        peer = self.peers.get(reply.sender)
        if peer is None or self._is_foreign_term(reply.term):
            return
        if self._on_append_reply(reply, peer):
            self._count()
            if self.transferring and self.transfer_to == peer.id:
                self._push_transfer()

    def _step_beat_reply(self, reply: BeatReply) -> None:
        peer = self.peers.get(reply.sender)
        if peer is None or self._is_foreign_term(reply.term):
            return
        if self._on_beat_reply(reply, peer):
            self._count()
        if self.role == Role.LEADER:
            self._confirm_reads()

    def _is_foreign_term(self, term: int) -> bool:
        """An answer of another term than the one led: a newer one ends the leadership, an older one says nothing."""
        if term > self.term:
            self._become_follower(term, NOBODY)
        return term != self.term or self.role != Role.LEADER

    # -- storage ----------------------------------------------------------------------------------------------------

    def append_done(self, seq: int, now_ms: int) -> None:
        """All batches up to `seq` are durable, and the `LogView` shows them. What they made true leaves with
        `ready`."""
        self._advance(now_ms)
        if self.health == Health.IMPAIRED:
            return
        reached, released = self.writes.done(seq)
        self.log.written(reached)
        for message in released:
            if message.to == self.id:
                self.step(message, now_ms)
            else:
                self._send(message)
        if self.role == Role.LEADER:
            self._count()
        else:
            self._maybe_clear_suspicion()

    def hard_state_done(self, seq: int, now_ms: int) -> None:
        """The disk is full, but the hard states up to batch `seq` are durable: votes leave, nothing else."""
        self._advance(now_ms)
        if self.health == Health.IMPAIRED:
            return
        for message in self.writes.hard_state_done(seq):
            self._send(message)

    def storage_failed(self, fault: StorageFault, now_ms: int) -> None:
        """Storage cannot do its part, see `StorageFault`: a leader stops leading, at once or by transfer (L6)."""
        self._advance(now_ms)
        match fault:
            case StorageFault.SLOW | StorageFault.HUNG:
                if self.role == Role.LEADER and not self.transferring:
                    self._try_hand_over(even_again=fault is StorageFault.HUNG)
            case StorageFault.STALLED:
                self._campaign_held = True
                self._stand_aside()
            case StorageFault.FULL:
                self._stand_aside()
                self._no_space = True
                if self.health == Health.OK:
                    self.health = Health.FULL
            case StorageFault.FAILED:
                self._stand_aside()
                self.health = Health.IMPAIRED
                self.writes.abandon()

    def _stand_aside(self) -> None:
        if self.role == Role.LEADER:
            self._give_up_leading()
        elif self.role in (Role.PRE_CANDIDATE, Role.CANDIDATE):
            self._become_follower(self.term, NOBODY)

    def storage_recovered(self, now_ms: int) -> None:
        """The end of FULL, SLOW, HUNG or STALLED. Nothing ends FAILED but a new core on a reopened store."""
        self._advance(now_ms)
        self._campaign_held = False
        self._no_space = False
        if self.health == Health.FULL:
            self.health = Health.OK

    # -- links ------------------------------------------------------------------------------------------------------

    def link_down(self, node: NodeId, now_ms: int) -> None:
        """The connection to the node was reset and a reconnect refused: a hint, which PreVote keeps harmless."""
        self._advance(now_ms)
        self.gone.add(node)
        if self.role in (Role.PRE_CANDIDATE, Role.CANDIDATE) and self.id in self._votes:
            self._tally()  # somebody less to wait for
        peer = self.peers.get(node)
        if peer is not None and peer.state == PeerState.REPLICATE:
            self._resume(peer)
            peer.paused = True  # until the link is up or a beat is answered
        if node == self.leader and self.role in (Role.FOLLOWER, Role.LEARNER):
            self._contact_ms = None
            config = self.config
            soon = self._rng.randint(config.link_down_min_ms, config.link_down_max_ms)
            self._deadline_ms = min(self._deadline_ms, self._clock_ms + soon + self._apply_delay_ms)

    def link_up(self, node: NodeId, now_ms: int) -> None:
        """Connected (again): what was in flight is lost, go on from what is known."""
        self._advance(now_ms)
        self.gone.discard(node)
        peer = self.peers.get(node)
        if peer is None:
            return
        if peer.state == PeerState.REPLICATE:
            self._resume(peer)
        peer.paused = False
        self._feed(peer)

    # -- out --------------------------------------------------------------------------------------------------------

    def ready(self) -> Ready:
        """Everything to do since the last call. Falsy if there is nothing."""
        out = Ready(send=self._out, appends=self.writes.take(), reads=self._grants, installs=self._installs)
        self._out, self._grants, self._installs = [], [], []
        out.rewind, self._rewind = self._rewind, None
        if self.commit > self._told_commit:
            out.committed = (self._told_commit + 1, self.commit)
            self._told_commit = self.commit
        if self.acknowledged > self._told_acknowledged:
            out.acknowledged = self._told_acknowledged = self.acknowledged
        role = RoleChange(self.role, self.term, self.leader, self.noop_index)
        if role != self._told_role:
            out.role = self._told_role = role
        if self._transfer_end is not None:
            out.transfer, self._transfer_end = self._transfer_end, None
        current = (self.memberships.index, self.membership)
        if current != self._told_membership and current[1] is not None:
            self._told_membership = current
            out.membership = (current[0], current[1])
        return out

    def pending(self, first: int, last: int) -> list[EntryLike]:
        """The entries of [first, last] that are not durable here yet: a suffix of the range, the rest is in the log."""
        return self.log.pending(first, last)

    def entry_id(self, index: int) -> EntryId | None:
        """Id of an entry of the in-memory log, durable or not; None outside [first - 1, last]."""
        return self.log.entry_id(index)

    def may_install(self, end: EntryId) -> bool:
        """Whether this log may be replaced by another replica's, of which everything up to `end` is *committed*.

        Asked in the turn that switches, not when the shipping begins: meanwhile another leader may have fed this
        replica. If our log holds that very `end` (or has committed beyond it), it may go on behind it with entries
        that we acknowledged: the switch would lose them, and is not needed. If it does not, all that we acknowledged
        and that can be committed lies before `end`.
        """
        if not self.rules.keeps_committed(self):
            return self.log.entry_id(end.index) != end
        return end.index > self.commit and self.log.entry_id(end.index) != end

    def status(self) -> Status:
        """A picture for status commands, metrics and tests."""
        now = self._clock_ms
        voting = self.config.election_ms
        peers = tuple(
            PeerStatus(
                id=p.id,
                voter=p.voter,
                state=p.state,
                match=p.match,
                next=p.next,
                first_index=p.first_index,
                health=p.health,
                in_flight=len(p.in_flight),
                silent_ms=now - p.heard_ms,
                steady_ms=now - p.steady_from_ms if p.steady_from_ms >= 0 and now - p.heard_ms < voting else 0,
                losses=p.losses,
            )
            for p in self.peers.values()
        )
        return Status(
            id=self.id,
            role=self.role,
            term=self.term,
            vote=self.vote,
            leader=self.leader,
            health=self.health,
            commit=self.commit,
            durable=self.durable,
            last=self.last,
            first_index=self.log.first_index,
            noop_index=self.noop_index,
            transfer_to=self.transfer_to,
            membership=self.membership,
            membership_index=self.memberships.index,
            peers=peers,
        )


# Any: each function takes exactly the message type it is listed under.
_STEPS: Mapping[type[object], Callable[[RaftCore, Any], None]] = MappingProxyType(
    {
        AppendRequest: lambda core, m: core._on_append(m),
        AppendReply: lambda core, m: core._step_append_reply(m),
        Beat: lambda core, m: core._on_beat(m),
        BeatReply: lambda core, m: core._step_beat_reply(m),
        VoteRequest: lambda core, m: core._on_vote_request(m),
        VoteReply: lambda core, m: core._on_vote_reply(m),
        CampaignNow: lambda core, m: core._on_campaign_now(m),
    }
)
