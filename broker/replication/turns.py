"""What a replica of a Raft group does in the turns of its group's loop: the group's host (`raft.host`).

Everything here is synchronous and runs between two steps of the core, so what is decided from the core's state is
carried out on that state. Entries form, commit moves, producers are answered, roles begin and end, and every 50 ms the
sweep looks at whatever has a deadline. What lasts longer than a turn is a task of one of the objects below.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import trio

from broker.replication.barriers import Barriers
from broker.replication.base import NO_LEADER, Verdict
from broker.replication.ha.master import Master
from broker.replication.ha.rewind import Rewinding
from broker.replication.ha.rules import RAFT, GroupRules
from broker.replication.ha.trust import Trust
from broker.replication.hand_over import HandOver
from broker.replication.leading import Leading, Moved, end_of
from broker.replication.limits import SWEEP_S
from broker.replication.mending import Mending
from broker.replication.raft_config import GroupConfig
from broker.replication.settling import Settling
from broker.replication.standing import Standing
from broker.replication.store_view import ReplicatedStore
from broker.replication.store_watch import StoreWatch
from raft.core import RaftCore
from raft.core.ready import InstallNeeded, RoleChange
from raft.core.types import EntryId, Membership
from raft.core.types import Role as CoreRole
from raft.group import RaftGroup

if TYPE_CHECKING:
    from broker.replication.base import EntrySource
    from broker.replication.forward import Forwarder
    from broker.store.fs import FileSystem

__all__ = ["GroupTurns"]

log = logging.getLogger(__name__)


class GroupTurns:
    """One per replica, with the objects that it moves. `take_part` gives it the group."""

    def __init__(
        self,
        config: GroupConfig,
        store: ReplicatedStore,
        source: EntrySource,
        forwarder: Forwarder,
        fs: FileSystem,
        rng: random.Random,
    ) -> None:
        self.group: RaftGroup | None = None
        self.rules = GroupRules()
        self.rules.unsafe_flush = config.unsafe_async_flush
        self.draining = False
        self.had_core = False
        """Did this replica ever take part since its store was opened?"""
        self.moved = Moved()
        self.standing = Standing(config.group, config.node_id)
        self.barriers = Barriers()
        self.leading = Leading(self, store, source, self.moved)
        self.hand_over = HandOver(config.group, source, self.leading, self.moved, rng)
        self.master = Master(config.ha, self.rules, config.group, self.place)
        self.settling = Settling(store, self.rules, self.master, self.moved)
        self.watch = StoreWatch(config.group, store, self.wants_sync)
        self.trust = Trust(fs, config.boot_id, self.rules)
        self.rewinding = Rewinding(config.group, store.log, fs)
        self._source = source
        self._forwarder = forwarder
        self._configured = config.strategy
        self._mending: Mending | None = None
        self._nursery: trio.Nursery | None = None
        self._next_sweep = 0.0

    def take_part(self, group: RaftGroup, mending: Mending, nursery: trio.Nursery) -> None:
        """The group is about to run; what lasts longer than a turn becomes a task of `nursery`."""
        self.group, self._mending, self._nursery = group, mending, nursery

    def leave(self) -> None:
        """The group does not run any more: nothing new begins."""
        self._nursery = None

    def stop(self, verdict: Verdict) -> None:
        """The group is over in this process: answer everybody."""
        self.leading.end()
        self.standing.hint = NO_LEADER
        self.settling.stop(verdict)
        self.master.end(NO_LEADER)
        self._forwarder.stop()
        self.barriers.lost()
        self.standing.stop()
        self.moved.note()

    @property
    def core(self) -> RaftCore | None:
        return self.group.core if self.group is not None else None

    @property
    def plain(self) -> bool:
        """Raft's rules alone are in force."""
        core = self.core
        return self.rules.raft_only(core) if core is not None else self._configured == RAFT

    @property
    def leads(self) -> bool:
        """Leader, perhaps not admitting yet."""
        return self.leading.term != 0

    @property
    def gone(self) -> bool:
        """Removed from the group: no leader will speak to this replica, nothing can be forwarded."""
        core = self.core
        return core is not None and self.group is not None and self.group.members.removed and not core.leader

    def wants_sync(self) -> bool:
        """Does a write count only when it is on the disk?"""
        core = self.core
        return self.rules.wants_sync(core) if core is not None else True

    @property
    def _running(self) -> RaftGroup:
        assert self.group is not None, "turns come while the group runs"
        return self.group

    # roles and entries

    def core_started(self, core: RaftCore) -> None:
        self.rules.uuid = str(self._running.hello()["uuid"])
        self.had_core = True
        self.settling.note_commit(core, core.commit)

    def form_entries(self) -> None:
        self._form()

    def _form(self, *, all_of_it: bool = False) -> None:
        group = self._running
        taken = self.leading.form_entries(group, all_of_it=all_of_it)
        if taken:
            assert group.core is not None, "a leader has a core"
            self.settling.proposed(group.core, taken)

    def role_changed(self, change: RoleChange) -> None:
        group = self._running
        leads = change.role is CoreRole.LEADER
        self.standing.take_hint(group, change)
        if self.leads and (not leads or change.term != self.leading.term):
            self.leading.end()
            self.master.end(self.standing.hint)
        if leads and not self.leads:
            assert self._nursery is not None, "roles change while the group runs"
            assert group.core is not None, "a leader has a core"
            self.master.begin(group, group.core, trio.current_time())
            self.leading.begin(self._nursery, group, change.term, change.noop_index)
        self.standing.publish(change.role, change.term, ready=self.leading.ready)
        if change.leader or self.gone:
            self._forwarder.leader_changed()

    def began_admitting(self) -> None:
        self._forwarder.leader_changed()

    def became_ready(self, term: int) -> None:
        self.standing.publish(CoreRole.LEADER, term, ready=self.leading.ready)

    def committed(self, first: int, last: int) -> None:
        core = self._running.core
        assert core is not None, "commit moves in a core"
        self.settling.committed(core, last, self.standing.hint)
        if not self.trust.whole and core.log.term_at(last) == core.term and self._nursery is not None:
            self._nursery.start_soon(self.trust.prove())

    def acknowledged(self, last: int) -> None:
        self.settling.settle_master(self.core, self.standing.hint)

    def durable_moved(self) -> None:
        core = self._running.core
        assert core is not None, "writes end in a core"
        self.settling.allow_dispatch(core)
        self.settling.settle_master(core, self.standing.hint)

    def members_changed(self, membership: Membership) -> None:
        self.moved.note()

    def ticked(self) -> None:
        now = trio.current_time()
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP_S
        self.watch.look(self._running, now)
        if self.core is not None:
            self.core.behind = self.settling.behind
        self._mender.tick(now)
        self._sweep_master(now)
        if self.leading.ready and self.plain and not self.draining and self._nursery is not None:
            self.hand_over.rebalance(self._nursery, self._running, now, self.standing.hint)
        self.settling.expire(now, self.standing.hint)
        self._forwarder.tick(now)
        if self.leading.admitting:
            self._forwarder.leader_changed()  # what was parked while a transfer was tried
        self.moved.note()

    def _sweep_master(self, now: float) -> None:
        group = self._running
        core = group.core
        if core is None or not self.leads:
            return
        if self.master.sweep(group, core, now):
            core.recount(int(now * 1000))
        self.settling.settle_master(core, self.standing.hint)

    def place(self, core: RaftCore, membership: Membership, *, allow_two: bool = True) -> int:
        """Append a membership entry; what is open goes before it, since records carry their positions.

        Returns its index. Raises what the core raises; nothing has changed then.
        """
        self._form(all_of_it=True)
        index = core.change_membership(membership, int(trio.current_time() * 1000), allow_two=allow_two)
        if self.leading.admitting:
            self._source.rebase(end_of(core))  # at once: requests that come in this very turn stand behind it
        return index

    def rewind_needed(self, to: EntryId) -> None:
        if self._nursery is not None and not self.rewinding.begun:
            self.rewinding.begun = True
            self._nursery.start_soon(self.rewinding.run, self._running, to)

    # links

    def link_changed(self, node: str, *, up: bool) -> None:
        if up and self.group is not None:
            self.standing.link_came(self.group, node)
        if not up:
            self._mender.link_lost(node)
        self._forwarder.link_changed(node, up=up)

    def app_frame(self, node: str, fields: Sequence[Any], body: memoryview) -> None:
        self._forwarder.on_frame(node, fields, body)

    # damage and installation

    def core_stopped(self) -> None:
        self.leading.end()
        self.master.end(NO_LEADER)
        self.standing.hint = NO_LEADER
        self.barriers.lost()
        self.standing.publish(CoreRole.FOLLOWER, self.standing.present.term, ready=self.leading.ready)

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
