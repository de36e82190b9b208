"""The `raft` strategy: a group's core and driver (package `raft`) behind the `Replicator` interface.

What is added here is what a broker needs around consensus:

- **Leader change** (`leading`) and **hand-over** (`hand_over`).
- **Tickets** settle in the turn in which commit passes their entry; what is overdue after 3 s is UNKNOWN.
- **Room**: admission pauses while too much is uncommitted or undispatched, so that what a new leader has to scan
  stays small.
- **Barrier**: all callers that arrive before the question leaves share one round of beats.
- **Failure domain**: a broken invariant, a bug, or a disk that failed for good ends `run` of this group only, with
  GroupFailed. Its waiters hear UNKNOWN; whoever runs it opens the store anew, with verification.
- **Damage** found in the log stops the core (no votes, no acknowledgements), not the replica: the missing entries are
  fetched from peers, then a new core starts.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import trio

from broker.replication.barriers import Barriers
from broker.replication.base import (
    NO_LEADER,
    ChangeRefused,
    GroupFailed,
    LeaderHint,
    MembershipChange,
    NotLeader,
    Outcome,
    ReopenPlanned,
    Replicas,
    ReplicaStatus,
    Replies,
    Role,
    RoleEvent,
    Verdict,
)
from broker.replication.forward import Forwarder
from broker.replication.ha.master import JoinRefused, Master
from broker.replication.ha.move import MoveRefused, moved
from broker.replication.ha.promotion import Promotion, promote
from broker.replication.ha.rewind import rewind_store
from broker.replication.ha.rules import RAFT, SYNC, GroupRules, detail_of
from broker.replication.ha.trust import nothing_lost
from broker.replication.hand_over import HandOver
from broker.replication.leading import Leading, Moved, end_of
from broker.replication.member_changes import MemberChanges
from broker.replication.membership import GroupDetail
from broker.replication.mending import Mending
from broker.replication.raft_config import GroupConfig, Peer
from broker.replication.raft_status import ROLES, replica_status
from broker.replication.raft_storage import open_raft_storage
from broker.replication.roles import RoleBoard
from broker.replication.store_view import ReplicatedStore
from broker.replication.tickets import TicketTable
from broker.replication.trusting import trust_log
from broker.store.entry import EntryId
from broker.store.errors import LogUnusable
from raft.core import RaftCore
from raft.core.errors import Refused
from raft.core.ready import InstallNeeded, RoleChange
from raft.core.types import EntryId as CoreEntryId
from raft.core.types import Member, Membership, StorageFault
from raft.core.types import Role as CoreRole
from raft.group import GroupSettings, RaftGroup, WrongStore
from raft.hard_state import HardStateFile
from raft.node import RaftNode

if TYPE_CHECKING:
    from broker.replication.base import EntrySource
    from broker.store.commit_log import LogFault
    from broker.store.fs import FileSystem

__all__ = ["GroupConfig", "Peer", "RaftReplicator"]

log = logging.getLogger(__name__)

LOCAL = "local"
HARD_STATE_PATH = "hard-state"
UNCOMMITTED_MAX_BYTES = 16 << 20
UNDISPATCHED_MAX_BYTES = 8 << 20
TICKET_DEADLINE_S = 3.0
SWEEP_S = 0.05
FLUSH_INTERVAL_S = 0.5
IMPAIRED_S = 5.0
"""How long a replica whose disk failed goes on serving before its store is opened anew."""


class RaftReplicator:
    """`Replicator` of a Raft group. Also the group's host and its forwarder's host."""

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
        self._node = node
        self._store = store
        self._log = store.log
        self._source = source
        self._fs = fs
        self._rng = rng
        self._board = RoleBoard()
        self._tickets = TicketTable()
        self._group: RaftGroup | None = None
        self._nursery: trio.Nursery | None = None
        self._commit = 0
        self._commit_end = 0
        self._draining = False
        self._hint = NO_LEADER
        self._failure = ""
        self._barriers = Barriers()
        self._next_sweep = 0.0
        self._moved = Moved()
        self._leading = Leading(self, store, source, self._moved)
        self._mending: Mending | None = None
        self._failed_since = math.inf
        self._rewinding = False
        self._had_core = False
        self._changes = MemberChanges(self._leading, self._moved, self._place)
        self._hand_over = HandOver(config.group, source, self._leading, self._moved, rng)
        self.rules = GroupRules()
        self.rules.unsafe_flush = config.unsafe_async_flush
        self.may_found = config.strategy == RAFT
        """Master-slave: whether an empty store may found the group is found out by whoever can ask the others."""
        self._master = Master(config.ha, self.rules, config.group, self._place)
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
        return self._master.in_sync if not self._plain else ()

    @property
    def _plain(self) -> bool:
        """Raft's rules alone are in force."""
        core = self._core
        return self.rules.raft_only(core) if core is not None else self.config.strategy == RAFT

    @property
    def role(self) -> RoleEvent:
        return self._board.present

    @property
    def is_ready(self) -> bool:
        return self._leading.ready

    @property
    def admitting(self) -> bool:
        core = self._core
        return self._leading.admitting and not self._draining and core is not None and not core.transferring

    @property
    def leads(self) -> bool:
        """Leader, perhaps not admitting yet (`ForwardHost`)."""
        return self._leading.term != 0

    @property
    def gone(self) -> bool:
        """Removed from the group (`ForwardHost`): no leader will speak to this replica, nothing can be forwarded."""
        core = self._core
        return core is not None and self._group is not None and self._group.members.removed and not core.leader

    @property
    def has_room(self) -> bool:
        core = self._core
        if core is None or self._draining or not (self._master.takes or self._plain):
            return False
        return (
            core.last.end - self._commit_end <= UNCOMMITTED_MAX_BYTES
            and self._commit_end - self._store.dispatched_end <= UNDISPATCHED_MAX_BYTES
        )

    @property
    def serves_reads(self) -> bool:
        core = self._core
        if core is None:
            return self._plain or (self._had_core and not self._rewinding)
        if self.leads or self._plain:
            return True
        # The next master's first entry names it, so behind that one stands nothing that was given up.
        return detail_of(core.membership).master != self.node_id

    @property
    def shortage(self) -> str:
        return "" if self._plain else self._master.shortage

    @property
    def leader(self) -> LeaderHint:
        return self._hint

    @property
    def replicas(self) -> Replicas:
        group = self._group
        if group is None:
            return Replicas(tuple((member.id, "") for member in self.config.members()))
        membership = group.core.membership if group.core is not None else None
        voters = membership.voters if membership is not None else group.members.all
        learners = membership.learners if membership is not None else ()
        gone = self.node_id if group.members.removed else ""  # known from a peer: the log does not say it yet
        return Replicas(
            tuple((member.id, group.members.client_address(member.id)) for member in voters if member.id != gone),
            tuple((member.id, group.members.client_address(member.id)) for member in learners if member.id != gone),
            () if self.strategy == RAFT else self._numbers((*voters, *learners)),
            self.in_sync,
        )

    def _numbers(self, members: Sequence[Member]) -> tuple[tuple[str, int], ...]:
        numbers = {member.id: member.rank for member in members}
        numbers.setdefault(self.node_id, self.config.ha.rank)  # not listed yet
        return tuple(sorted(numbers.items()))

    @property
    def _core(self) -> RaftCore | None:
        return self._group.core if self._group is not None else None

    def visible(self) -> int:
        return min(self._commit_end, self._store.dispatched_end)

    def subscribe(self) -> AsyncIterator[RoleEvent]:
        return self._board.subscribe()

    def status(self) -> ReplicaStatus:
        return replica_status(
            group=self._group,
            store=self._store,
            node_id=self.node_id,
            present=self._board.present,
            leader=self._hint,
            commit=self._commit,
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
                raise NotLeader(self._hint)
            if self.has_room:
                break
            await self._moved.wait()
        await trio.lowlevel.checkpoint()

    async def barrier(self) -> int:
        if not self._leading.ready or self._group is None:
            raise NotLeader(self._hint)
        index = await self._barriers.wait(self._group)
        if index is None:
            raise NotLeader(self._hint)
        await self._store.wait_dispatched(index)
        return self._store.dispatched_end

    async def transfer(self, target: str | None = None) -> None:
        group = self._group
        if group is None or not self.leads:
            raise NotLeader(self._hint)
        await self._hand_over.transfer(group, target, self._hint)

    async def change(self, change: MembershipChange) -> None:
        if self._group is None or not self.leads:
            raise NotLeader(self._hint)
        if not self._plain:
            raise ChangeRefused(f"the group is under {self.strategy}: its slaves join by themselves when they start")
        await self._changes.make(self._group, change, self._hint)

    async def drain(self) -> None:
        """Stop admitting, wait until everything taken is settled, then hand over if somebody can lead."""
        self._draining = True
        while self._leading.admitting and (self._tickets or self._master.tickets or self._source.has_work()):
            await self._moved.wait()
        if self._group is not None and self.leads and self._plain and len(self.replicas.voters) > 1:
            await self._hand_over.leave(self._group, self._hint)
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
            if self._store.failure is not None and self._log.fault is None:
                raise self._store.failure from error  # whoever opens the store again has to know this one
            raise GroupFailed(self._failure) from error
        finally:
            self._stop(Verdict.UNKNOWN)

    async def _run(self, started: Any) -> None:  # Any: a plain callback
        config = self.config
        storage = await open_raft_storage(
            self._log,
            self._fs,
            GroupDetail(
                strategy=config.strategy,
                master="" if config.strategy == RAFT else config.node_id,
                required=0 if config.strategy == RAFT else config.ha.required if config.strategy == SYNC else 1,
                flush_sync=config.strategy == RAFT or config.ha.flush_sync,
                segment_bytes=config.segment_bytes,
            ),
            wall_ms=self._store.clock.wall_ms,
            committed=lambda: self._store.dispatched,
            sync=self._wants_sync,
        )
        if storage.strategy == LOCAL:
            raise WrongStore(
                f"this store was formed with replicationStrategy=local and cannot be moved to {config.strategy}"
                " in place: start it with that key again, and see docs/operations.md, section 8"
            )
        hard = await HardStateFile.open(self._fs, HARD_STATE_PATH, store_empty=not self._log.formed)
        self.rules.trusted = await nothing_lost(self._log, self._fs, config.boot_id)
        try:
            settings = GroupSettings(
                cluster=config.cluster,
                group=config.group,
                node_id=config.node_id,
                peers=config.members(),
                client_address=config.client_addr,
                listen_host=config.listen_host,
                rules=self.rules,
                founds=lambda: self.may_found,
                joins=config.strategy != RAFT,
            )
            transport = await self._node.transport(settings.own_address, settings.listen_host)
            self._group = RaftGroup(self._node, transport, settings, storage, hard, self, self._rng)
            self._mending = Mending(
                self._group, storage, hard, self._store, lambda: self._commit, self._rng.getrandbits(48)
            )
            self._log.on_fault = self._log_fault
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._mending.run)
                nursery.start_soon(self._flush)
                await nursery.start(self._group.run)
                nursery.start_soon(self.forwarder.run)
                started()
        finally:
            self._nursery = None
            self._log.on_fault = None
            with trio.CancelScope(shield=True):  # waits for the disk only
                await hard.aclose()

    def _fail(self, error: BaseException) -> None:
        cause = _cause(error)
        self._failure = f"{type(cause).__name__}: {cause}"
        log.error(
            "group failed; it is stopped, the process goes on",
            extra={"group": self.config.group, "node": self.node_id, "error": self._failure},
            exc_info=error,
        )
        self.failed.set()

    def _stop(self, verdict: Verdict) -> None:
        """The group is over in this process: answer everybody."""
        self._leading.end()
        self._hint = NO_LEADER
        replies = Replies()
        self._tickets.settle_all(Outcome(verdict), replies)
        replies.flush()
        self._master.end(NO_LEADER)
        self.forwarder.stop()
        self._barriers.lost()
        self._board.publish(RoleEvent(Role.FOLLOWER, self._board.present.term, NO_LEADER, False))
        self._moved.note()

    def _check_alive(self) -> RaftGroup:
        if self._group is None or self._failure:
            raise GroupFailed(self._failure or "the group does not run")
        return self._group

    # the group's turns (GroupHost)

    def core_started(self, core: RaftCore) -> None:
        self.rules.uuid = str(self._check_alive().hello()["uuid"])
        self._had_core = True
        self._note_commit(core, core.commit)

    def form_entries(self) -> None:
        self._form()

    def _form(self, *, all_of_it: bool = False) -> None:
        group = self._check_alive()
        taken = self._leading.form_entries(group, all_of_it=all_of_it)
        if not taken:
            return
        now = trio.current_time()
        if self._plain:
            for ticket, index, term in taken:
                self._tickets.add(ticket, index, term, now + TICKET_DEADLINE_S)
            return
        core = group.core
        assert core is not None, "a leader has a core"
        short = self.rules.short(core)
        for ticket, index, term in taken:
            self._master.tickets.add(ticket, index, term, now, short=short)

    def role_changed(self, change: RoleChange) -> None:
        group = self._check_alive()
        leads = change.role is CoreRole.LEADER
        self._hint = self._hint_to(group, change)
        if self.leads and (not leads or change.term != self._leading.term):
            self._leading.end()
            self._master.end(self._hint)
        if leads and not self.leads:
            assert self._nursery is not None, "roles change while the group runs"
            assert group.core is not None, "a leader has a core"
            self._master.begin(group, group.core, trio.current_time())
            self._leading.begin(self._nursery, group, change.term, change.noop_index)
        self._publish(change.role, change.term)
        if change.leader or self.gone:
            self.forwarder.leader_changed()

    def _hint_to(self, group: RaftGroup, change: RoleChange) -> LeaderHint:
        """Who leads; for a leader that was removed, whom it handed over to."""
        leader = change.leader
        if not leader and group.members.removed and group.core is not None:
            leader = group.core.successor
        return LeaderHint(leader, group.members.client_address(leader) if leader else "", change.term)

    def _publish(self, role: CoreRole, term: int) -> None:
        before = self._board.present
        self._board.publish(RoleEvent(ROLES[role], term, self._hint, self._leading.ready))
        present = self._board.present
        if present is not before:
            log.info(
                "role changed",
                extra={
                    "group": self.config.group,
                    "node": self.node_id,
                    "role": present.role.value,
                    "term": present.term,
                    "leader": present.leader.leader_id,
                    "ready": present.ready,
                },
            )

    def began_admitting(self) -> None:
        self.forwarder.leader_changed()

    def became_ready(self, term: int) -> None:
        self._publish(CoreRole.LEADER, term)

    def committed(self, first: int, last: int) -> None:
        core = self._check_alive().core
        assert core is not None, "commit moves in a core"
        self._note_commit(core, last)
        if self._tickets:
            replies = Replies()
            self._tickets.committed(last, self._term_at, Outcome(Verdict.OK, self._hint), replies)
            replies.flush()
        self._moved.note()

    def acknowledged(self, last: int) -> None:
        self._settle_master()

    def _settle_master(self) -> None:
        core = self._core
        if core is not None and self._master.tickets:
            self._master.settle(core, trio.current_time(), self._hint)
            self._moved.note()

    def _note_commit(self, core: RaftCore, last: int) -> None:
        entry = core.entry_id(last)
        assert entry is not None, "what is committed is in the log"
        self._commit, self._commit_end = last, entry.end
        self._allow_dispatch(core)

    def _allow_dispatch(self, core: RaftCore) -> None:
        """Up to min(commit, durable) *as the core sees it*: the file may show a tail that a queued cut is to remove."""
        allowed = min(self._commit, core.durable)
        if self._store.dispatched < allowed:
            self._store.allow(allowed)

    def _term_at(self, index: int) -> int:
        core = self._check_alive().core
        entry = core.entry_id(index) if core is not None else None
        return entry.term if entry is not None else 0

    def durable_moved(self) -> None:
        core = self._check_alive().core
        assert core is not None, "writes end in a core"
        self._allow_dispatch(core)
        self._settle_master()

    def members_changed(self, membership: Membership) -> None:
        self._moved.note()

    def ticked(self) -> None:
        now = trio.current_time()
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP_S
        self._watch_disk(now)
        self._watch_store()
        self._mender.tick(now)
        self._sweep_master(now)
        if self._leading.ready and self._plain and not self._draining and self._nursery is not None:
            self._hand_over.rebalance(self._nursery, self._check_alive(), now, self._hint)
        if self._tickets:
            replies = Replies()
            self._tickets.expire(now, Outcome(Verdict.UNKNOWN, self._hint), replies)
            replies.flush()
        self.forwarder.tick(now)
        if self._leading.admitting:
            self.forwarder.leader_changed()  # what was parked while a transfer was tried
        self._moved.note()

    # master-slave

    def _wants_sync(self) -> bool:
        core = self._core
        return self.rules.wants_sync(core) if core is not None else True

    async def _flush(self) -> None:
        """Where entries count as soon as they are written: sync them now and then."""
        while True:
            await trio.sleep(FLUSH_INTERVAL_S)
            if self._log.formed and self._log.fault is None and not self._wants_sync():
                try:
                    await self._log.sync()
                except (OSError, LogUnusable) as error:
                    log.error(
                        "the log cannot be synced", extra={"group": self.config.group, "error": str(error)}
                    )  # the log is impaired by it: the writer's next write says so

    def _sweep_master(self, now: float) -> None:
        group = self._check_alive()
        core = group.core
        if core is None or not self.leads:
            return
        if self._master.sweep(group, core, now):
            core.recount(int(now * 1000))
        self._settle_master()

    def _place(self, core: RaftCore, membership: Membership, *, allow_two: bool = True) -> int:
        """Append a membership entry; what is open goes before it, since records carry their positions.

        Returns its index. Raises what the core raises; nothing has changed then.
        """
        self._form(all_of_it=True)
        index = core.change_membership(membership, int(trio.current_time() * 1000), allow_two=allow_two)
        if self._leading.admitting:
            self._source.rebase(end_of(core))  # at once: requests that come in this very turn stand behind it
        return index

    async def set_strategy(self, strategy: str, *, required: int = 0) -> int:
        """Move the group to another strategy, in place; returns the index of the entry that did it, once committed.

        Producers and consumers go on meanwhile: until the entry is committed the old and the new rule both hold.
        Raises NotLeader, MoveRefused.
        """
        group = self._check_alive()
        if not self.leads:
            raise NotLeader(self._hint)
        placed: list[int] = []
        problem: list[Refused] = []
        asked = trio.Event()

        def ask(core: RaftCore, now_ms: int) -> None:
            try:
                placed.append(self._place(core, moved(core, strategy, self.config.ha, required)))
            except Refused as error:
                problem.append(error)
            asked.set()

        term = self._leading.term
        group.call(ask)
        await asked.wait()
        if problem:
            raise MoveRefused(str(problem[0]))
        while self._commit < placed[0]:
            await self._moved.wait()
            if self._leading.term != term:
                raise MoveRefused("leadership changed before the move was committed: look which strategy is in force")
        log.info("strategy changed", extra={"group": self.config.group, "strategy": strategy, "index": placed[0]})
        return placed[0]

    async def promote(self, *, force: bool = False) -> Promotion:
        """Make this replica the master by an operator's word. Raises PromotionRefused."""
        return await promote(self._check_alive(), self.rules, force=force)

    async def trust_log(self, *, accept_loss: bool) -> str:
        """An operator takes this suspect replica's log as it is; returns what may be lost. Raises TrustRefused."""
        lost = await trust_log(self._check_alive(), accept_loss=accept_loss)
        log.warning("the log is trusted by an operator's word", extra={"group": self.config.group, "may_lose": lost})
        return lost

    def admit_slave(self, member: Member) -> str:
        """A slave asks to join. Master only; returns the peer address to follow. Raises NotLeader, JoinRefused."""
        group = self._check_alive()
        if not self._leading.ready:
            raise NotLeader(self._hint)
        if self.strategy == RAFT:
            raise JoinRefused("the group is under raft: its members are changed with `trimq admin group`")
        there = group.members.introductions.get(member.id)
        if member.id == self.node_id or (there is not None and there.store_uuid != member.uuid):
            raise JoinRefused(f"{member.id} is here already: every replica of a group needs a brokerId of its own")
        self._master.joining[member.id] = member
        return str(group.settings.own_address)

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
        return self._log.formed

    def rewind_needed(self, to: CoreEntryId) -> None:
        if self._nursery is not None and not self._rewinding:
            self._rewinding = True
            self._nursery.start_soon(self._rewind, EntryId(to.index, to.term, to.crc, to.end))

    async def _rewind(self, to: EntryId) -> None:
        log.warning(
            "the master's log goes another way: what was acknowledged here alone is given up",
            extra={"group": self.config.group, "after": to.index, "last": self._log.last.index},
        )
        await self._check_alive().hold()
        await rewind_store(self._log, self._fs, to)
        raise ReopenPlanned(f"taken back to entry {to.index}, where the master's log goes another way; opened anew")

    def _watch_disk(self, now: float) -> None:
        """A disk that failed is final for the open log; for a while this replica still serves what is committed.

        The writer may not be the one that met it: files are made ahead in the background, and a core that starts on a
        log which has failed already never writes.
        """
        fault, reason = self._check_alive().fault
        log_fault = self._log.fault
        if fault is not StorageFault.FAILED:
            if log_fault is None or log_fault.damage is not None:
                return
            reason = log_fault.detail
        self._failed_since = min(self._failed_since, now)
        if now - self._failed_since > IMPAIRED_S:
            raise GroupFailed(f"disk error: {reason}")

    def _watch_store(self) -> None:
        """Dispatch that ended for good ends the group: the store has to be opened anew (after mending, if damaged)."""
        failure = self._store.failure
        if failure is not None and self._log.fault is None:
            raise failure

    # links (GroupHost, ForwardHost)

    def link_changed(self, node: str, *, up: bool) -> None:
        if up and self._hint.leader_id == node and self._group is not None:
            addr = self._group.members.client_address(node)
            if addr != self._hint.addr:
                self._hint = LeaderHint(node, addr, self._hint.term)
                present = self._board.present
                self._board.publish(RoleEvent(present.role, present.term, self._hint, present.ready))
        if not up:
            self._mender.link_lost(node)
        self.forwarder.link_changed(node, up=up)

    def app_frame(self, node: str, fields: Sequence[Any], body: memoryview) -> None:
        self.forwarder.on_frame(node, fields, body)

    def reachable(self, node_id: str) -> bool:
        return self._group is not None and self._group.members.connected(node_id)

    def send_app(self, node_id: str, fields: Sequence[Any], body: Sequence[bytes | memoryview]) -> bool:
        link = self._group.members.link(node_id) if self._group is not None else None
        return link is not None and link.send_data(self.config.group, fields, body, app=True)

    # damage and installation (GroupHost)

    def _log_fault(self, fault: LogFault) -> None:
        """The log found damage, or failed: whoever read or wrote it, the loop has to know."""
        if self._group is not None:
            self._group.wake()

    def core_stopped(self) -> None:
        self._leading.end()
        self._master.end(NO_LEADER)
        self._hint = NO_LEADER
        self._barriers.lost()
        self._publish(CoreRole.FOLLOWER, self._board.present.term)

    def log_released(self) -> None:
        self._mender.log_released()

    @property
    def _mender(self) -> Mending:
        assert self._mending is not None, "made before the group runs"
        return self._mending

    def driver_message(self, node: str, fields: Sequence[Any], body: memoryview) -> None:
        self._mender.driver_message(node, fields, body)

    def install_needed(self, need: InstallNeeded) -> None:
        log.warning("a member needs entries that are gone here", extra={"peer": need.peer, "next": need.next})
        self._mender.offer_now()


def _cause(error: BaseException) -> BaseException:
    """The first real failure within nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
