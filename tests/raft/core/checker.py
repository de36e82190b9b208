"""The oracle: safety invariants S1 to S12, S19 checked from outside, on what leaves the replicas and what is on their
disks.

It does not trust the core's own assertions; planted bugs switch those off and must be found here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raft.core import (
    AppendReply,
    AppendRequest,
    EntryId,
    EntryLike,
    Health,
    Message,
    RaftCore,
    Role,
    VoteReply,
    VoteRequest,
)
from tests.raft.core.model import Disk

__all__ = ["Checker", "Violation"]


class Violation(AssertionError):
    """A safety invariant was broken; the text begins with its number."""


class Checker:
    """Knows everything that was ever promised in one cluster."""

    def __init__(self) -> None:
        self.leaders: dict[int, str] = {}
        self.grants: dict[tuple[str, int], str] = {}
        self.entries: dict[tuple[int, int], int] = {}
        self.committed: list[EntryId] = []
        """Committed entries by index - 1, as the first replica to know reported them."""
        self.said: dict[tuple[int, int], int] = {}
        """(term of the leader, index) -> CRC in that leader's log."""
        self.commits: dict[str, int] = {}
        """Per running replica: its commit index."""
        self.barriers: dict[tuple[str, int], int] = {}
        """Barriers under way -> what had been committed when they were asked for."""

    def started(self, node: str, core: RaftCore) -> None:
        self.commits[node] = core.commit

    def sent(self, node: str, message: Message, disk: Disk, core: RaftCore) -> None:
        """A message leaves `node` now."""
        if isinstance(message, VoteReply) and message.granted and not message.pre:
            self._vote(node, message.term, message.to, disk)
            self._require(core.health in (Health.OK, Health.FULL), "S19", f"{node} votes while {core.health.name}")
        elif isinstance(message, VoteRequest) and not message.pre:
            self._vote(node, message.term, node, disk)
            last = message.last
            self._require(disk.holds(last.index, last.crc), "S3", f"{node} advertises {last} that is not durable")
        elif isinstance(message, AppendReply) and message.rejected < 0:
            self._ack(node, message, disk)
        elif isinstance(message, AppendRequest):
            self.said[message.term, message.prev.index] = message.prev.crc
            for entry in message.entries:
                self.said[message.term, entry.index] = entry.crc
                self.entry(node, entry)

    def _vote(self, node: str, term: int, candidate: str, disk: Disk) -> None:
        known = self.grants.setdefault((node, term), candidate)
        self._require(known == candidate, "S2", f"{node} voted for {known} and {candidate} in term {term}")
        hard = disk.hard
        durable = hard.term > term or (hard.term == term and hard.vote == candidate)
        self._require(durable, "S3", f"{node}: vote for {candidate} in term {term} leaves, the disk says {hard}")

    def _ack(self, node: str, reply: AppendReply, disk: Disk) -> None:
        self._require(disk.hard.term >= reply.term, "S3", f"{node} acknowledges in term {reply.term}: {disk.hard}")
        if reply.health not in (Health.OK, Health.FULL):
            return
        crc = self.said.get((reply.term, reply.match))
        if crc is None and reply.match <= len(self.committed):
            crc = self.committed[reply.match - 1].crc if reply.match else 0
        self._require(crc is not None, "S11", f"{node} acknowledges {reply.match}, unknown in term {reply.term}")
        assert crc is not None
        self._require(disk.holds(reply.match, crc), "S11", f"{node} acknowledges {reply.match}, which is not durable")

    def entry(self, node: str, entry: EntryLike) -> None:
        """An entry exists somewhere."""
        crc = self.entries.setdefault((entry.index, entry.term), entry.crc)
        self._require(crc == entry.crc, "S4", f"{node}: two entries {entry.index} of term {entry.term}")

    def leads(self, node: str, core: RaftCore) -> None:
        """A replica became leader of its term."""
        other = self.leaders.setdefault(core.term, node)
        self._require(other == node, "S1", f"{other} and {node} both lead term {core.term}")
        for known in self.committed[max(0, core.log.first_index - 1) :]:
            own = core.entry_id(known.index)
            self._require(own == known, "S6", f"leader {node} of term {core.term} holds {own}, committed was {known}")

    def commits_to(self, node: str, core: RaftCore, first: int, last: int, disks: Mapping[str, Disk]) -> None:
        """A replica reports (first..last) as committed."""
        before = self.commits[node]
        self._require(first == before + 1, "S10", f"{node}: commit goes from {before} to {first}")
        self.commits[node] = last
        for index in range(first, last + 1):
            own = core.entry_id(index)
            if own is None:
                continue  # below what is still stored
            if index <= len(self.committed):
                known = self.committed[index - 1]
                self._require(own == known, "S7", f"{node} commits {own}, another replica committed {known}")
            else:
                self._require(index == len(self.committed) + 1, "S7", f"{node} commits {index} out of order")
                self.committed.append(own)
        if core.role == Role.LEADER and last == core.commit:
            own = core.entry_id(last)
            self._require(own is not None and own.term == core.term, "S8", f"{node} counted onto {own} in {core.term}")
            assert own is not None
            assert core.membership is not None
            self._durable_majority(own, core.membership.voter_ids, disks)

    def asked(self, node: str, token: int) -> None:
        """A barrier was asked for."""
        self.barriers[node, token] = len(self.committed)

    def granted(self, node: str, token: int, index: int | None) -> None:
        """It ended: reading at `index` must show everything that was acknowledged before it was asked for."""
        least = self.barriers.pop((node, token))
        self._require(index is None or index >= least, "R1", f"{node}: read point {index}, but {least} was committed")

    def _durable_majority(self, entry: EntryId, voters: Iterable[str], disks: Mapping[str, Disk]) -> None:
        voters = tuple(voters)
        # What rot took away after it was acknowledged did count; whoever lost it is suspect until it is back.
        holding = [v for v in voters if disks[v].holds(entry.index, entry.crc) or entry.crc in disks[v].rotted]
        enough = len(holding) * 2 > len(voters)
        self._require(enough, "S11", f"{entry} committed, but durable only on {holding} of {voters}")

    def same_logs(self, cores: Mapping[str, RaftCore]) -> None:
        """S4 at rest: replicas with an entry of equal (index, term) have equal CRCs there, hence equal prefixes."""
        for node, core in cores.items():
            low = max(1, core.log.first_index)
            for index in range(low, core.last.index + 1):
                own = core.entry_id(index)
                assert own is not None
                self._require(self.entries.get((index, own.term)) == own.crc, "S4", f"{node}: {own} is foreign")

    def _require(self, holds: bool, invariant: str, what: str) -> None:
        if not holds:
            raise Violation(f"{invariant}: {what}")
