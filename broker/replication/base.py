"""What every replication strategy offers, and what it asks of the part that forms entries.

A broker replica owns one log. *How* the log is replicated is a strategy behind `Replicator`: `raft`, master-slave
(`sync`, `async`) or `local`. Processors and services see only this module. The other side of a strategy is an
`EntrySource` (the intake): it collects requests in an open batch, and the strategy decides when the batch closes.

The hot path is synchronous on purpose: nothing is awaited between admitting a request and fixing its order, and one
`Ticket` covers one entry, so that a whole batch of answers is settled by one call.

Promises kept by every strategy:

- A ticket is settled exactly once, on the loop that owns the group, in the order of the entries.
- `Verdict.OK` is only said when the acknowledgement rule of the strategy holds for that very entry (index *and* term).
- `Verdict.LOST` is only said when the entry surely is in no log and never will be.
- Everything else is `Verdict.UNKNOWN`: it may or may not have been stored.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from broker.store.entry import Entry, EntryId

__all__ = [
    "NO_LEADER",
    "OK",
    "Busy",
    "ChangeKind",
    "ChangeRefused",
    "EntrySource",
    "GroupFailed",
    "Health",
    "LeaderHint",
    "MembershipChange",
    "NotLeader",
    "Outcome",
    "Owner",
    "PeerStatus",
    "ReopenPlanned",
    "ReplicaStatus",
    "Replicas",
    "Replicator",
    "ReplicatorError",
    "Replies",
    "ReplyTo",
    "Role",
    "RoleEvent",
    "Settled",
    "Shortfall",
    "Ticket",
    "TransferFailed",
    "Verdict",
]


class Role(enum.Enum):
    """What this replica is at the moment. Only a *ready* leader serves leader-only reads (`RoleEvent.ready`)."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"
    LEARNER = "learner"


class Health(enum.Enum):
    """Whether the replica's own storage may be counted on."""

    OK = "ok"
    UNFORMED = "unformed"
    """The store is empty and waits for its peers (formation); nothing is served."""
    SUSPECT = "suspect"
    """Bytes that may have been acknowledged are gone: follows, but neither votes nor counts until caught up."""
    DAMAGED = "damaged"
    """The log has a hole that must be fetched from a peer; neither votes nor acknowledges."""
    IMPAIRED = "impaired"
    """A write or sync failed: final for this open log; the replica keeps serving committed reads."""
    FAILED = "failed"
    """An invariant broke: this group is stopped in this process, the others go on."""


@dataclass(frozen=True, slots=True)
class LeaderHint:
    """Who leads, as far as this replica knows. `addr` is the *client* address `host:port`, "" when unknown."""

    leader_id: str = ""
    addr: str = ""
    term: int = 0


NO_LEADER = LeaderHint()


class Verdict(enum.Enum):
    """The fate of an entry."""

    OK = "ok"
    SHORT = "short"
    """Stored, but in fewer places than asked (master-slave only): `Outcome.shortfall` says how."""
    LOST = "lost"
    """Surely not stored: it may be sent again, anywhere."""
    UNKNOWN = "unknown"
    """May or may not be stored: repeat it only where it is recognised."""


class Shortfall(enum.Enum):
    """Why a stored entry is not acknowledged in full (RocketMQ's put statuses)."""

    NONE = "none"
    FLUSH_DISK_TIMEOUT = "flush_disk_timeout"
    FLUSH_SLAVE_TIMEOUT = "flush_slave_timeout"
    SLAVE_NOT_AVAILABLE = "slave_not_available"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict with what a client needs to go on."""

    verdict: Verdict
    leader: LeaderHint = NO_LEADER
    shortfall: Shortfall = Shortfall.NONE

    @property
    def ok(self) -> bool:
        """True only for an acknowledgement in the promise's sense."""
        return self.verdict is Verdict.OK


OK = Outcome(Verdict.OK)


class ReplyTo(Protocol):
    """Where answers go: a client's connection, or the way back over a peer link for a forwarded request."""

    peer: str
    """`ip:port` of the client (for a forwarded request: of the original client)."""
    local: str
    """`ip:port` the client used to reach us."""

    def send(self, frame: bytes) -> None:
        """Queue one or several whole frames; never blocks; ignored when the connection is gone."""
        ...


class Replies:
    """The answers of one pass of a loop, grouped so that every connection gets one `send`.

    Settling callbacks add to it; the replicator flushes it once per pass, in the order of first use.
    """

    __slots__ = ("_frames",)

    def __init__(self) -> None:
        self._frames: dict[ReplyTo, list[bytes]] = {}

    def add(self, reply: ReplyTo, frame: bytes) -> None:
        """Queue `frame` for `reply`; frames of one connection keep their order."""
        frames = self._frames.get(reply)
        if frames is None:
            self._frames[reply] = [frame]
        else:
            frames.append(frame)

    def flush(self) -> None:
        """Send everything, one call per connection."""
        if not self._frames:
            return
        frames, self._frames = self._frames, {}
        for reply, parts in frames.items():
            reply.send(parts[0] if len(parts) == 1 else b"".join(parts))


Settled = Callable[[Outcome, Replies], None]
"""What a source hangs on a ticket: turns the outcome of an entry into answers. Must not raise, block or await."""


class Ticket:
    """The right to learn the fate of one entry.

    Made by the source together with the entry; `index`, `term` and `deadline` are filled in by the replicator when
    the entry is proposed. Settling twice is a bug of the replicator and asserted.
    """

    __slots__ = ("_callbacks", "deadline", "index", "outcome", "term")

    def __init__(self) -> None:
        self.index = 0
        self.term = 0
        self.deadline = 0.0
        """`trio.current_time()` after which the outcome is UNKNOWN."""
        self.outcome: Outcome | None = None
        self._callbacks: list[Settled] = []

    def on_settled(self, callback: Settled) -> None:
        """Call `callback` once when the fate is known; callbacks run in the order they were added.

        A duplicate request that waits for an entry in flight adds itself here. On a settled ticket the callback must
        not be added any more: look at `outcome` first.
        """
        assert self.outcome is None, "the ticket is settled: answer from its outcome"
        self._callbacks.append(callback)

    def settle(self, outcome: Outcome, replies: Replies) -> None:
        """Hand the outcome to every callback (replicator only)."""
        assert self.outcome is None, f"ticket of entry {self.index} settled twice"
        self.outcome = outcome
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(outcome, replies)


class ReplicatorError(Exception):
    """Base of what the asynchronous calls of a replicator raise."""


class NotLeader(ReplicatorError):
    """This replica does not lead, or not any more; `hint` says who may."""

    def __init__(self, hint: LeaderHint = NO_LEADER) -> None:
        super().__init__(f"not the leader; leader is {hint.addr or 'unknown'} (term {hint.term})")
        self.hint = hint


class Busy(ReplicatorError):
    """Too much is in flight; try again after a pause."""


class TooFewInSync(Busy):
    """Fewer replicas are in sync than the operator demands (minInSyncReplicas): the message says how many."""


class TransferFailed(ReplicatorError):
    """Leadership was not handed over; this replica still leads (or somebody else was elected on their own)."""


class ChangeRefused(ReplicatorError):
    """A membership change was not begun; the message says why. Nothing has changed."""

    def __init__(self, reason: str, *, later: bool = False) -> None:
        super().__init__(reason)
        self.later = later
        """It may be possible in a moment (a learner catches up, the change before commits): ask again."""


class GroupFailed(ReplicatorError):
    """The group is stopped in this process; the message says why."""


class ChangeKind(enum.Enum):
    """What may happen to one replica of a group."""

    ADD = "add"
    """It becomes a learner: replicated to, never counted."""
    PROMOTE = "promote"
    """A learner that has caught up becomes a voter."""
    REMOVE = "remove"
    """A voter or a learner leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipChange:
    """One change of who belongs to a group; one replica at a time."""

    kind: ChangeKind
    node_id: str
    address: str = ""
    """ADD: peer address, host:port."""
    client_address: str = ""
    uuid: str = ""
    """ADD: uuid of the store that joins. A replica whose disk was replaced has another one than before."""
    rank: int = -1
    """ADD: 0 is the preferred leader; -1 comes behind all others."""
    maintenance: bool = False
    """REMOVE: allow a group of two voters or fewer."""


class ReopenPlanned(GroupFailed):
    """Nothing is wrong: the store has to be opened anew, because its files were replaced or taken back."""


@dataclass(frozen=True, slots=True)
class RoleEvent:
    """A change of role. Handlers re-check the term before every side effect; only the newest event matters."""

    role: Role
    term: int
    leader: LeaderHint
    ready: bool
    """Leader only: the no-op of this term is committed and dispatched, and the leader view is complete."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One other replica, as the leader sees it (all zero on a follower)."""

    node_id: str
    match: int
    """Last entry known to be on that replica's disk."""
    lag_bytes: int
    connected: bool
    state: str = ""
    """probe, replicate or install."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """An immutable snapshot for operators, metrics and tests. All marks are entry indexes."""

    strategy: str
    node_id: str
    role: Role
    term: int
    ready: bool
    leader: LeaderHint
    health: Health
    detail: str
    first: int
    last: int
    durable: int
    commit: int
    dispatched: int
    visible: int
    """Byte position up to which consumers may see."""
    peers: tuple[PeerStatus, ...] = field(default=())
    store_uuid: str = ""
    """Which store this is, "" where the strategy does not know stores; and where it listens for its peers."""
    peer_address: str = ""
    rank: int = -1
    """Its place among the preferred leaders by its own configuration; -1: it has none."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """Who belongs to the group: ids sorted, with the address that clients use ("" when unknown)."""

    voters: tuple[tuple[str, str], ...]
    learners: tuple[tuple[str, str], ...] = ()
    numbers: tuple[tuple[str, int], ...] = ()
    """Master-slave: the brokerId that each was configured with."""
    in_sync: tuple[str, ...] = ()
    """Master-slave, at the master: who holds what consumers see, itself included."""

    def broker_id(self, node_id: str, leader_id: str) -> int:
        """The id under which a replica that is not the ready leader registers; all of a group's differ, none is 0.

        Master-slave: its brokerId; the one whose id is 0 takes the id of whoever is the master instead of it.
        """
        numbers = dict(self.numbers)
        if node_id not in numbers:
            return self.rank(node_id) + 1
        own = numbers[node_id]
        if own:
            return own
        return numbers.get(leader_id, 0) or 256  # above all that can be configured

    def rank(self, node_id: str) -> int:
        """Position among the sorted voters, then the learners: decides the id under which a replica registers."""
        members = (*self.voters, *self.learners)
        for position, (member, _addr) in enumerate(members):
            if member == node_id:
                return position
        return len(members)

    def __contains__(self, node_id: str) -> bool:
        """Does it belong to the group?"""
        return any(member == node_id for member, _addr in (*self.voters, *self.learners))


class Owner(Protocol):
    """What a source may ask of the replicator it works for (all synchronous, callable from any handler)."""

    def wake(self) -> None:
        """There is something to take. Cheap; call it once per pass, not per request."""
        ...

    @property
    def has_room(self) -> bool:
        """False while too much is uncommitted or undispatched: refuse new requests with SYSTEM_BUSY."""
        ...

    @property
    def shortage(self) -> str:
        """Why there is no room, when that is for want of replicas in sync; "" else."""
        ...

    @property
    def leader(self) -> LeaderHint:
        """Who leads, as far as is known."""
        ...


class EntrySource(Protocol):
    """Forms entries out of requests. Implemented by the intake; called synchronously by the replicator's loop.

    Order of calls in a term of leadership: `scan` (to its end), `begin_term`, then any number of `take` and `rebase`,
    then `end_term`. `end_term` may come at any time after `scan` was started (also when `begin_term` never came), and
    is called exactly once per started scan; a cancelled `scan` leaves nothing to clean up but what `end_term` drops.
    """

    def attach(self, owner: Owner) -> None:
        """Called once, before anything else."""
        ...

    async def scan(self, term: int, entries: AsyncIterator[Entry]) -> None:
        """Build the leader view out of everything above the applied state: (dispatched, last], in order.

        The iterator starts at the entry after the one that is dispatched when it is first advanced. Dispatching goes
        on meanwhile, so keep absolute values (a record's queue offset + 1), never increments. Cancelled on deposition.
        """
        ...

    def begin_term(self, term: int, last: EntryId) -> None:
        """Admission opens. The open batch starts on `last`; the no-op of this term is at or before it."""
        ...

    def end_term(self) -> None:
        """Drop the view and the open batch: its requests are LOST. Tickets of taken entries are not the source's."""
        ...

    def has_work(self) -> bool:
        """Is anything in the open batch?"""
        ...

    @property
    def full(self) -> bool:
        """Has the open batch reached its limit (1 MiB or 1,024 records)?"""
        ...

    def take(self, prev: EntryId, commit: int) -> Sequence[tuple[Entry, Ticket | None]]:
        """Close the open batch: (a filler and) an entry that chain onto `prev`, with `commit` as their hint.

        `prev` is what the batch was opened on. The next batch opens on the last entry returned. May return nothing.
        """
        ...

    def flush(self) -> None:
        """Leadership is handed over: put what waits for a later entry (offsets, member sets) into the open batch."""
        ...

    def rebase(self, prev: EntryId) -> None:
        """The replicator placed an entry of its own (membership): the empty open batch now starts on `prev`."""
        ...


class Replicator(Protocol):
    """A replication strategy at work for one group."""

    @property
    def strategy(self) -> str:
        """raft, sync, async or local."""
        ...

    @property
    def node_id(self) -> str: ...

    def status(self) -> ReplicaStatus: ...

    @property
    def role(self) -> RoleEvent:
        """The newest role event; cheap enough for every request."""
        ...

    @property
    def is_ready(self) -> bool:
        """Ready leader: serves everything."""
        ...

    @property
    def admitting(self) -> bool:
        """Leader whose view is complete: takes writes (already before it is ready)."""
        ...

    @property
    def has_room(self) -> bool: ...

    @property
    def serves_reads(self) -> bool:
        """False on a former master until it leads again or follows another: what it alone holds may be given up."""
        ...

    @property
    def leader(self) -> LeaderHint: ...

    @property
    def replicas(self) -> Replicas: ...

    def wake(self) -> None:
        """The source has work."""
        ...

    def visible(self) -> int:
        """Byte position up to which consumers may see: min(commit, dispatched)."""
        ...

    async def room(self) -> None:
        """Return when `has_room`. Raises NotLeader when leadership ends first."""
        ...

    async def barrier(self) -> int:
        """A linearizable read point: returns the position up to which this replica's state is current, applied.

        Leadership is confirmed by one beat round that all waiters share. Raises NotLeader.
        """
        ...

    def subscribe(self) -> AsyncIterator[RoleEvent]:
        """The present role event, then every change; a slow reader sees only the newest."""
        ...

    async def transfer(self, target: str | None = None) -> None:
        """Hand leadership over (to the best replica when no target is named). Raises NotLeader, TransferFailed."""
        ...

    async def change(self, change: MembershipChange) -> None:
        """Change who belongs to the group; returns when the change is committed.

        Raises NotLeader, ChangeRefused (nothing has changed). Cancelled, or NotLeader after it began: it may still
        take effect; `replicas` tells.
        """
        ...

    async def drain(self) -> None:
        """Stop admitting and wait until nothing of ours is in flight; then hand over if somebody can lead."""
        ...

    async def run(self, *, task_status: Any = ...) -> None:  # Any: trio.TaskStatus[None], whose default differs
        """Work until cancelled; `started()` when the replica takes part. Raises when the group has failed."""
        ...
