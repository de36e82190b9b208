"""The values and protocols that the consensus core shares with its driver.

The core (`raft/core`) is a pure, synchronous state machine: no await, no clock, no I/O, no global randomness. What it
needs from outside is named here: entries are opaque (`EntryLike`: a header's worth of attributes and a buffer), stable
storage answers questions about positions and terms (`LogView`), and whoever owns the entry format makes the few
entries that the core itself appends (`EntryMaker`). Positions are bytes in the log, times are milliseconds of any
monotonic clock, intervals of indexes are inclusive unless a name ends in `_end`.

Source: Raft thesis ch. 3, 4, 6 and 9.6; the shape (effects out, asynchronous storage writes) is that of etcd's library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Protocol

__all__ = [
    "KIND_MEMBERSHIP",
    "KIND_NOOP",
    "NOBODY",
    "ZERO",
    "EntryId",
    "EntryIdLike",
    "EntryLike",
    "EntryMaker",
    "HardState",
    "Health",
    "LogView",
    "Member",
    "Membership",
    "NodeId",
    "PeerState",
    "PeerStatus",
    "RaftConfig",
    "Recovered",
    "Role",
    "Status",
    "StorageFault",
]

NodeId = str
"""A replica's id inside its group, as in `dLegerSelfId` (`n0`). Peers are always walked in sorted order."""

NOBODY: NodeId = ""
"""No vote given, no leader known."""

KIND_MEMBERSHIP = 3
"""The entry kind (a number of the on-disk format) that the core must understand: it changes who counts."""

KIND_NOOP = 4
"""The kind of the entry that a new leader appends first."""


class EntryIdLike(Protocol):
    """What names one place in one log. Equal (index, term) on two replicas means equal entry and equal prefix."""

    @property
    def index(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def crc(self) -> int:
        """CRC of the entry's header, which covers the header CRC of the entry before: equal CRC, equal prefix."""
        ...

    @property
    def end(self) -> int:
        """The first byte position after the entry."""
        ...


class EntryLike(EntryIdLike, Protocol):
    """An encoded entry. The core reads its header attributes and never its bytes."""

    @property
    def kind(self) -> int: ...
    @property
    def prev_crc(self) -> int: ...
    @property
    def position(self) -> int:
        """Byte position of the entry: the `end` of the entry before."""
        ...

    @property
    def size(self) -> int:
        """Bytes it takes in the log: `end - position`."""
        ...

    @property
    def data(self) -> bytes:
        """What is sent and written (for a filler, its header only)."""
        ...


@dataclass(frozen=True, slots=True)
class EntryId:
    """The core's own `EntryIdLike`. `ZERO` stands before the first entry of every log."""

    index: int
    term: int
    crc: int
    end: int

    @staticmethod
    def of(entry: EntryIdLike) -> EntryId:
        """The id of an entry, or another package's id as ours (so that they compare)."""
        if type(entry) is EntryId:
            return entry
        return EntryId(entry.index, entry.term, entry.crc, entry.end)


ZERO = EntryId(0, 0, 0, 0)


class Role(IntEnum):
    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3
    LEARNER = 4
    """Follows, never counts, never campaigns. It grants votes: it may have been promoted without knowing it yet."""


class Campaign(Enum):
    """Why a replica asks for votes."""

    ELECTION = "election"
    """Its timer ran out."""
    TRANSFER = "transfer"
    """The leader asked it to take over."""
    ORDERED = "ordered"
    """An operator's word; the rules say how many grants that takes."""
    FORCED = "forced"
    """An operator's word, against the rules: acknowledged entries may be lost."""


class Health(IntEnum):
    """What this replica's storage allows it to do. Carried in replies so that the leader knows whom it may count."""

    OK = 0
    SUSPECT = 1
    """Bytes that it may have acknowledged are gone: follows, but neither votes nor counts until it has caught up."""
    DAMAGED = 2
    """The log needs repair by the driver: takes no entries, no votes, no campaign."""
    IMPAIRED = 3
    """A write or sync failed: final for this incarnation. Only a reopened store (a new core) helps."""
    FULL = 4
    """No space: takes no entries and does not lead, but hard state still works, so it votes and answers beats."""


class StorageFault(Enum):
    """What the driver's storage reports through `RaftCore.storage_failed`."""

    FAILED = "failed"
    """A write or sync raised: final. Leader steps down at once; nothing is acknowledged or granted any more."""
    FULL = "full"
    """No space for entries (hard state still can be written). Leader hands over and steps down. Revocable."""
    SLOW = "slow"
    """The oldest unfinished write is older than 2 E: leader tries a transfer, and leads on if that fails. Revocable."""
    HUNG = "hung"
    """Older than 3 E: leader tries (again), even if it has handed over for a slow disk a moment ago. Revocable."""
    STALLED = "stalled"
    """Older than 5 s: leader steps down, nobody campaigns here until `storage_recovered`."""


class PeerState(IntEnum):
    """How the leader feeds a peer."""

    PROBE = 0
    """Where the logs meet is not known: one request at a time."""
    REPLICATE = 1
    """A window of requests in flight."""
    INSTALL = 2
    """What the peer needs next is no longer in the leader's log: the driver ships segments."""


@dataclass(frozen=True, slots=True)
class HardState:
    """What must be on disk before any promise of it leaves: written as a whole, never in parts."""

    term: int = 0
    """Never goes down."""
    vote: NodeId = NOBODY
    """Whom this replica voted for in `term`; stays until the term changes, whatever the role."""
    suspect: bool = False
    """See `Health.SUSPECT`: survives restarts, cleared by the core only."""
    starts: int = 0
    """Incarnation: how often a core was started on this store. The core raises it itself in its first batch."""


@dataclass(frozen=True, slots=True)
class Member:
    """One replica of the group as the membership entry lists it. The core uses `id` and `rank` only."""

    id: NodeId
    rank: int = 0
    """0 is the preferred leader; a higher rank waits longer before it campaigns. Never a reason to refuse a vote."""
    address: str = ""
    """Peer address, host:port."""
    client_address: str = ""
    uuid: str = ""
    """The store's uuid, drawn at first format."""


@dataclass(frozen=True, slots=True)
class Membership:
    """Who votes and who is only replicated to. In force from the moment it is appended; reverts when truncated."""

    voters: tuple[Member, ...]
    """Sorted by id."""
    learners: tuple[Member, ...] = ()
    """Sorted by id; disjoint from voters."""
    detail: object = None
    """The rest of the membership entry (lineage, strategy, segment size ...): carried along, never looked at."""

    @property
    def voter_ids(self) -> tuple[NodeId, ...]:
        return tuple(m.id for m in self.voters)

    @property
    def learner_ids(self) -> tuple[NodeId, ...]:
        return tuple(m.id for m in self.learners)

    def member(self, node: NodeId) -> Member | None:
        for m in self.voters:
            if m.id == node:
                return m
        for m in self.learners:
            if m.id == node:
                return m
        return None


class LogView(Protocol):
    """What the core asks of stable storage, synchronously and often: answered from memory.

    The view shows what is *on disk*: it moves only when a write of an `AppendBatch` finished, before the driver
    reports `append_done`. The core looks nothing up above its own `durable`, so a view that still shows (or already
    dropped) a tail that a queued batch truncates does no harm.
    """

    @property
    def first_index(self) -> int:
        """The oldest entry still stored (`last.index + 1` when none is); only grows."""
        ...

    @property
    def last(self) -> EntryIdLike:
        """The newest entry on disk."""
        ...

    def entry_id(self, index: int) -> EntryIdLike | None:
        """Id of an entry from `first_index - 1` to `last.index`; None outside. Index 0 is `ZERO` while it is inside."""
        ...

    def last_index_at_most(self, term: int) -> int:
        """The largest index whose entry has a term at or below `term`; `first_index - 1` (or less) if there is none."""
        ...


class EntryMaker(Protocol):
    """Encodes the entries that the core itself appends. May put a filler in front where a segment ends."""

    def noop(self, prev: EntryId, term: int, commit: int) -> Sequence[EntryLike]:
        """The first entry of a new leader: [filler?] + no-op, chained onto `prev`."""
        ...

    def membership(self, prev: EntryId, term: int, commit: int, membership: Membership) -> Sequence[EntryLike]:
        """[filler?] + a membership entry."""
        ...

    def read_membership(self, entry: EntryLike) -> Membership:
        """Decode an entry of kind `KIND_MEMBERSHIP`."""
        ...


@dataclass(frozen=True, slots=True)
class Recovered:
    """What recovery found, beside the log itself (`LogView`)."""

    hard: HardState
    commit: int
    """A lower bound of the commit index (snapshot, marks, commit hints): at most `LogView.last.index`."""
    memberships: Sequence[tuple[int, Membership]]
    """(index, membership) of the newest membership entries at or below the log's end, oldest first: the last two are
    used, one is enough when it is at or below `commit`. Empty: not formed, the core stays silent."""
    health: Health = Health.OK
    """OK, SUSPECT or DAMAGED, recovery's verdict. `hard.suspect` makes it SUSPECT whatever is said here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftConfig:
    """Timing and windows. H <= E/4; RTT + sync well below H; the worst stall of the loop below E - 2H."""

    node_id: NodeId
    beat_ms: int = 100
    """H."""
    election_ms: int = 400
    """E: the timeout is drawn from [E, 2E) at every reset; also stickiness, CheckQuorum and the bound of a transfer."""
    tick_ms: int = 20
    """How often the driver ticks. A tick (or message) that comes late counts as two ticks at most, so a stalled
    replica does not take its own pause for the leader's death."""
    link_down_min_ms: int = 20
    link_down_max_ms: int = 120
    """What is left of the election timeout after the leader's node refused a reconnect."""
    window_requests: int = 2
    window_bytes: int = 4 << 20
    """Per peer in flight. One larger entry alone is allowed."""
    request_bytes: int = 2 << 20
    """Entries of one append request stay below it, unless the first one alone is larger."""
    probe_bytes: int = 64 << 10
    """The same while probing."""
    transfer_lag_bytes: int = 8 << 20
    """A transfer to a peer that lacks more than this is refused."""

    def __post_init__(self) -> None:
        if self.beat_ms * 4 > self.election_ms:
            raise ValueError(f"beat interval {self.beat_ms} ms must be at most a quarter of {self.election_ms} ms")
        if self.window_requests < 1 or self.request_bytes > self.window_bytes:
            raise ValueError("the window must hold at least one request")


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What a leader knows of one peer."""

    id: NodeId
    voter: bool
    state: PeerState
    match: int
    next: int
    first_index: int
    """Oldest entry that the peer still stores, as it last reported."""
    health: Health
    in_flight: int
    silent_ms: int
    """Since anything of this term was heard from it."""
    steady_ms: int
    """How long it has been healthy and caught up without a break: what a rebalancer waits for (30 s)."""
    losses: int
    """How often it turned out to lack what it had acknowledged, without saying so: its storage lies."""


@dataclass(frozen=True, slots=True)
class Status:
    """A picture of the core for status commands, metrics and tests."""

    id: NodeId
    role: Role
    term: int
    vote: NodeId
    leader: NodeId
    health: Health
    commit: int
    durable: int
    last: EntryId
    first_index: int
    noop_index: int
    """Leader: index of this term's no-op, else 0. The driver is *ready* when it is committed and dispatched."""
    transfer_to: NodeId
    membership: Membership | None
    membership_index: int
    peers: tuple[PeerStatus, ...] = field(default=())
    """Sorted by id; filled on a leader only."""
