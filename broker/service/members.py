"""Who belongs to a consumer group: the live table, logged so that it survives a failover.

Every replica sees the clients that heartbeat to it. The ready leader answers consumer lists, sends change notices (40)
and logs each group's member set on change, at most once a second per group (op 9). A new leader joins its own live
table with the logged sets for 35 s (clients heartbeat every 30 s) and then drops who stayed silent: consumer lists stay
whole through a failover, and nobody takes queues that have an owner. Who said goodbye (`goodbyes`) is not waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import trio

from broker.metadata.clients import ClientTable, Link
from broker.metadata.group_settings import settings_of
from broker.metadata.ops import MembersPut, Op
from broker.metadata.state import GroupState
from broker.replication.base import Busy, NotLeader, Replicator
from broker.replication.intake import Intake
from broker.replication.requests import Refused
from broker.service.goodbyes import Goodbyes
from trimq.wire.codes import RequestCode
from trimq.wire.command import FLAG_ONEWAY, Command, encode

__all__ = ["INHERIT_S", "PERIOD_S", "Members"]

log = logging.getLogger(__name__)

INHERIT_S = 35.0
"""How long logged members count without a heartbeat at the new leader: one heartbeat period and a little."""
PERIOD_S = 1.0
"""Member sets are logged at most so often."""


class Members:
    """Consumer lists and change notices of one replica."""

    def __init__(
        self,
        clients: ClientTable,
        state: GroupState,
        intake: Intake,
        replicator: Replicator,
        goodbyes: Goodbyes,
        *,
        notify: bool = True,
    ) -> None:
        self._clients = clients
        self._state = state
        self._intake = intake
        self._replicator = replicator
        self._goodbyes = goodbyes
        self._notify_changes = notify
        self._inherited: dict[str, set[str]] = {}
        self._had_their_time = False
        """The inherited members: who has not spoken by now is gone."""
        self._dirty: dict[str, None] = {}
        self._wake = trio.Event()
        self._opaque = 0
        self._conflicts: dict[str, dict[str, tuple[str, ...]]] = {}
        self._doubled: frozenset[str] = frozenset()

    # --- called by processors and by the connection's end, synchronously

    def consumer_ids(self, group: str) -> list[str]:
        """The client ids of a consumer group, sorted: live ones, and inherited ones while they count."""
        live = self._clients.consumer_group(group)
        return sorted({*(live.client_ids if live is not None else ()), *self._inherited.get(group, ())})

    def changed(self, groups: Iterable[str], *, gone: Iterable[str] = ()) -> None:
        """Membership or subscriptions of these consumer groups changed; `gone` are client ids that left.

        On the ready leader every member is notified at once, the newcomer included.
        """
        left = set(gone)
        for group in groups:
            self._dirty[group] = None
            if left and (inherited := self._inherited.get(group)) is not None:
                inherited -= left
            self._warn_of_conflicts(group)
            if self._replicator.is_ready:
                self._notify(group)
        self._wake.set()

    def left(self, group: str, client_id: str, *, was_live: bool, passed_on: bool) -> None:
        """A consumer said goodbye to its group: `was_live` here, or to another replica, which passed it on."""
        self._goodbyes.heard(group, client_id, pass_on=not (passed_on or self._replicator.admitting))
        if was_live or client_id in self._inherited.get(group, ()):
            self.changed([group], gone=[client_id])

    def _notify(self, group: str) -> None:
        found = self._clients.consumer_group(group)
        if found is None or found.broadcast or not self._notify_changes:
            return
        info = self._state.groups.get(group)
        if info is not None and not settings_of(info.settings).notify_consumer_ids_changed_enable:
            return
        for link in self._clients.links(group):
            self._send_notice(link, group)

    def _send_notice(self, link: Link, group: str) -> None:
        self._opaque += 1
        link.send(
            encode(
                Command(
                    code=RequestCode.NOTIFY_CONSUMER_IDS_CHANGED,
                    opaque=self._opaque,
                    flag=FLAG_ONEWAY,
                    ext={"consumerGroup": group},
                )
            )
        )

    def _warn_of_conflicts(self, group: str) -> None:
        found = self._clients.consumer_group(group)
        conflicts = found.conflicts() if found is not None else {}
        if conflicts and self._conflicts.get(group) != conflicts:
            log.warning(
                "members of one consumer group subscribe differently; each gets what it asked for, and what only some"
                " want is passed by in the queues of the others: give every member the same subscriptions",
                extra={"group": group, "subscriptions": conflicts},
            )
        if conflicts:
            self._conflicts[group] = conflicts
        else:
            self._conflicts.pop(group, None)

    @property
    def conflicts(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """Consumer group → topic → the different things that its members want of it."""
        return self._conflicts

    @property
    def doubled(self) -> frozenset[str]:
        """Client ids that were last found on several connections."""
        return self._doubled

    def warnings(self, group: str) -> list[str]:
        """What an operator should know about a consumer group, in sentences."""
        said = [
            f"members subscribe differently to {topic}: {' / '.join(texts)}"
            for topic, texts in self._conflicts.get(group, {}).items()
        ]
        found = self._clients.consumer_group(group)
        ids = set(found.client_ids) if found is not None else set()
        return said + [
            f"client id {each} is used by several clients: they take the same queues, others are read by nobody"
            for each in sorted(self._doubled & ids)
        ]

    def look_for_doubles(self) -> None:
        """Every now and then: which client ids are used twice?"""
        doubled = frozenset(self._clients.doubles.all())
        for client_id in sorted(doubled - self._doubled):
            log.warning(
                "one client id is used by several clients: in a consumer group they take the same queues, and others"
                " are read by nobody: give each client an id (instance name) of its own",
                extra={"client": client_id},
            )
        self._doubled = doubled

    # --- the leader's loop

    async def run_term(self) -> None:
        """Log member sets while this replica is the ready leader; the caller cancels it when that ends."""
        self._inherit()
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            self.log_sets()
            await trio.sleep(PERIOD_S)
            if self._inherited and self._had_their_time:
                self._drop_silent()

    async def expire_inherited(self) -> None:
        """Wake the loop when the inherited members have had their time."""
        await trio.sleep(INHERIT_S)
        self._had_their_time = True
        self._wake.set()

    def _inherit(self) -> None:
        self._had_their_time = False
        self._inherited.clear()
        left = self._goodbyes.all()
        for gid, logged in self._state.members.all():
            info = self._state.groups.by_id.get(gid)
            if info is not None and logged:
                self._inherited[info.name] = set(logged) - left.get(info.name, set())
                self._dirty[info.name] = None
        for name in self._clients.consumer_groups():
            self._dirty[name] = None
        self._wake.set()

    def end_term(self) -> None:
        """Not the leader any more: whoever leads next inherits from the log."""
        self._inherited.clear()

    def _drop_silent(self) -> None:
        inherited, self._inherited = self._inherited, {}
        silent: list[str] = []
        for group, ids in sorted(inherited.items()):
            live = self._clients.consumer_group(group)
            if ids - set(live.client_ids if live is not None else ()):
                silent.append(group)
        if silent:
            self.changed(silent)

    def log_sets(self) -> None:
        """Put the sets that changed into the log; before the next period when leadership is handed over."""
        ops: list[Op] = []
        dirty, self._dirty = self._dirty, {}
        for name in dirty:
            info = self._state.groups.get(name)
            if info is None:
                continue  # not created yet (or deleted): its creation marks it again through the next heartbeat
            found = self._clients.consumer_group(name)
            ids = () if found is not None and found.broadcast else tuple(self.consumer_ids(name))
            if tuple(self._state.members.get(info.gid) or ()) != ids:
                ops.append(MembersPut(info.gid, ids))
        if not ops:
            return
        try:
            self._intake.put_ops(ops)
        except (NotLeader, Busy, Refused):
            # Logged with the next change, or by the next leader; lists of this leader are right meanwhile.
            self._dirty.update(dirty)
