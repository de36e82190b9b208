"""What must hold inside the cores, seen across all replicas and lives: S1, S2, S4, S6, S7 on the real thing.

The drivers' core class is replaced by one that tells the oracle what leaves it. It also counts the states that must be
reached somewhere in a campaign: a counter at 0 means that the simulator has gone blind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import raft.group
from raft.core import EntryId, RaftCore, Ready, Role, VoteReply

__all__ = ["Oracle", "SafetyViolation", "observed"]


class SafetyViolation(AssertionError):
    """A safety invariant does not hold between replicas."""


class Oracle:
    """Knows, per log (lineage), everything that was ever promised."""

    def __init__(self) -> None:
        self.leaders: dict[tuple[int, int], str] = {}
        self.grants: dict[tuple[int, str, int], str] = {}
        self.committed: dict[int, list[EntryId]] = {}
        self.reached: Counter[str] = Counter()
        self.violations: list[str] = []

    def saw(self, core: RaftCore, lineage: int, ready: Ready) -> None:
        """One turn of one core."""
        if ready.role is not None and core.role is Role.LEADER:
            self._leads(core, lineage)
        for message in ready.send:
            if isinstance(message, VoteReply) and message.granted and not message.pre:
                known = self.grants.setdefault((lineage, core.id, message.term), message.to)
                self._require(
                    known == message.to, f"S2: {core.id} voted for {known} and {message.to} in term {message.term}"
                )
        for batch in ready.appends:
            if batch.truncate_to is not None:
                self.reached["entry overwritten"] += 1
        if ready.committed is not None:
            self._commits(core, lineage, *ready.committed)
        if ready.transfer is not None:
            self.reached["transfer done" if ready.transfer.done else "transfer aborted"] += 1
        if ready.installs:
            self.reached["install needed"] += 1
        if any(grant.index is None for grant in ready.reads):
            self.reached["barrier lost"] += 1

    def _leads(self, core: RaftCore, lineage: int) -> None:
        other = self.leaders.setdefault((lineage, core.term), core.id)
        self._require(other == core.id, f"S1: {other} and {core.id} both lead term {core.term}")
        for known in self.committed.get(lineage, ())[max(0, core.log.first_index - 1) :]:
            own = core.entry_id(known.index)
            self._require(own == known, f"S6: leader {core.id} of term {core.term} holds {own}, committed was {known}")
        self.reached["elected"] += 1

    def _commits(self, core: RaftCore, lineage: int, first: int, last: int) -> None:
        committed = self.committed.setdefault(lineage, [])
        if not committed and first > 1:  # entry 1 is committed when the group is formed
            for index in range(1, first):
                known = core.entry_id(index)
                assert known is not None
                committed.append(known)
        for index in range(first, last + 1):
            own = core.entry_id(index)
            if own is None:
                continue
            if index <= len(committed):
                known = committed[index - 1]
                self._require(own == known, f"S7: {core.id} commits {own}, another replica committed {known}")
            else:
                self._require(index == len(committed) + 1, f"S7: {core.id} commits {index} out of order")
                committed.append(own)

    def deposed(self, tail: int) -> None:
        """A leader went (killed or stepped down) with so many entries that it had not seen committed."""
        if tail:
            self.reached["leader lost with a tail"] += 1

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            self.violations.append(what)
            raise SafetyViolation(what)


@contextmanager
def observed(oracle: Oracle, core_type: type[RaftCore] = RaftCore) -> Iterator[None]:
    """Within the block, groups start cores of this type, and the oracle sees what they do."""

    class Observed(core_type):  # type: ignore[valid-type,misc]  # a parameter as a base class
        def ready(self) -> Ready:
            ready: Ready = super().ready()
            oracle.saw(self, getattr(self.log.view, "lineage", 0), ready)
            return ready

        def _stop_leading(self, *, deposed: bool) -> None:
            oracle.deposed(self.log.last.index - self.commit)
            super()._stop_leading(deposed=deposed)

    module = vars(raft.group)
    saved = module["RaftCore"]
    module["RaftCore"] = Observed
    try:
        yield
    finally:
        module["RaftCore"] = saved
