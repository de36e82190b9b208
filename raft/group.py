"""One Raft group at work in this process: the loop that owns the core, and what carries out its decisions.

A *turn* is the only code that touches the core. It drains everything (finished writes, messages, requests of the host,
a tick), lets the host form an entry, takes `ready()` once and routes the results; there is no `await` in between, so
nothing needs a lock. The loop takes a turn for every wake-up. What a producer waits for does not wait for the loop: the
pass that read a peer's messages, or heard of a finished write, takes its turn itself (`_turn_now`).

    links ──► inbox ─┐                      ┌─► links (control before data; requests via a Feeder per peer)
    writer ─► done ──┤                      ├─► writer
    node ───► tick ──┼─► loop: core ────────┼─► host: role, commit, membership
    host ───► calls ─┘                      └─► waiters of barriers and transfers

Life of a replica: first no core, as long as `Birth` says why; then *running*; *mending* (no core) whenever the log
turns out to be damaged, at the start or later, or is about to be replaced, and then running again with a new core. A
broken invariant or a bug ends `run` with an exception: the group stops, the process and its other groups do not;
whoever started it answers its waiters.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import trio

from raft.birth import Birth, WrongStore
from raft.codec import DRIVER_CODES, decode_message, encode_message, take_int
from raft.core import RaftCore
from raft.core.errors import NotLeader as CoreNotLeader
from raft.core.errors import Refused
from raft.core.messages import AppendReply, AppendRequest, Message
from raft.core.ready import Ready, TransferEnd
from raft.core.types import (
    EntryLike,
    Membership,
    NodeId,
    RaftConfig,
    Role,
    StorageFault,
)
from raft.disk_watch import DiskWatch
from raft.feeders import Feeders
from raft.frames import CodecError
from raft.hard_state import HardStateFile
from raft.host import GroupHost
from raft.identity import hello_fields
from raft.members import GroupMembers, GroupSettings
from raft.node import RaftNode
from raft.signals import Signal
from raft.storage import LogStorage, StorageDamaged
from raft.transport import Address, Mismatch, PeerTransport
from raft.welcome import FORM, KNOW, Welcome
from raft.writer import LogWriter

__all__ = ["GroupHost", "GroupSettings", "RaftGroup", "WrongStore"]

log = logging.getLogger(__name__)

T = TypeVar("T")

MENDING = "entries from its peers (damaged log)"
INSTALLING = "the end of an installation"


class RaftGroup:
    """One group. `run` works until cancelled; everything else is synchronous unless it says otherwise."""

    def __init__(
        self,
        node: RaftNode,
        transport: PeerTransport,
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
        self._node = node
        self._hard = hard
        self._host = host
        self._rng = rng
        self._transport = transport
        self._members = GroupMembers(settings, transport)
        self._birth = Birth(settings, storage, hard, self._members, rng)
        self._welcome = Welcome(settings, storage, self._members, self._known_commit)
        self._recovered_commit = 0
        self._nursery: trio.Nursery | None = None
        self._writer = LogWriter(storage, hard, self._written, self._turn_now)
        self._writer_scope = trio.CancelScope()
        self._mending = False
        self._mending_for = ""
        self._held = False
        self._resume = False
        self._stopped = trio.Event()
        self._reported_seq = self._reported_hard_seq = 0
        self._disk = DiskWatch(node.config.election_ms)
        self._inbox: deque[Message] = deque()
        self._calls: deque[Callable[[RaftCore, int], None]] = deque()
        self._tick_due = False
        self._turning = False
        self._failure: Exception | None = None
        self._wake = Signal()
        self._feeders = Feeders(settings.group, storage, self._members, self._pending, self._found_damage)
        self._barriers: dict[int, Callable[[int | None], None]] = {}
        self._next_token = 1
        self._transfers: list[Callable[[TransferEnd], None]] = []

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

    async def ask(self, question: Callable[[RaftCore, int], T]) -> T:
        """`call` that returns what `question` returned, and raises the `Refused` that it raised.

        Returns never when there is no core, or none any more: whoever is not sure bounds the wait.
        """
        told: list[T] = []
        refused: list[Refused] = []
        done = trio.Event()

        def put(core: RaftCore, now_ms: int) -> None:
            try:
                told.append(question(core, now_ms))
            except Refused as error:
                refused.append(error)
            done.set()

        self.call(put)
        await done.wait()
        if refused:
            raise refused[0]
        return told[0]

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

    @property
    def fault(self) -> tuple[StorageFault | None, str]:
        """What the disk does not do, and why."""
        return self._writer.fault, self._writer.reason

    # running

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. Raises WrongStore before `started()`, later InvariantBroken and anything else."""
        name = self.settings.group
        await self._birth.identify()
        self._members.uuid = self.store_uuid
        remove = self._node.add(name, self)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._members.use(self.settings.peers)
                if self.storage.formed:
                    self._start_core()
                self._transport.register(name, self)
                nursery.start_soon(self._loop)
                task_status.started()
        finally:
            self._nursery = None
            remove()
            self._transport.unregister(name)

    def _start_core(self) -> None:
        """From the log and the hard state to a running core; or wait for all voters when the hard state is lost."""
        recovered = self.storage.recovered(self._hard.state)
        self._recovered_commit = recovered.commit
        if recovered.memberships:
            self._use_membership(*recovered.memberships[-1])
        if self._birth.waiting_for:
            log.error("hard state lost; waiting for every voter's term", extra={"group": self.settings.group})
            return
        if self.storage.damage is not None:
            self._mending_for = MENDING
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
            self.settings.rules,
        )
        self._mending_for = ""
        self._note_removed()
        self._host.core_started(self.core)
        for node in self._members.connected_ids:
            self.core.link_up(node, self._node.now_ms())
        self._wake.set()

    def _start_writer(self) -> None:
        assert self._nursery is not None, "writers write while the group runs"
        self._writer = writer = LogWriter(self.storage, self._hard, self._written, self._turn_now)
        self._writer_scope = scope = trio.CancelScope()
        self._reported_seq = self._reported_hard_seq = 0
        self._disk = DiskWatch(self._node.config.election_ms)

        async def run() -> None:
            with scope:
                await writer.run()

        self._nursery.start_soon(run)

    async def _loop(self) -> None:
        while True:
            await self._wake.wait()
            if self._failure is not None:
                raise self._failure
            if self.core is not None and (self._held or self.storage.damage is not None):
                await self._stop_core()
            elif self._held and not self._mending:
                self._stop_being_born()
            elif self.core is not None:
                self._turn(self.core)
            elif self._mending:
                self._calls.clear()
                if self._resume:
                    self._mending = self._resume = False
                    self._start_core()
            else:
                await self._be_born()
            await self._welcome.hand_out()

    async def _be_born(self) -> None:
        ticked, self._tick_due = self._tick_due, False
        self._calls.clear()
        if await self._birth.step(ticked=ticked):
            self._start_core()
            # Links first hear that this replica is formed, then what it wants from them.
            self._members.reintroduce()

    async def _stop_core(self) -> None:
        """The log is damaged or about to be replaced: this replica promises nothing until `resume`."""
        self.core = None
        self._mending_for = INSTALLING if self._held else MENDING
        self._inbox.clear()
        self._calls.clear()
        self._feeders.clear_all()
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

    def _stop_being_born(self) -> None:
        """An empty log is about to be replaced by a member's: there is no core to stop."""
        self._mending_for = INSTALLING
        self._mending = True
        self._stopped.set()
        self._stopped = trio.Event()

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

    def _turn_now(self) -> None:
        """A turn in the present pass, unless the loop has something to do first. What it raises ends the loop."""
        core = self.core
        if core is None or self._held or self._turning or self._failure is not None or self.storage.damage is not None:
            self._wake.set()
            return
        try:
            self._turn(core)
        except Exception as error:
            self._failure = error
            self._wake.set()

    def _turn(self, core: RaftCore) -> None:
        self._turning = True
        try:
            self._take_turn(core)
        finally:
            self._turning = False

    def _take_turn(self, core: RaftCore) -> None:
        now_ms = self._node.now_ms()
        writer = self._writer
        if writer.done_seq > self._reported_seq:
            self._reported_seq = writer.done_seq
            core.append_done(writer.done_seq, now_ms)
            self._host.durable_moved()
        full = writer.fault is StorageFault.FULL
        if full and writer.hard_seq > max(self._reported_seq, self._reported_hard_seq):
            self._reported_hard_seq = writer.hard_seq
            core.hard_state_done(writer.hard_seq, now_ms)
        inbox, calls = self._inbox, self._calls
        while inbox:
            core.step(inbox.popleft(), now_ms)
        while calls:
            calls.popleft()(core, now_ms)
        if self._tick_due:
            self._tick_due = False
            core.tick(now_ms)
            self._disk.look(core, writer, trio.current_time(), now_ms)
            self._host.ticked()
        if core.role is Role.LEADER:
            self._host.form_entries()
        self._route(core.ready())

    def _written(self) -> None:
        """The writer ended a write (or met a fault)."""
        if self._writer.fault is not None:
            fault = self._writer.fault
            self._calls.append(lambda core, now_ms: self._disk.tell(core, fault, now_ms))
        self._wake.set()

    def _route(self, ready: Ready) -> None:
        group = self.settings.group
        if ready.appends:
            self._writer.put(ready.appends)  # first: the disk works while the rest is sent
        for message in ready.send:
            if type(message) is AppendRequest:
                assert self._nursery is not None, "messages leave while the group runs"
                self._feeders.push(message, self._nursery)
            else:
                link = self._members.link(message.to)
                if link is not None:
                    # An acknowledgement: somebody waits for it. The rest may share a frame with other groups'.
                    link.send_control(group, encode_message(message), prompt=type(message) is AppendReply)
        if ready.membership is not None:
            self._use_membership(*ready.membership)
            self._host.members_changed(ready.membership[1])
        if ready.role is not None:
            self._host.role_changed(ready.role)
        if ready.committed is not None:
            self._host.committed(*ready.committed)
        if ready.acknowledged:
            self._host.acknowledged(ready.acknowledged)
        if ready.rewind is not None:
            self._host.rewind_needed(ready.rewind)
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

    def _found_damage(self, error: StorageDamaged) -> None:
        self._wake.set()  # the loop looks at `storage.damage` first

    def _pending(self, first: int, last: int) -> Sequence[EntryLike]:
        return self.core.pending(first, last) if self.core is not None else ()

    # members and links

    @property
    def members(self) -> GroupMembers:
        """Who belongs to the group, and the links to them."""
        return self._members

    @property
    def store_uuid(self) -> str:
        """Which store this is: a replica whose disk was replaced comes with another one."""
        return self._birth.introduction().store_uuid

    @property
    def waiting_for(self) -> str:
        """Why there is no core, for status and logs; "" when there is one."""
        return self._mending_for or self._birth.waiting_for

    def _use_membership(self, index: int, membership: Membership) -> None:
        self._members.use(membership.voters + membership.learners, index)
        self._welcome.use(index, membership)
        self._note_removed()

    def _note_removed(self) -> None:
        if self.core is not None:
            self.core.retired = self._members.removed

    def _known_commit(self) -> int:
        return self.core.commit if self.core is not None else self._recovered_commit

    def joinable(self) -> list[NodeId]:
        """Members with an empty store that need an installation, because the log's beginning is gone here."""
        return self._welcome.joinable()

    def send_bulk(self, node: NodeId, fields: Sequence[Any], body: Sequence[bytes]) -> bool:
        """Send a driver message of the host behind everything urgent; False when there is no link."""
        link = self._members.link(node)
        return link is not None and link.send_bulk(self.settings.group, fields, body)

    def hello(self) -> dict[str, Any]:
        return hello_fields(self.settings.cluster, self.settings.group, self._birth.introduction())

    def check_hello(self, addr: Address, hello: dict[str, Any]) -> Mismatch | None:
        met = self._members.meet(addr, hello, self._birth.introduction())
        if isinstance(met, Mismatch):
            return met
        self._birth.hello(met)
        self._welcome.hello(met.node_id)
        self._wake.set()
        return None

    def link_up(self, addr: Address) -> None:
        node = self._members.id_of(addr)
        if node is not None:
            self.call(lambda core, now_ms: core.link_up(node, now_ms))
            self._host.link_changed(node, up=True)

    def link_down(self, addr: Address) -> None:
        node = self._members.lost(addr)
        if node is None:
            return
        self._birth.lost(node)
        self._feeders.clear(node)
        self._host.link_changed(node, up=False)

    def peer_gone(self, addr: Address) -> None:
        node = self._members.id_of(addr)
        if node is not None:
            self.call(lambda core, now_ms: core.link_down(node, now_ms))

    def receive(self, addr: Address, messages: Sequence[tuple[list[Any], memoryview]]) -> None:
        sender = self._members.id_of(addr)
        if sender is None:
            return
        for fields, body in messages:
            code = fields[0]
            if type(code) is int and code >= DRIVER_CODES:
                self._driver_message(sender, fields, body)
                continue
            message = decode_message(fields, body, sender, self.node_id, self.storage.parse)
            if self.core is not None:
                refusal = self.settings.rules.refuses(self.core, message)
                if refusal:
                    raise CodecError(refusal)
                self._inbox.append(message)
        self._turn_now()

    def receive_app(self, addr: Address, fields: list[Any], body: memoryview) -> None:
        sender = self._members.id_of(addr)
        if sender is not None:
            self._host.app_frame(sender, fields, body)

    def _driver_message(self, sender: NodeId, fields: list[Any], body: memoryview) -> None:
        if fields[0] == FORM and len(fields) == 4 and take_int(fields[1], 1) == KNOW and isinstance(fields[3], bytes):
            membership = self.storage.unpack_membership(fields[3])
            self._members.hear(take_int(fields[2], 1), membership)
            self._note_removed()
        elif fields[0] == FORM:
            self._birth.offered(sender, fields, body)
        else:
            self._host.driver_message(sender, fields, body)
