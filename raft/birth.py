"""What must be settled before a replica may have a core: whose store it is, that it belongs to a group, how it voted.

- A fresh store draws its uuid; a known one must be this cluster's and group's (`WrongStore`).
- *Unformed*: the log is empty. `Formation` decides who writes entry 1; everyone else adopts it. A store that had a core
  before and comes with an empty log has lost what it acknowledged: it joins as *suspect*.
- *Amnesiac*: there is a log, but the hard state is lost, so nobody knows what was voted. It is rebuilt when every other
  voter has told its term since this start: any candidate that this replica may have voted for had made that term
  durable before it asked, and it is one of the voters. Above the highest of these terms no vote of ours can exist.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import trio

from raft.codec import take_int
from raft.core.types import EntryLike, Membership, NodeId
from raft.formation import Formation, Introduction
from raft.frames import CodecError
from raft.hard_state import SPENT_VOTE, HardStateFile, StateVerdict, StoredState
from raft.members import GroupMembers, GroupSettings
from raft.storage import LogStorage
from raft.welcome import BEGIN

__all__ = ["Birth", "WrongStore"]

log = logging.getLogger(__name__)

FORMING_TERM: Final = 1
WAITING_FIRST_S: Final = 1.0
WAITING_LOG_S: Final = 10.0


class WrongStore(Exception):
    """The store under this path belongs to another cluster or group: the operator acts."""


class Birth:
    """See the module's docstring. Only the group's loop calls what is async."""

    def __init__(
        self,
        settings: GroupSettings,
        storage: LogStorage,
        hard: HardStateFile,
        members: GroupMembers,
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._hard = hard
        self._members = members
        self._rng = rng
        self._formation: Formation | None = None
        self._offered: deque[tuple[NodeId, Sequence[EntryLike], Membership]] = deque()
        self._refused = ""
        self._next_waiting_log = 0.0

    async def identify(self) -> None:
        """Whose store is this? Raises WrongStore, OSError."""
        settings, state = self._settings, self._hard.state
        if self._hard.verdict is StateVerdict.FRESH:
            uuid = f"{self._rng.getrandbits(128):032x}"
            await self._hard.save(StoredState(store_uuid=uuid, cluster=settings.cluster, group=settings.group))
        elif self._hard.verdict is StateVerdict.FOUND:
            for field, ours, theirs in (
                ("cluster", settings.cluster, state.cluster),
                ("group", settings.group, state.group),
            ):
                if ours != theirs:
                    raise WrongStore(f"this store belongs to {field} {theirs!r}, the configuration says {ours!r}")
        if not self._storage.formed:
            self._formation = Formation(self.introduction(), settings.peers)

    def introduction(self) -> Introduction:
        """What this replica says of itself."""
        state, settings = self._hard.state, self._settings
        uuid = state.store_uuid
        if self._hard.verdict is StateVerdict.DAMAGED:  # the log is this replica's own, and says which store it was
            own = self._members.own
            uuid = own.uuid if own is not None else ""
        return Introduction(
            settings.node_id,
            uuid,
            settings.client_address,
            self._storage.lineage,
            state.term,
            members=self._members.index,
        )

    @property
    def waiting_for(self) -> str:
        """What keeps this replica from having a core; "" nothing."""
        if self._formation is not None:
            return "all peers (the group is not formed yet)"
        if self._hard.verdict is StateVerdict.DAMAGED:
            return "all voters (the hard state is lost: votes given before must not be repeated)"
        return ""

    # what peers say

    def hello(self, peer: Introduction) -> None:
        """A member introduced itself."""
        if self._formation is not None:
            self._formation.hello(peer)

    def lost(self, node: NodeId) -> None:
        """The link to a member is down."""
        if self._formation is not None:
            self._formation.lost(node)

    def offered(self, sender: NodeId, fields: Sequence[Any], body: memoryview) -> None:
        """A formed member hands over entry 1, and who belongs to the group now. Raises CodecError."""
        if len(fields) != 3 or take_int(fields[1], 1) != BEGIN or not isinstance(fields[2], bytes):
            raise CodecError("an offer of entry 1 is malformed")
        entries = self._storage.parse(body)
        if len(entries) != 1 or entries[0].index != 1:
            raise CodecError("an offer of entry 1 holds something else")
        if self._formation is not None:
            self._offered.append((sender, entries, self._storage.unpack_membership(fields[2])))

    # steps

    async def step(self, *, ticked: bool) -> bool:
        """Go on as far as possible. True: nothing keeps this replica from having a core any more. Raises OSError."""
        if self._formation is not None:
            return await self._form(self._formation, ticked)
        if self._hard.verdict is StateVerdict.DAMAGED:
            return await self._remember(ticked)
        return True

    async def _form(self, formation: Formation, ticked: bool) -> bool:
        while self._offered:
            sender, entries, newest = self._offered.popleft()
            joins = self._settings.joins
            refusal = None if joins else formation.refusal(newest)
            if refusal is None:
                founder = joins or formation.refusal(self._storage.maker.read_membership(entries[0])) is None
                await self._become_formed(newest, entries, founder=founder)
                return True
            self._complain(f"the group that {sender} belongs to does not list this store: {refusal}")
        own = formation.membership() if self._settings.founds() else None
        if own is not None:
            await self._become_formed(own, None, founder=True)
            return True
        if ticked:
            self._say_waiting(formation.missing)
        return False

    async def _become_formed(self, membership: Membership, first: Sequence[EntryLike] | None, *, founder: bool) -> None:
        # The hard state first: a formed log must not meet one that could vote in term 1 again, or that trusts a log
        # which this store has lost. Whoever joins later is suspect until it holds what is committed: by the log that it
        # begins with it would be a voter, or nobody.
        state = self._hard.state
        await self._hard.save(
            replace(
                state,
                term=max(state.term, FORMING_TERM),
                vote=state.vote or SPENT_VOTE,
                suspect=state.suspect or state.starts > 0 or not founder,
            )
        )
        lineage = 0 if first is not None else self._rng.getrandbits(63) | 1
        await self._storage.form(lineage, membership, first)
        self._formation = None
        log.info(
            "group formed" if first is None else "joined the group",
            extra={
                "group": self._settings.group,
                "node": self._settings.node_id,
                "lineage": f"{self._storage.lineage:08x}",
                "voters": ",".join(membership.voter_ids),
            },
        )

    async def _remember(self, ticked: bool) -> bool:
        said = self._members.introductions
        missing = [member.id for member in self._members.others if member.id not in said]
        if missing:
            if ticked:
                self._say_waiting(missing)
            return False
        own = self._members.own
        term = 1 + max([self._storage.last.term, *(said[member.id].term for member in self._members.others)])
        await self._hard.save(
            StoredState(
                term=term,
                vote=SPENT_VOTE,
                starts=term << 24,  # above any earlier life's: each such rebuilding raises the term
                suspect=True,
                store_uuid=own.uuid if own is not None else "",
                cluster=self._settings.cluster,
                group=self._settings.group,
            )
        )
        log.warning("hard state rebuilt from the peers' terms", extra={"group": self._settings.group, "term": term})
        return True

    def _say_waiting(self, missing: Sequence[NodeId]) -> None:
        now = trio.current_time()
        if now >= self._next_waiting_log and missing:
            if self._next_waiting_log:
                log.info("waiting for peers", extra={"group": self._settings.group, "missing": ",".join(missing)})
            self._next_waiting_log = now + (WAITING_LOG_S if self._next_waiting_log else WAITING_FIRST_S)

    def _complain(self, what: str) -> None:
        if what == self._refused:
            return
        self._refused = what
        log.error(what, extra={"group": self._settings.group, "node": self._settings.node_id})
