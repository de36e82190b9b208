"""Who belongs to the group, as the log says it.

A membership is in force from the moment its entry is appended, on every replica, and reverts when the entry is
truncated. Exactly two need to be kept, the newest and the one before: a leader proposes a change only when the one
before is committed, so a truncation can take away one at most (S17).

Changes are single-server ones, with three guards: the previous membership entry is committed; the leader has
committed an entry of its own term; at most one voter differs. Without the second guard, two leaders of different
terms could each hold an uncommitted change whose quorums do not meet (the published flaw of the one-at-a-time
scheme).
"""

from __future__ import annotations

from collections.abc import Sequence

from raft.core.errors import ChangeRefused, InvariantBroken
from raft.core.types import Membership

__all__ = ["Memberships", "check_change"]


class Memberships:
    """The newest membership of the log and the one before it."""

    __slots__ = ("_before", "_latest")

    def __init__(self, entries: Sequence[tuple[int, Membership]]) -> None:
        self._latest = entries[-1] if entries else None
        self._before = entries[-2] if len(entries) > 1 else None

    @property
    def current(self) -> Membership | None:
        """The one in force."""
        return self._latest[1] if self._latest is not None else None

    @property
    def before(self) -> Membership | None:
        """The one that the newest replaced, if it is still known."""
        return self._before[1] if self._before is not None else None

    @property
    def index(self) -> int:
        """Index of its entry; 0 when there is none."""
        return self._latest[0] if self._latest is not None else 0

    def is_needed(self, node: str, commit: int) -> bool:
        """Whether a node's candidacy may be needed: it votes by the membership in force, or by the one before while the
        entry that removes it is not committed (it may be the only one that holds that entry; thesis 4.2.2)."""
        if self._latest is None:
            return False
        if node in self._latest[1].voter_ids:
            return True
        return self._latest[0] > commit and self._before is not None and node in self._before[1].voter_ids

    def appended(self, index: int, membership: Membership) -> None:
        check_shape(membership)
        self._before = self._latest
        self._latest = (index, membership)

    def truncated_after(self, index: int) -> bool:
        """Revert to what the shortened log says; True if something changed."""
        if self._latest is None or self._latest[0] <= index:
            return False
        if self._before is None or self._before[0] > index:
            raise InvariantBroken("S17", f"two membership entries would be lost by a cut after {index}")
        self._latest, self._before = self._before, None
        return True


def check_shape(membership: Membership) -> None:
    """Raise ValueError unless it is well-formed: voters, sorted, nobody twice."""
    ids = membership.voter_ids
    if not ids:
        raise ValueError("a membership without voters")
    if list(ids) != sorted(set(ids)) or list(membership.learner_ids) != sorted(set(membership.learner_ids)):
        raise ValueError(f"members are not sorted or not unique: {ids} {membership.learner_ids}")
    if set(ids) & set(membership.learner_ids):
        raise ValueError("a member cannot be voter and learner at once")


def check_change(
    old: Membership, old_index: int, new: Membership, *, commit: int, own_term_committed: bool, allow_two: bool
) -> None:
    """The three guards, and no group of two except by word (it cannot lose a member, nor remove a dead one)."""
    try:
        check_shape(new)
    except ValueError as error:
        raise ChangeRefused(str(error)) from error
    if old_index > commit:
        raise ChangeRefused(
            f"the membership entry {old_index} before is not committed yet (commit {commit})", later=True
        )
    if not own_term_committed:
        raise ChangeRefused("the leader has not committed an entry of its own term yet", later=True)
    differing = set(old.voter_ids) ^ set(new.voter_ids)
    if len(differing) > 1:
        raise ChangeRefused(f"one voter at a time: {', '.join(sorted(differing))}")
    if len(new.voters) == 2 and len(old.voters) != 2 and not allow_two:
        raise ChangeRefused("a group of two cannot lose a member: allowed as a maintenance state only")
