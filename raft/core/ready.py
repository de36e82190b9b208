"""What the core hands out: everything to do after one turn.

The driver calls `RaftCore.ready()` once after a turn of `step`/`tick`/`propose`/`append_done` calls and carries out the
result; taking it clears it. There is no `advance`: each write reports itself through `append_done`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raft.core.messages import Message
from raft.core.types import EntryId, EntryLike, HardState, Membership, NodeId, Role

__all__ = ["AppendBatch", "InstallNeeded", "ReadGrant", "Ready", "RoleChange", "TransferEnd"]


@dataclass(slots=True)
class AppendBatch:
    """One storage write, processed strictly in order of `seq`.

    The writer does, each step durable before the next: hard state, truncation, entries. It may join several batches
    into one write and one sync as long as the order of hard states and truncations holds, and then reports the last
    `seq`. A batch without any of the three is a place in the queue: nothing to write, but it is reported in its turn.

    `release` are the messages that become true with this write. They are listed for reading: the **core** keeps them
    and puts them into the next `Ready.send` when `append_done(seq)` comes. The driver must not send them itself.
    """

    seq: int
    """Increases by one within an incarnation."""
    hard_state: HardState | None = None
    truncate_to: EntryId | None = None
    """Cut, durably, everything after this entry before writing."""
    entries: list[EntryLike] = field(default_factory=list)
    release: list[Message] = field(default_factory=list)

    @property
    def sync(self) -> bool:
        """Whether anything has to be on disk before `append_done`."""
        return bool(self.entries) or self.hard_state is not None or self.truncate_to is not None


@dataclass(frozen=True, slots=True)
class RoleChange:
    """Role, term or known leader changed. A leader is not *ready* yet: see `Status.noop_index`."""

    role: Role
    term: int
    leader: NodeId
    noop_index: int
    """Leader: the index of its no-op (a filler may stand before it); else 0."""


@dataclass(frozen=True, slots=True)
class ReadGrant:
    """A barrier's end. With an index: reads see everything acknowledged before once that index is dispatched."""

    token: int
    index: int | None
    """None: leadership was lost, ask again elsewhere."""


@dataclass(frozen=True, slots=True)
class InstallNeeded:
    """A peer needs entries that this leader no longer has: segments must be shipped to it.

    Said when it is found out, and again with every answered beat while it lasts: whoever ships ignores what it is at.
    """

    peer: NodeId
    next: int
    """The first index that the peer lacks, as far as known."""


@dataclass(frozen=True, slots=True)
class TransferEnd:
    """A transfer of leadership ended. After an abort proposals are taken again."""

    target: NodeId
    done: bool
    reason: str


@dataclass(slots=True)
class Ready:
    """Everything to do after one turn."""

    send: Sequence[Message] = ()
    """May leave now. `AppendRequest`s have yet to be filled with their entries."""
    appends: Sequence[AppendBatch] = ()
    committed: tuple[int, int] | None = None
    """(first, last) newly known committed, inclusive. May run ahead of what is durable here."""
    role: RoleChange | None = None
    reads: Sequence[ReadGrant] = ()
    installs: Sequence[InstallNeeded] = ()
    transfer: TransferEnd | None = None
    acknowledged: int = 0
    """Entries up to here may now be answered "stored"; 0: no news."""
    rewind: EntryId | None = None
    """The leader's log leaves ours after this entry, below what is committed here: the host has to take the store back.
    Said once; the core takes nothing more of that leader until it is started anew."""
    membership: tuple[int, Membership] | None = None
    """The membership in force changed (appended or truncated away): (its index, itself)."""

    def __bool__(self) -> bool:
        return bool(
            self.send
            or self.appends
            or self.committed
            or self.role
            or self.reads
            or self.installs
            or self.transfer
            or self.acknowledged
            or self.rewind
            or self.membership
        )
