"""What must hold inside the replicas, seen across all of them and all their lives: S1 to S22 on the real thing.

The drivers' core class is replaced by one that shows the oracle every turn: what leaves, what is to be written, what
is committed, what role there is. The oracle believes no replica that says "durable": it looks at what the simulated
disk would leave after a power cut. S1 to S12, S17, S19 and S22 are checked at every turn, S14, S15 and S20 by looking
round twice a simulated second (`look_round`) and at every message that a reader gets (`served`), S4, S7, S16 and S21
again at the end over whole logs, states and queues (`run.py`). S13 is the history checker's: unknown is not failed.
S18 (foreign lineages) has unit tests in tests/raft, and every wiped or mixed-up store here would show as S4.

It also counts the states that must be reached somewhere in a campaign: a counter at 0 means that the simulator has
gone blind.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import raft.group
from raft.core import AppendReply, EntryId, Health, RaftCore, Ready, Role, VoteReply, VoteRequest
from raft.core.types import KIND_MEMBERSHIP

if TYPE_CHECKING:
    from broker.replica import Replica
    from trimq.sim.disk import SimDisk

__all__ = ["Oracle", "SafetyViolation", "observed"]

_VOTING = (Health.OK, Health.FULL)


class SafetyViolation(AssertionError):
    """A safety invariant does not hold between replicas."""


class _Life:
    """What the oracle remembers of one core: one life of one replica."""

    def __init__(self, core: RaftCore) -> None:
        self.commit = core.commit
        self.term = core.term
        self.led_to = -1
        """Leader: the end of its log at its last turn."""
        self.acked = core.last.index if core.health in _VOTING else 0
        """Up to here this life's acknowledgements have been compared with the disk, or were durable at the start."""
        self.hard_term = -1
        self.match: dict[str, int] = {}
        self.members: list[int] = []
        """Indexes of membership entries that this life appended."""


class Oracle:
    """Knows, per log (lineage), everything that was ever promised."""

    def __init__(self) -> None:
        self.leaders: dict[tuple[int, int], str] = {}
        self.grants: dict[tuple[int, str, int], str] = {}
        self.entries: dict[tuple[int, int, int], int] = {}
        """(lineage, index, term) to header CRC, which covers position, predecessor and body."""
        self.committed: dict[int, list[EntryId]] = {}
        self._committed_in: dict[int, list[int]] = {}
        """Per lineage and entry, the term in which it was committed: perhaps a later one than its own."""
        self.reached: Counter[str] = Counter()
        self.violations: list[str] = []
        self.disk_of: Callable[[str, int], SimDisk | None] = lambda node, lineage: None
        """The disk on which a node keeps the log of a lineage."""
        self.lineage_of: Callable[[str], int] = lambda group: 0
        self.stop: Callable[[], object] = lambda: None
        """Ends the run."""
        self._lives: dict[int, tuple[RaftCore, _Life]] = {}
        self._promised: dict[tuple[int, str], int] = {}
        """(lineage, node) to the newest entry that it told somebody it has, or counted itself for as a leader."""
        self._unproved: dict[tuple[int, str], int] = {}
        """(lineage, node) to the newest entry that it acknowledged with a rotten disk."""
        self._gone: dict[tuple[int, str], int] = {}
        """The same of a disk that was taken away: an acknowledgement may have been on its way."""

    # -- one turn of one core -----------------------------------------------------------------------------------------

    def _life(self, core: RaftCore, lineage: int) -> _Life:
        known = self._lives.get(id(core))
        if known is None or known[0] is not core:
            known = self._lives[id(core)] = (core, _Life(core))  # holds the core, so that its id stays its own
            promised = self._promised.get((lineage, core.id), 0)
            self._require(
                core.last.index >= promised or core.health not in _VOTING,
                f"S19: {core.id} comes back healthy with {core.last}, but had promised {promised}",
            )
        return known[1]

    def saw(self, core: RaftCore, lineage: int, ready: Ready) -> None:
        """What a turn put out."""
        life = self._life(core, lineage)
        commit = life.commit
        self._monotone(core, life)
        if ready.role is not None and core.role is Role.LEADER:
            self._leads(core, lineage)
        for batch in ready.appends:
            if batch.truncate_to is not None:
                self.reached["entry overwritten"] += 1
                life.acked = min(life.acked, batch.truncate_to.index)
                promised = self._promised.get((lineage, core.id), 0)
                self._promised[lineage, core.id] = min(promised, batch.truncate_to.index)
                life.members = [index for index in life.members if index <= batch.truncate_to.index]
                self._require(
                    batch.truncate_to.index >= commit, f"S10: {core.id} cuts to {batch.truncate_to}, commit {commit}"
                )
            for entry in batch.entries:
                self._exists(core, lineage, entry.index, entry.term, entry.crc)
                if entry.kind == KIND_MEMBERSHIP:
                    life.members.append(entry.index)
        for message in ready.send:
            kind = type(message)
            if kind is VoteReply:
                self._vote_reply(core, lineage, message)  # type: ignore[arg-type]
            elif kind is VoteRequest:
                self._vote_request(core, lineage, message)  # type: ignore[arg-type]
            elif kind is AppendReply:
                self._ack(core, life, lineage, message)  # type: ignore[arg-type]
        if ready.committed is not None:
            self._commits(core, life, lineage, *ready.committed, elected=ready.role is not None)
        if core.role is Role.LEADER:
            self._leader_state(core, life)
            self._promised[lineage, core.id] = max(self._promised.get((lineage, core.id), 0), core.durable)
        if ready.transfer is not None:
            self.reached["transfer done" if ready.transfer.done else "transfer aborted"] += 1
        if ready.installs:
            self.reached["install needed"] += 1
        if any(grant.index is None for grant in ready.reads):
            self.reached["barrier lost"] += 1

    def _monotone(self, core: RaftCore, life: _Life) -> None:
        self._require(core.term >= life.term, f"S2: {core.id} goes from term {life.term} to {core.term}")
        self._require(core.commit >= life.commit, f"S10: {core.id} commits {core.commit} after {life.commit}")
        self._require(core.commit <= core.last.index, f"S9: {core.id} commits {core.commit} of {core.last}")
        if core.term > life.term:
            life.match, life.led_to, life.hard_term = {}, -1, -1
        life.term = core.term
        life.commit = core.commit

    def _exists(self, core: RaftCore, lineage: int, index: int, term: int, crc: int) -> None:
        known = self.entries.setdefault((lineage, index, term), crc)
        self._require(known == crc, f"S4: {core.id} has another entry {index} of term {term}")

    def _vote_reply(self, core: RaftCore, lineage: int, message: VoteReply) -> None:
        if not message.granted or message.pre:
            return
        known = self.grants.setdefault((lineage, core.id, message.term), message.to)
        self._require(known == message.to, f"S2: {core.id} voted for {known} and {message.to} in term {message.term}")
        self._require(core.health in _VOTING, f"S19: {core.id} votes while {core.health.name}")
        self._voted(core, lineage, message.term, message.to)

    def _vote_request(self, core: RaftCore, lineage: int, message: VoteRequest) -> None:
        if message.pre:
            return
        known = self.grants.setdefault((lineage, core.id, message.term), core.id)
        self._require(known == core.id, f"S2: {core.id} voted for {known} and stands in term {message.term}")
        self._require(core.health in _VOTING, f"S19: {core.id} stands while {core.health.name}")
        self._voted(core, lineage, message.term, core.id)
        disk = self.disk_of(core.id, lineage)
        before = core.entry_id(message.last.index - 1)
        if (
            disk is not None
            and not disk.rotted
            and before is not None
            and core.entry_id(message.last.index) == message.last
        ):
            held = disk.holds(before.end, message.last.end, message.last.crc)
            self._require(held, f"S3: {core.id} advertises {message.last}, which is not durable")

    def _voted(self, core: RaftCore, lineage: int, term: int, candidate: str) -> None:
        disk = self.disk_of(core.id, lineage)
        if disk is None:
            return
        hard = disk.hard_state()
        durable = hard.term > term or (hard.term == term and hard.vote == candidate)
        self._require(durable, f"S3: vote of {core.id} for {candidate} in term {term} leaves, its disk says {hard}")

    def _ack(self, core: RaftCore, life: _Life, lineage: int, reply: AppendReply) -> None:
        if reply.rejected >= 0 or reply.health not in _VOTING:
            return
        disk = self.disk_of(core.id, lineage)
        if disk is None:
            return
        if life.hard_term < reply.term:
            life.hard_term = disk.hard_state().term
            self._require(
                life.hard_term >= reply.term, f"S3: {core.id} acknowledges in {reply.term}, its disk says less"
            )
        if disk.rotted:  # what it holds proves nothing
            self._unproved[lineage, core.id] = max(self._unproved.get((lineage, core.id), 0), reply.match)
            return
        if reply.match <= life.acked:
            return
        before, entry = core.entry_id(life.acked), core.entry_id(reply.match)
        if before is None or entry is None:
            return
        self._require(reply.match <= core.durable, f"S11: {core.id} acknowledges {reply.match}, durable {core.durable}")
        self._require(
            disk.holds_bytes(before.end, entry.end),
            f"S11: {core.id} acknowledges {entry}, which is not all on its disk",
        )
        life.acked = reply.match
        self._promised[lineage, core.id] = max(self._promised.get((lineage, core.id), 0), reply.match)

    def _leads(self, core: RaftCore, lineage: int) -> None:
        other = self.leaders.setdefault((lineage, core.term), core.id)
        self._require(other == core.id, f"S1: {other} and {core.id} both lead term {core.term}")
        self._require(core.health in _VOTING, f"S19: {core.id} leads while {core.health.name}")
        committed = self.committed.get(lineage, [])
        # A late winner of an old term does not have what a later leader committed meanwhile, entries of earlier terms
        # among it, and can commit nothing.
        earlier = bisect_left(self._committed_in.get(lineage, []), core.term)
        if earlier:  # equal header CRCs at an index mean equal prefixes, so the newest is enough
            known = committed[earlier - 1]
            own = core.entry_id(known.index)
            self._require(own == known, f"S6: leader {core.id} of term {core.term} holds {own}, committed was {known}")
        self.reached["elected"] += 1

    def _leader_state(self, core: RaftCore, life: _Life) -> None:
        self._require(core.last.index >= life.led_to, f"S5: leader {core.id} cut its log to {core.last}")
        life.led_to = core.last.index
        for peer in core.peers.values():
            self._require(peer.match < peer.next, f"S22: match {peer.match}, next {peer.next} of {peer.id}")
            before = life.match.get(peer.id, 0)
            if peer.match < before:
                self._require(peer.match == 0, f"S22: match of {peer.id} falls from {before} to {peer.match}")
                self.reached["peer came back with less"] += 1
            life.match[peer.id] = peer.match
        if life.members:
            life.members = [index for index in life.members if index > core.commit]
            self._require(len(life.members) <= 1, f"S17: membership entries {life.members} are all uncommitted")

    def _commits(self, core: RaftCore, life: _Life, lineage: int, first: int, last: int, *, elected: bool) -> None:
        committed = self.committed.setdefault(lineage, [])
        committed_in = self._committed_in.setdefault(lineage, [])
        if not committed and first > 1:  # entry 1 is committed when the group is formed
            for index in range(1, first):
                known = core.entry_id(index)
                assert known is not None
                committed.append(known)
                committed_in.append(core.term)
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
                committed_in.append(max(committed_in[-1] if committed_in else 0, core.term))
                if index == last:
                    self._majority_holds(core, lineage, own)
        if core.role is Role.LEADER and not elected and last == core.commit:
            own = core.entry_id(last)
            self._require(
                own is not None and own.term == core.term, f"S8: leader {core.id} of {core.term} counts onto {own}"
            )

    def _majority_holds(self, core: RaftCore, lineage: int, entry: EntryId) -> None:
        """S11: what is newly committed is on a majority's disks."""
        before, members = core.entry_id(entry.index - 1), core.membership
        if before is None or members is None:
            return
        disks = {node: self.disk_of(node, lineage) for node in members.voter_ids}
        holding = sum(
            (d is not None and (d.rotted or d.holds(before.end, entry.end, entry.crc)))
            or entry.index <= self._gone.get((lineage, node), 0)
            for node, d in disks.items()
        )
        self._require(
            holding * 2 > len(disks), f"S11: {entry} committed by {core.id}, durable on {holding} of {len(disks)}"
        )

    # -- looking round ------------------------------------------------------------------------------------------------

    def look_round(self, replica: Replica, core: RaftCore | None) -> None:
        """S14, S20: the marks of one replica, whenever."""
        store, status = replica.store, replica.replicator.status()
        name = f"{replica.config.self_id}/{replica.config.broker_name}"
        known = len(self.committed.get(store.log.lineage, ()))
        self._require(
            store.dispatched <= max(known, 1), f"S14: {name} dispatched {store.dispatched}, committed is {known}"
        )
        if core is not None:
            self._require(
                store.dispatched <= core.commit, f"S14: {name} dispatched {store.dispatched} of {core.commit}"
            )
        first = store.log.first_index
        if first > 1:
            newest = store.snapshots[0] if store.snapshots else 0
            self._require(first - 1 <= newest, f"S20: {name} begins at {first}, its newest snapshot is at {newest}")
        if status.ready:
            self.reached["ready"] += 1

    def served(self, group: str, position: int, who: str) -> None:
        """S14: a reader got what stands at a log position."""
        committed = self.committed.get(self.lineage_of(group))
        end = committed[-1].end if committed else 0
        self._require(position < end, f"S14: {who} got position {position} of {group}, committed is up to {end}")

    def acknowledged(self, group: str, position: int, what: str) -> None:
        """S12: a producer was told OK for what stands at a log position."""
        committed = self.committed.get(self.lineage_of(group))
        end = committed[-1].end if committed else 0
        self._require(position < end, f"S12: {what} acknowledged at position {position}, committed is up to {end}")

    def wiped(self, node: str) -> None:
        """The node has a new, empty disk: another replica under an old name."""
        for told in (self._promised, self._unproved):
            for key in [key for key in told if key[1] == node]:
                self._gone[key] = max(self._gone.get(key, 0), told.pop(key))
        self.grants = {key: to for key, to in self.grants.items() if key[1] != node}

    def deposed(self, tail: int) -> None:
        """A leader went (killed or stepped down) with so many entries that it had not seen committed."""
        if tail:
            self.reached["leader lost with a tail"] += 1

    def note(self, what: str) -> None:
        """A violation that was found; the run ends."""
        self.violations.append(what)
        self.stop()

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            self.note(what)
            raise SafetyViolation(what)


@contextmanager
def observed(oracle: Oracle, core_type: type[RaftCore] = RaftCore) -> Iterator[None]:
    """Within the block, groups start cores of this type, and the oracle sees what they do."""

    class Observed(core_type):  # type: ignore[valid-type,misc]  # a parameter as a base class
        def ready(self) -> Ready:
            ready: Ready = super().ready()
            if ready:
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
