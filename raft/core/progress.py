"""What a leader knows of one peer, and how it feeds it.

PROBE: where the logs meet is unknown; one request at a time, `next` moves down by the peer's hints. REPLICATE:
`match` is known, requests are pipelined inside a small window and `next` runs ahead. INSTALL: what comes next is no
longer in our log; segments are shipped by the driver until the peer's answers connect to our log again.

`match < next` always, and `match` only rises, from positive acknowledgements of this term (S22). The one exception is a
peer that came back having lost bytes: that is a new replica as far as counting goes, and starts at 0.
"""

from __future__ import annotations

from collections import deque

from raft.core.errors import InvariantBroken
from raft.core.types import Health, NodeId, PeerState

__all__ = ["Progress"]

_COUNTED = (Health.OK, Health.FULL)
_TAKING = (Health.OK, Health.SUSPECT)


class Progress:
    """One peer, as seen by the leader of one term."""

    __slots__ = (
        "answered",
        "catch_up_from_ms",
        "catch_up_ok",
        "catch_up_to",
        "denials",
        "first_index",
        "health",
        "heard_ms",
        "id",
        "in_flight",
        "in_flight_bytes",
        "incarnation",
        "losses",
        "match",
        "next",
        "paused",
        "paused_round",
        "round",
        "state",
        "steady_from_ms",
        "steady_to",
        "voter",
    )

    def __init__(self, node: NodeId, voter: bool, next_index: int, now_ms: int) -> None:
        self.id = node
        self.voter = voter
        self.state = PeerState.PROBE
        self.match = 0
        self.next = next_index
        self.in_flight: deque[tuple[int, int]] = deque()
        """(last index, bytes) of requests without an answer, oldest first."""
        self.in_flight_bytes = 0
        self.paused = False
        """A probe is under way, ..."""
        self.paused_round = 0
        """... sent after this round of beats: an answer to a later one says that it went lost."""
        self.answered = True
        """An acknowledgement came since the last answer to a beat: the flow is alive."""
        self.heard_ms = now_ms
        self.health = Health.OK
        self.incarnation = 0
        self.first_index = 1
        self.denials = 0
        """Rejections, without an acceptance between, of what it had acknowledged itself."""
        self.losses = 0
        """How often it turned out to lack what it had acknowledged, without saying so: its storage lies."""
        self.round = 0
        """The newest round of beats that it has answered."""
        self.steady_from_ms = -1
        """Since when it has been healthy and caught up; -1: it is not."""
        self.steady_to = 0
        self.catch_up_to = 0
        """A learner's current round: the end of our log when the round began, ..."""
        self.catch_up_from_ms = now_ms
        """... when that was, ..."""
        self.catch_up_ok = False
        """... and whether the round before took less than one election timeout."""

    @property
    def counted(self) -> int:
        """The index up to which it counts for commitment."""
        return self.match if self.health in _COUNTED else 0

    @property
    def can_vote(self) -> bool:
        return self.health in _COUNTED

    @property
    def takes_entries(self) -> bool:
        return self.health in _TAKING

    def probe(self, next_index: int) -> None:
        self.state = PeerState.PROBE
        self.next = max(self.match + 1, next_index)
        self._forget_flights()

    def replicate(self) -> None:
        self.state = PeerState.REPLICATE
        self.next = max(self.next, self.match + 1)
        self._forget_flights()

    def install(self) -> None:
        self.state = PeerState.INSTALL
        self._forget_flights()

    def lost_bytes(self, next_index: int) -> None:
        """It returned without something that it may have acknowledged: nothing it ever said counts."""
        self.match = 0
        self.denials = 0
        self.probe(next_index)

    def sent(self, last: int, size: int, beat_round: int) -> None:
        """A request that ends in `last` is on its way, sent after this round of beats."""
        if self.state == PeerState.PROBE:
            self.paused = True
            self.paused_round = beat_round
            return
        self.in_flight.append((last, size))
        self.in_flight_bytes += size
        self.next = last + 1

    def room(self, requests: int, window_bytes: int) -> int:
        """Bytes that may be sent now; 0 when the window is full."""
        if len(self.in_flight) >= requests:
            return 0
        return max(0, window_bytes - self.in_flight_bytes)

    def accepted(self, match: int) -> bool:
        """Take an acknowledgement; True if it told anything new."""
        self.denials = 0
        while self.in_flight and self.in_flight[0][0] <= match:
            self.in_flight_bytes -= self.in_flight.popleft()[1]
        if match <= self.match:
            return False
        self.match = match
        self.next = max(self.next, match + 1)
        self.answered = True
        return True

    def is_stale_rejection(self, rejected: int) -> bool:
        """Whether a rejection answers something older than what we know by now."""
        if self.state == PeerState.PROBE:
            return rejected != self.next - 1
        if self.state == PeerState.REPLICATE:
            return rejected <= self.match
        return False

    def check(self, last: int) -> None:
        """S22, after each step that moved it."""
        if not self.match < self.next <= last + 1:
            raise InvariantBroken("S22", f"peer {self.id}: match {self.match}, next {self.next}, our last {last}")

    def _forget_flights(self) -> None:
        self.in_flight.clear()
        self.in_flight_bytes = 0
        self.paused = False
        self.answered = True
