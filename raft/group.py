"""One Raft group at work in this process: the loop that owns the core, and what carries out its decisions.

The loop is the only code that touches the core. It waits for one wake-up, drains everything (finished writes,
messages, requests of the host, a tick), lets the host form an entry, takes `ready()` once and routes the results;
there is no `await` in between, so nothing needs a lock.

    links ──► inbox ─┐                      ┌─► links (control before data; requests via a Feeder per peer)
    writer ─► done ──┤                      ├─► writer
    node ───► tick ──┼─► loop: core ────────┼─► host: role, commit, membership
    host ───► calls ─┘                      └─► waiters of barriers and transfers

Life of a replica: *unformed* (no core; formation decides), or *amnesiac* (the hard state was lost beside a log: no core
until every other voter has told its term, so that no forgotten vote can be given twice), then *running*; *mending* (no
core) whenever the log turns out to be damaged, at the start or later, and then running again with a new core. A broken
invariant or a bug ends `run` with an exception: the group stops, the process and its other groups do not; whoever
started it answers its waiters.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import trio

from raft.codec import DRIVER_CODES, decode_message, encode_message, take_int
from raft.core import InvariantBroken, RaftCore
from raft.core.errors import NotLeader as CoreNotLeader
from raft.core.errors import Refused
from raft.core.messages import AppendRequest, Message
from raft.core.ready import InstallNeeded, Ready, RoleChange, TransferEnd
from raft.core.types import (
    EntryLike,
    Health,
    Member,
    Membership,
    NodeId,
    RaftConfig,
    Role,
    StorageFault,
)
from raft.feeder import Feeder
from raft.formation import Formation, Introduction
from raft.frames import CodecError
from raft.hard_state import SPENT_VOTE, HardStateFile, StateVerdict, StoredState
from raft.identity import check_identity, hello_fields, read_hello
from raft.node import RaftNode
from raft.signals import Signal
from raft.storage import LogStorage, StorageDamaged
from raft.transport import Address, Mismatch, PeerLink, PeerTransport
from raft.writer import LogWriter

__all__ = ["GroupHost", "GroupSettings", "RaftGroup"]

log = logging.getLogger(__name__)

FORM = DRIVER_CODES
"""Driver message: entry 1, offered to an unformed member."""

FORMING_TERM = 1
STALLED_S = 5.0
WAITING_LOG_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSettings:
    """What a replica has to know to take part."""

    cluster: str
    group: str
    node_id: NodeId
    peers: tuple[Member, ...]
    """All configured replicas, this one included: id, rank and peer address. Used until a membership is known."""
    client_address: str = ""
    listen_host: str | None = None
    """Where to bind; the host of this replica's peer address by default."""


class GroupHost(Protocol):
    """Who uses the group. Called from within a turn of the loop: synchronous, short, must not raise."""

    def core_started(self, core: RaftCore) -> None:
        """The replica takes part from now on; `core.commit` is what recovery knows to be committed."""
        ...

    def form_entries(self) -> None:
        """This replica leads: propose what is due (`RaftGroup.may_form`, `RaftGroup.propose`)."""
        ...

    def role_changed(self, change: RoleChange) -> None: ...

    def committed(self, first: int, last: int) -> None:
        """Entries [first, last] are committed; what is durable here may lag behind."""
        ...

    def durable_moved(self) -> None:
        """A write ended."""
        ...

    def members_changed(self, membership: Membership) -> None: ...

    def ticked(self) -> None:
        """For sweeps; called on every tick."""
        ...

    def link_changed(self, node: NodeId, *, up: bool) -> None: ...

    def app_frame(self, node: NodeId, fields: Sequence[Any], body: memoryview) -> None:
        """A frame of the application channel. Raises CodecError."""
        ...

    def driver_message(self, node: NodeId, fields: Sequence[Any], body: memoryview) -> None:
        """A driver message that is not the group's own business (installation, repair). Raises CodecError."""
        ...

    def install_needed(self, need: InstallNeeded) -> None: ...

    def core_stopped(self) -> None:
        """The log is damaged, or held for an installation: no core until `RaftGroup.resume`."""
        ...

    def log_released(self) -> None:
        """Nothing of the stopped core writes any more: the log may be mended."""
        ...


class RaftGroup:
    """One group. `run` works until cancelled; everything else is synchronous unless it says otherwise."""

    def __init__(
        self,
        node: RaftNode,
        settings: GroupSettings,
        storage: LogStorage,
        hard: HardStateFile,
        host: GroupHost,
        rng: random.Random,
    ) -> None:
        self.settings = settings
        self.node_id = settings.node_id
        self.core: RaftCore | None = None
        """None while unformed or amnesiac."""
        self.storage = storage
        self.waiting_for = ""
        """Why there is no core yet, for status and logs."""
        self._node = node
        self._hard = hard
        self._host = host
        self._rng = rng
        self._transport: PeerTransport | None = None
        self._nursery: trio.Nursery | None = None
        self._writer = LogWriter(storage, hard, self._written)
        self._writer_scope = trio.CancelScope()
        self._mending = False
        self._held = False
        self._resume = False
        self._stopped = trio.Event()
        self._reported_seq = 0
        self._told_fault: StorageFault | None = None
        self._inbox: deque[Message] = deque()
        self._calls: deque[Callable[[RaftCore, int], None]] = deque()
        self._tick_due = False
        self._wake = Signal()
        self._feeders: dict[NodeId, Feeder] = {}
        self._members: tuple[Member, ...] = settings.peers
        self._ids: dict[Address, NodeId] = {}
        self._links: dict[NodeId, PeerLink] = {}
        self._introductions: dict[NodeId, Introduction] = {}
        self._offers: deque[NodeId] = deque()
        self._offered: deque[tuple[NodeId, Sequence[EntryLike]]] = deque()
        self._formation: Formation | None = None
        self._formed_here = False
        self._barriers: dict[int, Callable[[int | None], None]] = {}
        self._next_token = 1
        self._transfers: list[Callable[[TransferEnd], None]] = []
        self._next_waiting_log = 0.0

    # what the host asks

    @property
    def leads(self) -> bool:
        """Leader (perhaps not ready, perhaps handing over)."""
        return self.core is not None and self.core.role is Role.LEADER

    def may_form(self, *, full: bool) -> bool:
        """The gate of entry formation: an idle writer, or a full batch and fewer than two own entries unflushed.

        Without it a fast loop would form entries of one message each; so what arrives during a write goes together.
        """
        core = self.core
        if core is None or core.role is not Role.LEADER or core.transferring:
            return False
        unflushed = core.last.index - core.durable
        if self._writer.idle and unflushed == 0:
            return True
        return full and unflushed < 2

    def propose(self, entries: Sequence[EntryLike]) -> None:
        """Append entries (host only, from `form_entries`)."""
        assert self.core is not None, "only a leader proposes"
        self.core.propose(entries, self._node.now_ms())

    def wake(self) -> None:
        """Run a turn soon."""
        self._wake.set()

    def call(self, function: Callable[[RaftCore, int], None]) -> None:
        """Run `function(core, now_ms)` in the next turn; dropped when there is no core."""
        self._calls.append(function)
        self._wake.set()

    def barrier(self, done: Callable[[int | None], None], *, asked: Callable[[], None] | None = None) -> None:
        """Ask for a read point; `done` gets the index to have dispatched, or None when leadership is lost.

        `asked` is called when the question leaves: whoever asks later needs a question of their own.
        """

        def ask(core: RaftCore, now_ms: int) -> None:
            if asked is not None:
                asked()
            token = self._next_token
            self._next_token += 1
            try:
                core.barrier(token, now_ms)
            except Refused:
                done(None)
            else:
                self._barriers[token] = done

        self.call(ask)

    async def transfer(self, target: NodeId | None) -> TransferEnd:
        """Hand leadership over; returns how it ended. Raises what the core raises (NotLeader, TransferRefused)."""
        ended = trio.Event()
        result: list[TransferEnd | Refused] = []

        def end(how: TransferEnd) -> None:
            result.append(how)
            ended.set()

        def ask(core: RaftCore, now_ms: int) -> None:
            try:
                core.transfer(target, now_ms)
            except Refused as error:
                result.append(error)
                ended.set()
            else:
                self._transfers.append(end)

        if self.core is None:
            raise CoreNotLeader("")
        self.call(ask)
        await ended.wait()
        if isinstance(result[0], Refused):
            raise result[0]
        return result[0]

    def link(self, node: NodeId) -> PeerLink | None:
        """The link to a member; None for strangers and for this replica itself."""
        return self._links.get(node)

    def connected(self, node: NodeId) -> bool:
        """Is there a session with the member in which both sides accepted this group?"""
        link = self._links.get(node)
        return link is not None and link.agreed(self.settings.group)

    def client_address(self, node: NodeId) -> str:
        """Where clients reach a member; "" when unknown."""
        if node == self.node_id:
            return self.settings.client_address
        told = self._introductions.get(node)
        if told is not None and told.client_address:
            return told.client_address
        for member in self._members:
            if member.id == node:
                return member.client_address
        return ""

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, voters and learners, as far as known."""
        return self._members

    @property
    def fault(self) -> tuple[StorageFault | None, str]:
        """What the disk does not do, and why."""
        return self._writer.fault, self._writer.reason

    # running

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. `started()` when the listener is bound.

        Raises OSError when the peer address cannot be bound, InvariantBroken and anything unexpected.
        """
        own = next(member for member in self.settings.peers if member.id == self.node_id)
        self._transport = transport = await self._node.transport(Address.parse(own.address), self.settings.listen_host)
        await self._identify()
        remove = self._node.add(self.settings.group, self)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._use_members(self._members)
                if self.storage.formed:
                    self._start_core()
                else:
                    self._formation = Formation(self._introduction(), self.settings.peers)
                    self.waiting_for = "all peers (the group is not formed yet)"
                transport.register(self.settings.group, self)
                nursery.start_soon(self._loop)
                task_status.started()
        finally:
            self._nursery = None
            remove()
            transport.unregister(self.settings.group)

    async def _identify(self) -> None:
        """A fresh store draws its uuid; a known one must be this group's."""
        state = self._hard.state
        settings = self.settings
        if self._hard.verdict is StateVerdict.FRESH:
            await self._hard.save(
                StoredState(
                    store_uuid=f"{self._rng.getrandbits(128):032x}", cluster=settings.cluster, group=settings.group
                )
            )
        elif self._hard.verdict is StateVerdict.FOUND:
            for field, ours, theirs in (
                ("cluster", settings.cluster, state.cluster),
                ("group", settings.group, state.group),
            ):
                if ours != theirs:
                    raise WrongStore(f"this store belongs to {field} {theirs!r}, the configuration says {ours!r}")

    def _introduction(self) -> Introduction:
        state = self._hard.state
        uuid = state.store_uuid
        if self._hard.verdict is StateVerdict.DAMAGED:  # the log is this replica's own, and says which store it was
            uuid = next((member.uuid for member in self._members if member.id == self.node_id), "")
        return Introduction(self.node_id, uuid, self.settings.client_address, self.storage.lineage, state.term)

    def _start_core(self) -> None:
        """From the log and the hard state to a running core; or wait for all voters when the hard state is lost."""
        recovered = self.storage.recovered(self._hard.state)
        if recovered.memberships:
            self._use_membership(recovered.memberships[-1][1])
        if self._hard.verdict is StateVerdict.DAMAGED:
            self.waiting_for = "all voters (the hard state is lost: votes given before must not be repeated)"
            log.error("hard state lost; waiting for every voter's term", extra={"group": self.settings.group})
            return
        if self.storage.damage is not None:
            self.waiting_for = "entries from its peers (damaged log)"
            self._mending = True
            self._host.log_released()
            return
        config = self._node.config
        self._start_writer()
        self.core = RaftCore(
            RaftConfig(
                node_id=self.node_id,
                beat_ms=config.beat_ms,
                election_ms=config.election_ms,
                tick_ms=config.tick_ms,
            ),
            random.Random(self._rng.getrandbits(64)),
            self.storage,
            self.storage.maker,
            recovered,
            self._node.now_ms(),
        )
        self.waiting_for = ""
        self._formation = None
        self._host.core_started(self.core)
        for node in sorted(self._links):
            if self.connected(node):
                self.core.link_up(node, self._node.now_ms())
        self._wake.set()

    def _start_writer(self) -> None:
        assert self._nursery is not None, "writers write while the group runs"
        self._writer = writer = LogWriter(self.storage, self._hard, self._written)
        self._writer_scope = scope = trio.CancelScope()
        self._reported_seq = 0
        self._told_fault = None

        async def run() -> None:
            with scope:
                await writer.run()

        self._nursery.start_soon(run)

    async def _loop(self) -> None:
        while True:
            await self._wake.wait()
            if self.core is not None and (self._held or self.storage.damage is not None):
                await self._stop_core()
            elif self.core is not None:
                self._turn(self.core)
            elif self._mending:
                self._calls.clear()
                if self._resume:
                    self._mending = self._resume = False
                    self._start_core()
            elif self._formation is not None:
                await self._form(self._formation)
            else:
                await self._remember()
            self._offer_forming()

    async def _stop_core(self) -> None:
        """The log is damaged or about to be replaced: this replica promises nothing until `resume`."""
        self.core = None
        self.waiting_for = "the end of an installation" if self._held else "entries from its peers (damaged log)"
        self._inbox.clear()
        self._calls.clear()
        for feeder in self._feeders.values():
            feeder.clear()
        barriers, self._barriers = self._barriers, {}
        for done in barriers.values():
            done(None)
        transfers, self._transfers = self._transfers, []
        for end in transfers:
            end(TransferEnd("", False, "the core was stopped"))
        self._host.core_stopped()
        self._writer_scope.cancel()
        await self._writer.ended.wait()
        self._mending = True
        self._stopped.set()
        self._stopped = trio.Event()
        self._host.log_released()

    async def hold(self) -> None:
        """Stop the core (an installation is about to replace the log), until `resume`. Returns when nothing writes."""
        self._held = True
        self._wake.set()
        while not self._mending:
            await self._stopped.wait()

    def resume(self) -> None:
        """The log is whole again: start a new core on it."""
        self._held = False
        self._resume = True
        self._wake.set()

    def tick(self) -> None:
        """The node's tick: one, however late it comes."""
        self._tick_due = True
        self._wake.set()

    def _turn(self, core: RaftCore) -> None:
        now_ms = self._node.now_ms()
        writer = self._writer
        if writer.done_seq > self._reported_seq:
            self._reported_seq = writer.done_seq
            core.append_done(writer.done_seq, now_ms)
            self._host.durable_moved()
        inbox, calls = self._inbox, self._calls
        while inbox:
            core.step(inbox.popleft(), now_ms)
        while calls:
            calls.popleft()(core, now_ms)
        if self._tick_due:
            self._tick_due = False
            core.tick(now_ms)
            self._watch_disk(core, now_ms)
            self._host.ticked()
        if core.role is Role.LEADER:
            self._host.form_entries()
        self._route(core.ready())

    def _watch_disk(self, core: RaftCore, now_ms: int) -> None:
        fault = self._writer.fault
        if fault is None:
            busy = self._writer.busy_for_s(trio.current_time())
            if busy > STALLED_S:
                fault = StorageFault.STALLED
            elif busy > 2 * self._node.config.election_ms / 1000:
                fault = StorageFault.SLOW
        self._tell_fault(core, fault, now_ms)

    def _tell_fault(self, core: RaftCore, fault: StorageFault | None, now_ms: int) -> None:
        if fault is self._told_fault or self._told_fault is StorageFault.FAILED:
            return
        self._told_fault = fault
        if fault is None:
            core.storage_recovered(now_ms)
        else:
            core.storage_failed(fault, now_ms)

    def _written(self) -> None:
        """The writer ended a write (or met a fault)."""
        if self._writer.fault is not None:
            fault = self._writer.fault
            self._calls.append(lambda core, now_ms: self._tell_fault(core, fault, now_ms))
        self._wake.set()

    def _route(self, ready: Ready) -> None:
        group = self.settings.group
        for message in ready.send:
            if type(message) is AppendRequest:
                self._feed(message)
            else:
                link = self._links.get(message.to)
                if link is not None:
                    link.send_control(group, encode_message(message))
        if ready.appends:
            self._writer.put(ready.appends)
        if ready.membership is not None:
            membership = ready.membership[1]
            self._use_membership(membership)
            self._host.members_changed(membership)
        if ready.role is not None:
            self._host.role_changed(ready.role)
        if ready.committed is not None:
            self._host.committed(*ready.committed)
        for grant in ready.reads:
            done = self._barriers.pop(grant.token, None)
            if done is not None:
                done(grant.index)
        for need in ready.installs:
            self._host.install_needed(need)
        if ready.transfer is not None:
            waiting, self._transfers = self._transfers, []
            for end in waiting:
                end(ready.transfer)

    # append requests

    def _feed(self, request: AppendRequest) -> None:
        feeder = self._feeders.get(request.to)
        if feeder is None:
            assert self._nursery is not None, "messages leave while the group runs"
            feeder = Feeder(self.storage, self._pending, self._send_entries, self._found_damage)
            self._feeders[request.to] = feeder
            self._nursery.start_soon(feeder.run)
        feeder.push(request)

    def _found_damage(self, error: StorageDamaged) -> None:
        self._wake.set()  # the loop looks at `storage.damage` first

    def _pending(self, first: int, last: int) -> Sequence[EntryLike]:
        return self.core.pending(first, last) if self.core is not None else ()

    def _send_entries(self, request: AppendRequest, entries: Sequence[EntryLike]) -> None:
        link = self._links.get(request.to)
        if link is None:
            return
        fields = encode_message(request)
        if entries:
            link.send_data(self.settings.group, fields, [entry.data for entry in entries])
        else:
            link.send_control(self.settings.group, fields)

    # members and links

    def _use_membership(self, membership: Membership) -> None:
        self._use_members(membership.voters + membership.learners)

    def _use_members(self, members: tuple[Member, ...]) -> None:
        """Know the members by address, and want links to them (and to configured peers that are not formed yet)."""
        transport = self._transport
        assert transport is not None, "members matter while the group runs"
        self._members = members
        addresses = {}
        for member in (*self.settings.peers, *members):
            if member.address:
                addresses[Address.parse(member.address)] = member.id
        self._ids = addresses
        self._links = {node: transport.link(address) for address, node in addresses.items() if node != self.node_id}
        transport.set_peers(self.settings.group, list(addresses))

    def send_bulk(self, node: NodeId, fields: Sequence[Any], body: Sequence[bytes]) -> bool:
        """Send a driver message of the host behind everything urgent; False when there is no link."""
        link = self._links.get(node)
        return link is not None and link.send_bulk(self.settings.group, fields, body)

    @property
    def connected_members(self) -> tuple[NodeId, ...]:
        """Members with a working link, sorted."""
        return tuple(node for node in sorted(self._links) if self.connected(node))

    def hello(self) -> dict[str, Any]:
        return hello_fields(self.settings.cluster, self.settings.group, self._introduction())

    def check_hello(self, addr: Address, hello: dict[str, Any]) -> Mismatch | None:
        cluster, group, peer = read_hello(hello)
        expected = self._ids.get(addr)
        if expected is None:
            return Mismatch("peer address", f"{addr} is no member of the group")
        mismatch = check_identity(
            cluster=self.settings.cluster,
            group=self.settings.group,
            me=self._introduction(),
            expected=expected,
            membership=Membership(self._members),
            peer_cluster=cluster,
            peer_group=group,
            peer=peer,
        )
        if mismatch is None:
            self._introductions[peer.node_id] = peer
            if self._formation is not None:
                self._formation.hello(peer)
            elif not peer.formed:
                self._offers.append(peer.node_id)
            self._wake.set()
        return mismatch

    def link_up(self, addr: Address) -> None:
        node = self._ids[addr]
        self.call(lambda core, now_ms: core.link_up(node, now_ms))
        self._host.link_changed(node, up=True)

    def link_down(self, addr: Address) -> None:
        node = self._ids.get(addr)
        if node is None:
            return
        if self._formation is not None:
            self._formation.lost(node)
        self._introductions.pop(node, None)
        feeder = self._feeders.get(node)
        if feeder is not None:
            feeder.clear()
        self._host.link_changed(node, up=False)

    def peer_gone(self, addr: Address) -> None:
        node = self._ids.get(addr)
        if node is not None:
            self.call(lambda core, now_ms: core.link_down(node, now_ms))

    def receive(self, addr: Address, messages: Sequence[tuple[list[Any], memoryview]]) -> None:
        sender = self._ids.get(addr)
        if sender is None:
            return
        for fields, body in messages:
            code = fields[0]
            if type(code) is int and code >= DRIVER_CODES:
                self._driver_message(sender, fields, body)
                continue
            message = decode_message(fields, body, sender, self.node_id, self.storage.parse)
            if self.core is not None:
                self._inbox.append(message)
        self._wake.set()

    def receive_app(self, addr: Address, fields: list[Any], body: memoryview) -> None:
        sender = self._ids.get(addr)
        if sender is not None:
            self._host.app_frame(sender, fields, body)

    def _driver_message(self, sender: NodeId, fields: list[Any], body: memoryview) -> None:
        if fields[0] != FORM:
            self._host.driver_message(sender, fields, body)
            return
        if len(fields) != 2:
            raise CodecError("an offer of entry 1 is malformed")
        take_int(fields[1], 1)
        entries = self.storage.parse(body)
        if len(entries) != 1 or entries[0].index != 1:
            raise CodecError("an offer of entry 1 holds something else")
        if self._formation is not None:
            self._offered.append((sender, entries))

    # forming

    async def _form(self, formation: Formation) -> None:
        """An unformed replica's turn."""
        self._calls.clear()
        while self._offered:
            sender, entries = self._offered.popleft()
            membership = self.storage.maker.read_membership(entries[0])
            refusal = formation.refusal(membership)
            if refusal is None:
                await self._become_formed(membership, entries)
                return
            self._complain(f"entry 1 of {sender} is not for this store: {refusal}")
        own = formation.membership()
        if own is not None:
            await self._become_formed(own, None)
            return
        if self._tick_due:
            self._tick_due = False
            self._say_waiting(formation.missing)

    async def _become_formed(self, membership: Membership, first: Sequence[EntryLike] | None) -> None:
        # The term first: a formed log must not meet a hard state that could vote in term 1 again.
        if self._hard.state.term < FORMING_TERM:
            await self._hard.save(replace(self._hard.state, term=FORMING_TERM, vote=SPENT_VOTE))
        lineage = 0 if first is not None else self._rng.getrandbits(63) | 1
        await self.storage.form(lineage, membership, first)
        log.info(
            "group formed" if first is None else "joined the group",
            extra={
                "group": self.settings.group,
                "node": self.node_id,
                "lineage": f"{self.storage.lineage:016x}",
                "voters": ",".join(membership.voter_ids),
            },
        )
        self._start_core()
        assert self._transport is not None, "formed while running"
        # Links first hear that this replica is formed, then what it wants from them.
        self._transport.reintroduce(self.settings.group)
        for node in sorted(self._introductions):
            if not self._introductions[node].formed:
                self._offers.append(node)
        self._wake.set()

    def _offer_forming(self) -> None:
        """Hand entry 1 to members that have none."""
        while self._offers:
            node = self._offers.popleft()
            link = self._links.get(node)
            if link is None or self._nursery is None or not self.storage.formed:
                continue
            self._nursery.start_soon(self._offer_to, link)

    async def _offer_to(self, link: PeerLink) -> None:
        if self.storage.first_index > 1:
            self._complain("an unformed member came, but entry 1 is gone by retention: remove it and add it again")
            return
        try:
            entries = self.storage.cached(1, 1) or await self.storage.read(1, 1)
        except (OSError, StorageDamaged):
            return
        if entries:
            link.send_data(self.settings.group, [FORM, 1], [entries[0].data])

    def _say_waiting(self, missing: Sequence[NodeId]) -> None:
        now = trio.current_time()
        if now >= self._next_waiting_log and missing:
            if self._next_waiting_log:
                log.info("waiting for peers", extra={"group": self.settings.group, "missing": ",".join(missing)})
            self._next_waiting_log = now + (WAITING_LOG_S if self._next_waiting_log else 1.0)

    def _complain(self, what: str) -> None:
        log.error(what, extra={"group": self.settings.group, "node": self.node_id})

    # a lost hard state

    async def _remember(self) -> None:
        """Rebuild a lost hard state, safely: only when every other voter has told its term since this start.

        Any candidate that this replica may have voted for had made that term durable before it asked, and it is one of
        the voters. So above the highest term of all of them no vote of ours can exist; below, none is given again.
        """
        self._calls.clear()
        voters = [member for member in self._members if member.id != self.node_id]
        missing = [member.id for member in voters if member.id not in self._introductions]
        if missing:
            if self._tick_due:
                self._tick_due = False
                self._say_waiting(missing)
            return
        own = next((member for member in self._members if member.id == self.node_id), None)
        term = 1 + max([self.storage.last.term, *(self._introductions[member.id].term for member in voters)])
        await self._hard.save(
            StoredState(
                term=term,
                vote=SPENT_VOTE,
                starts=term << 24,
                suspect=True,
                store_uuid=own.uuid if own is not None else "",
                cluster=self.settings.cluster,
                group=self.settings.group,
            )
        )
        log.warning("hard state rebuilt from the peers' terms", extra={"group": self.settings.group, "term": term})
        self._start_core()

    @property
    def health(self) -> Health | None:
        """The core's health; None without a core."""
        return self.core.health if self.core is not None else None


class WrongStore(Exception):
    """The store under this path belongs to another cluster or group: the operator acts."""


__all__ += ["InvariantBroken", "WrongStore"]
