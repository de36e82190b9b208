"""The leader feeding its peers (Raft thesis 3.5, 10.2; the windowed pipeline is described in `progress.py`).

Requests name a range of the log; the driver fills in the bytes. Whatever gets lost is found by the beats: an answered
beat with an unanswered window sends an empty request at `next - 1`, which is accepted if everything arrived and
rejected with a hint if not (L10). No timer per request exists.
"""

from __future__ import annotations

from raft.core.errors import InvariantBroken
from raft.core.messages import AppendReply, AppendRequest, Beat, BeatReply
from raft.core.progress import Progress
from raft.core.ready import InstallNeeded
from raft.core.state import CoreState
from raft.core.types import Health, PeerState

__all__ = ["Replication"]

_DENIALS_MAX = 3


class Replication(CoreState):
    """Append requests, their answers, beats."""

    def _feed_all(self) -> None:
        for peer in self.peers.values():
            self._feed(peer)

    def _feed(self, peer: Progress) -> None:
        """Send what the peer's state and window allow."""
        if not peer.takes_entries:
            return
        config = self.config
        last = self.log.last.index
        if peer.state == PeerState.PROBE:
            if not peer.paused:
                self._request(peer, config.probe_bytes)
        elif peer.state == PeerState.REPLICATE:
            while peer.next <= last:
                room = peer.room(config.window_requests, config.window_bytes)
                if not room or not self._request(peer, min(room, config.request_bytes)):
                    return

    def _request(self, peer: Progress, max_bytes: int, *, empty: bool = False) -> bool:
        """One request from `next` on. False if the log does not reach back that far: the peer needs an install."""
        prev = self.log.entry_id(peer.next - 1)
        if prev is None:
            peer.install()
            self._installs.append(InstallNeeded(peer.id, peer.next))
            return False
        end = prev
        if not empty and peer.next <= self.log.last.index:
            end = self.log.fit(peer.next, max_bytes)
            if peer.in_flight and end.end - prev.end > max_bytes:
                return False  # an entry larger than the rest of the window waits until it can go alone
        request = AppendRequest(self.term, self.id, peer.id, prev, end, self.commit, peer.incarnation)
        self._send(request)
        if not empty or peer.state == PeerState.PROBE:
            peer.sent(end.index, end.end - prev.end, self._round)
        peer.check(self.log.last.index)
        return True

    def _on_append_reply(self, reply: AppendReply, peer: Progress) -> bool:
        """True if more may be committed now."""
        if not self._heard(peer, reply.health, reply.incarnation):
            return False
        peer.first_index = reply.first_index
        if reply.rejected >= 0:
            self._on_rejection(reply, peer)
            return False
        if reply.match > self.log.last.index:
            raise InvariantBroken(
                "S6",
                f"peer {peer.id} holds {reply.match} for committed or verified, our log ends at {self.log.last.index}",
            )
        news = peer.accepted(reply.match)
        if peer.state == PeerState.PROBE and reply.match >= peer.next - 1:
            peer.replicate()
        elif peer.state == PeerState.INSTALL and self.log.entry_id(reply.match) is not None:
            peer.next = reply.match + 1
            peer.replicate()
        peer.check(self.log.last.index)
        self._watch_catch_up(peer)
        self._feed(peer)
        return news

    def _on_rejection(self, reply: AppendReply, peer: Progress) -> None:
        if peer.is_stale_rejection(reply.rejected):
            return
        meet = self.log.last_index_at_most(min(reply.hint_index, reply.rejected), reply.hint_term)
        if peer.state == PeerState.INSTALL and self.log.entry_id(meet) is None:
            return  # still needs what is gone
        if meet < peer.match:
            self._on_denial(peer, meet)
            return
        peer.probe(min(meet + 1, self.log.last.index + 1))
        peer.check(self.log.last.index)
        self._feed(peer)

    def _on_denial(self, peer: Progress, meet: int) -> None:
        """It rejects what it acknowledged: an old message that comes late, or storage that lost synced bytes unnoticed.

        Going on at once could repeat itself at the speed of the link, so the next try waits for a beat; after several
        it is fed from where it really is.
        """
        peer.probe(peer.match + 1)
        peer.paused = True
        peer.paused_round = self._round
        peer.denials += 1
        if peer.denials >= _DENIALS_MAX:
            peer.losses += 1
            peer.lost_bytes(meet + 1)
            self._feed(peer)

    def _heard(self, peer: Progress, health: Health, incarnation: int) -> bool:
        """Note a sign of life. False for what an earlier life of the peer said: it may have lost that since."""
        if incarnation < peer.incarnation:
            return False
        peer.heard_ms = self._clock_ms
        if incarnation > peer.incarnation:
            if peer.incarnation or health not in (Health.OK, Health.FULL):
                self._restarted(peer, health)
            peer.incarnation = incarnation
        peer.health = health
        return True

    def _restarted(self, peer: Progress, health: Health) -> None:
        """What was in flight is lost; what it acknowledged is there, unless it says that it lost bytes."""
        if health in (Health.OK, Health.FULL):
            self._resume(peer)
        else:
            peer.lost_bytes(self.log.last.index + 1)

    def _resume(self, peer: Progress) -> None:
        """Probe behind what it acknowledged; where that is gone here, ask at our end.

        Gone says nothing about the peer: it may never have told this leader how much it has, or have been installed.
        """
        known = self.log.entry_id(peer.match) is not None
        peer.probe(peer.match + 1 if known else self.log.last.index + 1)

    # -- beats ------------------------------------------------------------------------------------------------------

    def _beat_all(self) -> None:
        """One round of beats to every peer. Nothing on the way to it waits for a disk (L9)."""
        self._round += 1
        self._next_beat_ms = self._clock_ms + self.config.beat_ms
        for peer in self.peers.values():
            commit = min(self.commit, peer.match)
            self._send(Beat(self.term, self.id, peer.id, commit, self._round, peer.incarnation))

    def _on_beat_reply(self, reply: BeatReply, peer: Progress) -> bool:
        """True if more may be committed now (the peer's health returned)."""
        counted = peer.counted
        if not self._heard(peer, reply.health, reply.incarnation):
            return False
        if peer.can_vote:
            peer.round = max(peer.round, reply.round)
        self._watch_steadiness(peer)
        self._watch_catch_up(peer)
        if peer.takes_entries:
            self._reopen(peer, reply.round)
        return peer.counted > counted

    def _reopen(self, peer: Progress, beat_round: int) -> None:
        """L10: a flow without an answer since the last beat gets an empty request, which tells where it stands."""
        if peer.state == PeerState.PROBE:
            if beat_round > peer.paused_round:
                peer.paused = False
        elif peer.state == PeerState.INSTALL:
            self._ask_where(peer)
            return
        elif (peer.in_flight and not peer.answered) or peer.health == Health.SUSPECT:
            # A suspect peer needs to hear the uncapped commit index, which beats do not carry.
            self._request(peer, 0, empty=True)
        peer.answered = False
        self._feed(peer)

    def _ask_where(self, peer: Progress) -> None:
        """An empty request at our end: the answer shows whether an install has connected the peer's log to ours."""
        last = self.log.last
        self._send(AppendRequest(self.term, self.id, peer.id, last, last, self.commit, peer.incarnation))
        self._installs.append(InstallNeeded(peer.id, peer.next))

    # -- what others decide by -------------------------------------------------------------------------------------

    def _watch_steadiness(self, peer: Progress) -> None:
        """Healthy and at least at our end of one beat ago: how long without a break."""
        if peer.health != Health.OK or peer.match < peer.steady_to:
            peer.steady_from_ms = -1
        elif peer.steady_from_ms < 0:
            peer.steady_from_ms = self._clock_ms
        peer.steady_to = self.log.last.index

    def _watch_catch_up(self, peer: Progress) -> None:
        """A learner's rounds: each one must reach our end as it was when the round began."""
        if peer.voter or peer.match < peer.catch_up_to or peer.state != PeerState.REPLICATE:
            return
        peer.catch_up_ok = self._clock_ms - peer.catch_up_from_ms <= self.config.election_ms
        peer.catch_up_to = self.log.last.index
        peer.catch_up_from_ms = self._clock_ms
