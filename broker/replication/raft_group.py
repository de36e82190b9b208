"""The replicated strategies: a group's core and driver (package `raft`) behind the `Replicator` interface.

Consensus is `raft`'s, what a master-slave group decides otherwise is `ha`'s. What a broker needs around it is in
objects of their own, one per replica. This one says what others see, passes on what they ask, and runs the group:

- `raft_opening` opens log, vote and listener; `turns` is what is done in the turns of the group's loop.
- `standing` tells who leads; `leading` is a term from elected to ready, `hand_over` its end by intent, `settling` what
  became of its entries.
- `barriers` are read points; `member_changes` and `ha.move` the membership entries that somebody asked for.
- `store_watch`, `mending` and `ha.rewind` care for the store. Damage in the log stops the core (no votes, no
  acknowledgements), not the replica: the missing entries are fetched from peers, then a new core starts.

**Failure domain**: a broken invariant, a bug, or a disk that failed for good ends `run` of this group only, with
GroupFailed. Its waiters hear UNKNOWN; whoever runs it opens the store anew, with verification.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import trio

from broker.replication.base import (
    ChangeRefused,
    GroupFailed,
    LeaderHint,
    MembershipChange,
    NotLeader,
    ReopenPlanned,
    Replicas,
    ReplicaStatus,
    RoleEvent,
    Verdict,
)
from broker.replication.forward import Forwarder
from broker.replication.ha.move import StrategyMoves
from broker.replication.ha.promotion import Promotion, promote
from broker.replication.ha.rules import RAFT, detail_of
from broker.replication.member_changes import MemberChanges
from broker.replication.raft_config import GroupConfig, Peer
from broker.replication.raft_opening import open_group
from broker.replication.raft_status import group_replicas, replica_status
from broker.replication.store_view import ReplicatedStore
from broker.replication.trusting import trust_log
from broker.replication.turns import GroupTurns
from raft.core import RaftCore
from raft.core.types import Member
from raft.group import RaftGroup
from raft.node import RaftNode

if TYPE_CHECKING:
    from broker.replication.base import EntrySource
    from broker.store.fs import FileSystem

__all__ = ["GroupConfig", "Peer", "RaftReplicator"]

log = logging.getLogger(__name__)


class RaftReplicator:
    """`Replicator` of a Raft group, and its forwarder's host."""

    def __init__(
        self,
        node: RaftNode,
        store: ReplicatedStore,
        source: EntrySource,
        config: GroupConfig,
        fs: FileSystem,
        rng: random.Random,
    ) -> None:
        self.node_id = config.node_id
        self.config = config
        self.forwarder = Forwarder(self)
        self.failed = trio.Event()
        """Set when this group stopped because of a broken invariant or a bug."""
        self.may_found = config.strategy == RAFT
        """Master-slave: whether an empty store may found the group is found out by whoever can ask the others."""
        self._node = node
        self._store = store
        self._source = source
        self._fs = fs
        self._rng = rng
        self._failure = ""
        self._turns = turns = GroupTurns(config, store, source, self.forwarder, fs, rng)
        self._standing = turns.standing
        self._leading = turns.leading
        self._settling = turns.settling
        self._master = turns.master
        self._moved = turns.moved
        self._changes = MemberChanges(self._leading, self._moved, turns.place)
        self._moves = StrategyMoves(config.ha, self._leading, self._moved, turns.place, lambda: self._settling.commit)
        source.attach(self)

    # what others see

    @property
    def strategy(self) -> str:
        """What the newest membership entry says; before there is one, the configuration."""
        core = self._core
        return detail_of(core.membership).strategy if core is not None and core.membership else self.config.strategy

    @property
    def in_sync(self) -> tuple[str, ...]:
        """On a master: the replicas in sync, itself included."""
        return self._master.in_sync if not self._turns.plain else ()

    @property
    def role(self) -> RoleEvent:
        return self._standing.present

    @property
    def is_ready(self) -> bool:
        return self._leading.ready

    @property
    def admitting(self) -> bool:
        core = self._core
        return self._leading.admitting and not self._turns.draining and core is not None and not core.transferring

    @property
    def leads(self) -> bool:
        """Leader, perhaps not admitting yet (`ForwardHost`)."""
        return self._turns.leads

    @property
    def gone(self) -> bool:
        """Removed from the group (`ForwardHost`): no leader will speak to this replica, nothing can be forwarded."""
        return self._turns.gone

    @property
    def has_room(self) -> bool:
        core = self._core
        if core is None or self._turns.draining or not (self._master.takes or self._turns.plain):
            return False
        return self._settling.has_room(core)

    @property
    def serves_reads(self) -> bool:
        core = self._core
        if core is None:
            return self._turns.plain or (self._turns.had_core and not self._turns.rewinding.begun)
        if self.leads or self._turns.plain:
            return True
        # The next master's first entry names it, so behind that one stands nothing that was given up.
        return detail_of(core.membership).master != self.node_id

    @property
    def shortage(self) -> str:
        return "" if self._turns.plain else self._master.shortage

    @property
    def leader(self) -> LeaderHint:
        return self._standing.hint

    @property
    def replicas(self) -> Replicas:
        return group_replicas(self._group, self.config, strategy=self.strategy, in_sync=self.in_sync)

    @property
    def _group(self) -> RaftGroup | None:
        return self._turns.group

    @property
    def _core(self) -> RaftCore | None:
        return self._turns.core

    def visible(self) -> int:
        return self._settling.visible

    def subscribe(self) -> AsyncIterator[RoleEvent]:
        return self._standing.subscribe()

    def status(self) -> ReplicaStatus:
        return replica_status(
            group=self._group,
            store=self._store,
            node_id=self.node_id,
            present=self._standing.present,
            leader=self.leader,
            commit=self._settling.commit,
            visible=self.visible(),
            failure=self._failure,
            strategy=self.strategy,
        )

    # what callers ask

    def wake(self) -> None:
        if self._group is not None:
            self._group.wake()

    async def room(self) -> None:
        while True:
            if not self.admitting:
                raise NotLeader(self.leader)
            if self.has_room:
                break
            await self._moved.wait()
        await trio.lowlevel.checkpoint()

    async def barrier(self) -> int:
        if not self._leading.ready or self._group is None:
            raise NotLeader(self.leader)
        index = await self._turns.barriers.wait(self._group)
        if index is None:
            raise NotLeader(self.leader)
        await self._store.wait_dispatched(index)
        return self._store.dispatched_end

    async def transfer(self, target: str | None = None) -> None:
        group = self._group
        if group is None or not self.leads:
            raise NotLeader(self.leader)
        await self._turns.hand_over.transfer(group, target, self.leader)

    async def change(self, change: MembershipChange) -> None:
        if self._group is None or not self.leads:
            raise NotLeader(self.leader)
        if not self._turns.plain:
            raise ChangeRefused(f"the group is under {self.strategy}: its slaves join by themselves when they start")
        await self._changes.make(self._group, change, self.leader)

    async def drain(self) -> None:
        """Stop admitting, wait until everything taken is settled, then hand over if somebody can lead."""
        self._turns.draining = True
        while self._leading.admitting and (self._settling.unsettled or self._source.has_work()):
            await self._moved.wait()
        if self._group is not None and self.leads and self._turns.plain and len(self.replicas.voters) > 1:
            await self._turns.hand_over.leave(self._group, self.leader)
        await trio.lowlevel.checkpoint()

    # running

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. `started()` when the peer listener is bound; ready comes as a role event.

        Raises before `started` what keeps the replica from taking part (OSError, WrongStore), afterwards GroupFailed:
        the group is over in this process, its waiters have their answers, and the store has to be opened anew.
        """
        started = False

        def note_started() -> None:
            nonlocal started
            started = True
            task_status.started()

        try:
            await self._run(note_started)
        except Exception as error:
            if not started:
                raise
            planned = _cause(error)
            if isinstance(planned, ReopenPlanned):
                log.info("group stops to be opened anew", extra={"group": self.config.group, "reason": str(planned)})
                self._failure = str(planned)
                raise planned from None
            self._fail(error)
            if self._store.failure is not None and self._store.log.fault is None:
                raise self._store.failure from error  # whoever opens the store again has to know this one
            raise GroupFailed(self._failure) from error
        finally:
            self._turns.stop(Verdict.UNKNOWN)

    async def _run(self, started: Callable[[], None]) -> None:
        turns = self._turns
        opened = open_group(
            self._node,
            self._store,
            self._fs,
            self.config,
            turns.rules,
            turns.trust,
            turns,
            self._rng,
            founds=lambda: self.may_found,
            commit=lambda: self._settling.commit,
            sync=turns.wants_sync,
        )
        async with opened as (group, mending):
            try:
                async with trio.open_nursery() as nursery:
                    turns.take_part(group, mending, nursery)
                    nursery.start_soon(mending.run)
                    nursery.start_soon(turns.watch.flush)
                    await nursery.start(group.run)
                    nursery.start_soon(self.forwarder.run)
                    started()
            finally:
                turns.leave()

    def _fail(self, error: BaseException) -> None:
        cause = _cause(error)
        self._failure = f"{type(cause).__name__}: {cause}"
        log.error(
            "group failed; it is stopped, the process goes on",
            extra={"group": self.config.group, "node": self.node_id, "error": self._failure},
            exc_info=error,
        )
        self.failed.set()

    def _check_alive(self) -> RaftGroup:
        if self._group is None or self._failure:
            raise GroupFailed(self._failure or "the group does not run")
        return self._group

    # master-slave

    async def set_strategy(self, strategy: str, *, required: int = 0) -> int:
        """Move the group to another strategy, in place; returns the index of the entry that did it, once committed.

        Producers and consumers go on meanwhile: until the entry is committed the old and the new rule both hold.
        Raises NotLeader, MoveRefused.
        """
        group = self._check_alive()
        if not self.leads:
            raise NotLeader(self.leader)
        return await self._moves.make(group, strategy, required)

    async def promote(self, *, force: bool = False) -> Promotion:
        """Make this replica the master by an operator's word. Raises PromotionRefused."""
        return await promote(self._check_alive(), self._turns.rules, force=force)

    async def trust_log(self, *, accept_loss: bool) -> str:
        """An operator takes this suspect replica's log as it is; returns what may be lost. Raises TrustRefused."""
        lost = await trust_log(self._check_alive(), self._turns.trust, accept_loss=accept_loss)
        log.warning("the log is trusted by an operator's word", extra={"group": self.config.group, "may_lose": lost})
        return lost

    def admit_slave(self, member: Member) -> str:
        """A slave asks to join. Master only; returns the peer address to follow. Raises NotLeader, JoinRefused."""
        group = self._check_alive()
        if not self._leading.ready:
            raise NotLeader(self.leader)
        return self._master.admit(group, member, self.strategy)

    def follow(self, member: Member) -> None:
        """Connect to a member that the log does not tell of yet: the master that lets this slave join."""
        self._check_alive().members.invite(member)

    def introduction(self) -> Member:
        """How this replica asks to join."""
        group = self._check_alive()
        hello = group.hello()
        return Member(
            id=self.node_id,
            rank=self.config.ha.rank,
            address=str(group.settings.own_address),
            client_address=self.config.client_addr,
            uuid=str(hello["uuid"]),
        )

    @property
    def formed(self) -> bool:
        """Does the store belong to a group already?"""
        return self._store.log.formed

    # links (ForwardHost)

    def reachable(self, node_id: str) -> bool:
        return self._group is not None and self._group.members.connected(node_id)

    def send_app(self, node_id: str, fields: Sequence[Any], body: Sequence[bytes | memoryview]) -> bool:
        link = self._group.members.link(node_id) if self._group is not None else None
        return link is not None and link.send_data(self.config.group, fields, body, app=True)


def _cause(error: BaseException) -> BaseException:
    """The first real failure within nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
