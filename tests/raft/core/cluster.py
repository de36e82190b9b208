"""A cluster of pure cores in one thread, moved by hand: who hears what, whose write finishes, whose time passes.

Everything observable goes through the checker. `settle` delivers in order and finishes writes until nothing moves;
finer control comes from `hold` (a replica's writes stay unfinished), `cut` (links that lose everything) and `queue`
(messages under way, to be delivered, dropped or doubled one by one).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from raft.core import (
    AppendRequest,
    EntryLike,
    HardState,
    Health,
    Membership,
    Message,
    RaftConfig,
    RaftCore,
    ReadGrant,
    Ready,
    Recovered,
    Refused,
    Role,
    RoleChange,
    TransferEnd,
)
from tests.raft.core.checker import Checker
from tests.raft.core.model import Disk, Entry, Maker, members, seal

__all__ = ["Cluster", "Replica"]


class Replica:
    """One core on one disk."""

    def __init__(self, cluster: Cluster, node: str, disk: Disk) -> None:
        self.cluster = cluster
        self.id = node
        self.disk = disk
        self.now_ms = 0
        self.alive = False
        self.core: RaftCore
        self.reads: list[ReadGrant] = []
        self.transfers: list[TransferEnd] = []
        self.roles: list[RoleChange] = []
        self.installs: list[tuple[str, int]] = []
        self.lives = 0

    def start(self, health: Health = Health.OK) -> None:
        """A new core on what the disk holds."""
        found = [(0, self.cluster.first_membership)]
        for entry in self.disk.entries:
            if isinstance(entry, Entry) and isinstance(entry.payload, Membership):
                found.append((entry.index, entry.payload))
        self.lives += 1
        rng = random.Random(f"{self.cluster.seed}/{self.id}/{self.lives}")
        recovered = Recovered(self.disk.hard, self.disk.dropped, found[-2:], health)
        self.core = self.cluster.core_type(
            replace(self.cluster.config, node_id=self.id), rng, self.disk, self.cluster.maker, recovered, self.now_ms
        )
        self.alive = True
        self.cluster.checker.started(self.id, self.core)

    def crash(self, steps: int = 0) -> None:
        """Stop; of what was being written, `steps` more steps reach the disk."""
        self.alive = False
        self.disk.crash(steps)

    def turn(self) -> None:
        """Carry out what the core wants done."""
        if self.alive:
            ready = self.core.ready()
            if ready:
                self.cluster.carry_out(self, ready)

    def finish(self) -> None:
        """The oldest unfinished write reaches the disk."""
        seq = self.disk.finish()
        self.core.append_done(seq, self.now_ms)
        self.turn()

    def tick(self, ms: int = 20) -> None:
        """Time passes for this replica alone."""
        for _ in range(ms // 20):
            self.now_ms += 20
            if self.alive:
                self.core.tick(self.now_ms)
                self.turn()

    def step(self, message: Message) -> None:
        if self.alive:
            self.core.step(message, self.now_ms)
            self.turn()

    def propose(self, *payloads: object, size: int = 100) -> list[Entry]:
        """One entry per payload, in one proposal."""
        entries: list[Entry] = []
        for payload in payloads:
            prev = entries[-1] if entries else self.core.last
            entries.append(seal(prev, self.core.term, payload, size=size))
        self.core.propose(entries, self.now_ms)
        for entry in entries:
            self.cluster.checker.entry(self.id, entry)
        self.turn()
        return entries

    def has(self, role: Role) -> bool:
        return self.core.role == role

    def barrier(self, token: int) -> None:
        self.cluster.checker.asked(self.id, token)
        self.core.barrier(token, self.now_ms)
        self.turn()

    @property
    def terms(self) -> list[int]:
        """The terms of its log in memory."""
        ids = [self.core.entry_id(i) for i in range(1, self.core.last.index + 1)]
        return [i.term for i in ids if i is not None]


class Cluster:
    """Replicas, the messages between them, and the oracle."""

    def __init__(
        self,
        nodes: str | Sequence[str] = "abc",
        *,
        seed: int = 1,
        logs: Mapping[str, Sequence[EntryLike]] | None = None,
        hard: dict[str, HardState] | None = None,
        membership: Membership | None = None,
        config: RaftConfig | None = None,
        core_type: type[RaftCore] = RaftCore,
        maker: Maker | None = None,
    ) -> None:
        self.seed = seed
        self.config = config or RaftConfig(node_id="")
        self.core_type = core_type
        self.maker = maker or Maker()
        self.first_membership = membership or members(nodes)
        self.checker = Checker()
        self.queue: list[Message] = []
        self.dropped: list[Message] = []
        self.trace: list[Message] = []
        self.down: set[tuple[str, str]] = set()
        self.held: set[str] = set()
        self.replicas: dict[str, Replica] = {}
        for node in sorted(nodes):
            disk = Disk((logs or {}).get(node, ()), (hard or {}).get(node))
            self.replicas[node] = replica = Replica(self, node, disk)
            for entry in disk.entries:
                self.checker.entry(node, entry)
            replica.start()
        for replica in self.replicas.values():
            replica.turn()
        self.settle()

    def __getitem__(self, node: str) -> Replica:
        return self.replicas[node]

    # -- what replicas put out --------------------------------------------------------------------------------------

    def carry_out(self, replica: Replica, ready: Ready) -> None:
        core, checker = replica.core, self.checker
        if ready.role is not None:
            replica.roles.append(ready.role)
            if ready.role.role == Role.LEADER:
                checker.leads(replica.id, core)
        for batch in ready.appends:
            replica.disk.queue.append(batch)
            for entry in batch.entries:
                checker.entry(replica.id, entry)
        for message in ready.send:
            filled = self._fill(replica, message)
            if filled is None:
                continue
            checker.sent(replica.id, filled, replica.disk, core)
            self.trace.append(filled)
            if (message.sender, message.to) in self.down:
                self.dropped.append(filled)
            else:
                self.queue.append(filled)
        if ready.committed is not None:
            disks = {node: r.disk for node, r in self.replicas.items()}
            checker.commits_to(replica.id, core, *ready.committed, disks)
        replica.reads.extend(ready.reads)
        for grant in ready.reads:
            checker.granted(replica.id, grant.token, grant.index)
        for install in ready.installs:
            replica.installs.append((install.peer, install.next))
        if ready.transfer is not None:
            replica.transfers.append(ready.transfer)

    def _fill(self, replica: Replica, message: Message) -> Message | None:
        """What a driver does with a request: bytes from the log, the newest from the core; None if they do not fit."""
        if not isinstance(message, AppendRequest) or message.last == message.prev:
            return message
        first, last = message.prev.index + 1, message.last.index
        newest = replica.core.pending(first, last)
        entries = [*replica.disk.read(first, last - len(newest)), *newest]
        if not entries or entries[-1].index != last or entries[-1].crc != message.last.crc:
            return None
        return replace(message, entries=tuple(entries))

    # -- moving it --------------------------------------------------------------------------------------------------

    def settle(self, rounds: int = 10_000) -> None:
        """Deliver everything in order and finish all writes that are not held, until nothing moves."""
        for _ in range(rounds):
            moved = False
            for node, replica in self.replicas.items():
                if replica.alive and node not in self.held and replica.disk.queue:
                    replica.finish()
                    moved = True
            if self.queue:
                batch, self.queue = self.queue, []
                for message in batch:
                    self._arrive(message)
                moved = True
            if not moved:
                return
        raise AssertionError("it never settles: a message storm")

    def deliver(self, wanted: Callable[[Message], bool] = lambda _: True) -> int:
        """Deliver the messages now under way that match; returns how many."""
        now, self.queue = self.queue, []
        mine = [m for m in now if wanted(m)]
        self.queue = [m for m in now if not wanted(m)]
        for message in mine:
            self._arrive(message)
        return len(mine)

    def _arrive(self, message: Message) -> None:
        if (message.sender, message.to) in self.down:
            self.dropped.append(message)
        elif message.to in self.replicas:
            self.replicas[message.to].step(message)

    def lose(self, wanted: Callable[[Message], bool] = lambda _: True) -> int:
        """Lose the messages now under way that match; returns how many."""
        kept = [m for m in self.queue if not wanted(m)]
        lost = len(self.queue) - len(kept)
        self.queue = kept
        return lost

    def time(self, ms: int, *nodes: str) -> None:
        """Time passes for everybody (or for these), with delivery after each tick."""
        for _ in range(ms // 20):
            for node in nodes or tuple(self.replicas):
                self.replicas[node].tick()
            self.settle()

    def elect(self, node: str) -> Replica:
        """Time passes for `node` alone until it leads."""
        replica = self.replicas[node]
        for _ in range(400):
            replica.tick()
            self.settle()
            if replica.core.role == Role.LEADER:
                return replica
        raise AssertionError(f"{node} is not elected")

    def cut(self, one: str, other: str, *, one_way: bool = False) -> None:
        self.down.add((one, other))
        if not one_way:
            self.down.add((other, one))

    def isolate(self, node: str) -> None:
        for other in self.replicas:
            if other != node:
                self.cut(node, other)

    def heal(self) -> None:
        self.down.clear()

    def leader(self) -> Replica | None:
        """Who leads in the newest term, if anybody."""
        leading = [r for r in self.replicas.values() if r.alive and r.core.role == Role.LEADER]
        return max(leading, key=lambda r: r.core.term, default=None)

    def await_leader(self, ms: int = 8_000) -> Replica:
        """Let time pass until somebody leads and its no-op is committed."""
        for _ in range(ms // 20):
            self.time(20)
            leader = self.leader()
            if leader is not None and leader.core.own_term_committed:
                return leader
        raise AssertionError("nobody leads")

    def try_propose(self, node: str, payload: object) -> bool:
        try:
            self.replicas[node].propose(payload)
        except Refused:
            return False
        return True

    def count(self, kind: type[object], since: int = 0) -> int:
        """How many messages of a kind left anybody after the first `since`."""
        return sum(1 for m in self.trace[since:] if isinstance(m, kind))
