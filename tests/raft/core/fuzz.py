"""A random cluster of pure cores: messages lost, doubled and reordered, writes finishing in any order, crashes that
lose what was not synced, rot, retention and installs, transfers and membership changes.

One seed, one run. Each seed first draws what kind of run it is (swarm testing: faults that always come together hide
what each of them finds alone). At the end everything heals, and the cluster must make progress and agree.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from raft.core import (
    AppendRequest,
    Beat,
    Health,
    Member,
    Membership,
    Message,
    RaftConfig,
    RaftCore,
    Refused,
    Role,
    StorageFault,
    VoteReply,
)
from tests.raft.core.checker import Violation
from tests.raft.core.cluster import Cluster, Replica
from tests.raft.core.model import Maker, members

__all__ = ["Fuzz", "run_seed"]


class Fuzz:
    """One run. `reached` counts what must happen somewhere in each campaign, or the fuzzer has gone blind."""

    def __init__(self, seed: int, core_type: type[RaftCore] = RaftCore, focus: Sequence[str] = ()) -> None:
        self.seed = seed
        self.focus = focus
        """Faults that this run certainly has, and often."""
        self.rng = rng = random.Random(f"{seed}/fuzz")
        self.reached: Counter[str] = Counter()
        voters = rng.choice(["a", "abc", "abc", "abc", "abcde"])
        spare = "x" if len(voters) > 1 else ""
        self.nodes = voters + spare
        small = rng.random() < 0.3
        config = RaftConfig(node_id="", window_bytes=400, request_bytes=200, probe_bytes=100) if small else None
        self.cluster = Cluster(
            self.nodes,
            seed=seed,
            membership=members(voters, ranks={v: i for i, v in enumerate(voters)}),
            config=config,
            core_type=core_type,
            maker=Maker(rng.choice([0, 0, 5])),
        )
        self.voters = voters
        self.drop = rng.choice([0.0, 0.0, 0.02, 0.1, 0.3])
        self.double = rng.choice([0.0, 0.0, 0.05, 0.3])
        self.reorder = rng.random() < 0.5
        self.tokens = 0
        self.suspect: str | None = None
        self.actions = self._swarm()

    def _swarm(self) -> list[tuple[Callable[[], None], float]]:
        rng = self.rng
        often = rng.choice([0.3, 1.0, 3.0])
        always: list[tuple[Callable[[], None], float]] = [
            (self._deliver, 60.0),
            (self._finish, rng.choice([5.0, 20.0, 40.0])),
            (self._tick, rng.choice([5.0, 12.0, 25.0])),
            (self._propose, 8.0),
        ]
        sometimes: list[tuple[Callable[[], None], float]] = [
            (self._crash, 0.6),
            (self._cut, 0.5),
            (self._stall_one, 0.4),
            (self._hint, 0.3),
            (self._transfer, 0.4),
            (self._change_membership, 0.6),
            (self._retain, 0.5),
            (self._storage_fault, 0.2),
            (self._barrier, 1.0),
            (self._rot, 0.3),
            (self._usurp, 0.5),
        ]
        chosen = [(action, weight * often) for action, weight in sometimes if rng.random() < 0.5]
        chosen += [(action, 0.8) for action, _ in sometimes if action.__name__.strip("_") in self.focus]
        return always + chosen + [(self._restart, rng.choice([1.0, 4.0])), (self._heal, 0.6)]

    def run(self, steps: int = 2000) -> None:
        actions = [a for a, _ in self.actions]
        weights = [w for _, w in self.actions]
        for action in self.rng.choices(actions, weights, k=steps):
            action()
        self._end()

    # -- the normal course ------------------------------------------------------------------------------------------

    def _pick(self, *, alive: bool = True) -> Replica | None:
        found = [r for r in self.cluster.replicas.values() if r.alive == alive]
        return self.rng.choice(found) if found else None

    def _leader(self) -> Replica | None:
        leading = [r for r in self.cluster.replicas.values() if r.alive and r.core.role == Role.LEADER]
        return self.rng.choice(leading) if leading else None

    def _deliver(self) -> None:
        queue = self.cluster.queue
        if not queue:
            return
        at = self.rng.randrange(len(queue)) if self.reorder else 0
        message = queue.pop(at)
        chance = self.rng.random()
        if chance < self.drop or (message.sender, message.to) in self.cluster.down:
            return
        if chance > 1 - self.double:
            queue.append(message)
        self._arrive(message)

    def _arrive(self, message: Message) -> None:
        replica = self.cluster[message.to]
        if not replica.alive:
            return
        before, role = replica.core.last, replica.core.role
        replica.step(message)
        if isinstance(message, AppendRequest) and replica.core.entry_id(before.index) != before:
            self.reached["overwritten"] += 1
        if role == Role.LEADER and replica.core.role != Role.LEADER and replica.core.commit < before.index:
            self.reached["deposed with a tail"] += 1

    def _finish(self) -> None:
        writing = [r for r in self.cluster.replicas.values() if r.alive and r.disk.queue]
        if not writing:
            return
        replica = self.rng.choice(writing)
        together = self.rng.choice([1, 1, 1, 2, 5])
        seq = 0
        while together and replica.disk.queue:
            seq = replica.disk.finish()
            together -= 1
            if replica.disk.queue and replica.disk.queue[0].truncate_to is not None:
                break  # a writer reports before it cuts
        replica.core.append_done(seq, replica.now_ms)
        replica.turn()

    def _tick(self) -> None:
        for replica in self.cluster.replicas.values():
            if self.rng.random() < 0.95:
                replica.tick()

    def _propose(self) -> None:
        leader = self._leader()
        if leader is None:
            return
        count = self.rng.choice([1, 1, 2, 3])
        try:
            leader.propose(*(self.rng.randrange(1000) for _ in range(count)), size=self.rng.choice([64, 100, 300, 900]))
        except Refused:
            self.reached["proposal refused"] += 1

    # -- faults -----------------------------------------------------------------------------------------------------

    def _crash(self) -> None:
        for _ in range(self.rng.choice([1, 1, 1, 2, 5])):
            replica = self._pick()
            if replica is None:
                return
            pending = replica.disk.pending_steps()
            if any(isinstance(m, VoteReply) for b in replica.disk.queue for m in b.release):
                self.reached["crash before a grant"] += 1
            replica.crash(self.rng.randint(0, pending))
            self.reached["crash"] += 1

    def _restart(self) -> None:
        replica = self._pick(alive=False)
        if replica is not None:
            replica.start()
            replica.turn()

    def _cut(self) -> None:
        one, other = self.rng.sample(self.nodes, 2) if len(self.nodes) > 1 else (self.nodes[0], "")
        if self.rng.random() < 0.3:
            self.cluster.isolate(one)
        else:
            self.cluster.cut(one, other, one_way=self.rng.random() < 0.5)

    def _usurp(self) -> None:
        """Cut a leader off together with proposals that only it holds, while the others elect somebody."""
        leader = self._leader()
        if leader is None:
            return
        friend = self.rng.choice([None, *self.nodes])
        self.cluster.isolate(leader.id)
        if friend is not None and friend != leader.id:
            self.cluster.down -= {(leader.id, friend), (friend, leader.id)}
        for _ in range(self.rng.choice([1, 2, 4])):
            self.cluster.try_propose(leader.id, self.rng.randrange(1000))
        others = [r for r in self.cluster.replicas.values() if r.alive and r is not leader]
        if others:
            self.rng.choice(others).tick(self.rng.choice([500, 900]))
        for _ in range(self.rng.choice([10, 40])):
            self._deliver()
            self._finish()

    def _heal(self) -> None:
        self.cluster.heal()

    def _stall_one(self) -> None:
        """One replica's messages stay away for a while; its clock goes on."""
        node = self.rng.choice(self.nodes)
        self.cluster.queue = [m for m in self.cluster.queue if m.to != node]
        self.cluster[node].tick(self.rng.choice([100, 500, 900]))

    def _hint(self) -> None:
        replica = self._pick()
        if replica is not None:
            node = self.rng.choice(self.nodes)
            if self.rng.random() < 0.5:
                replica.core.link_down(node, replica.now_ms)
            else:
                replica.core.link_up(node, replica.now_ms)
            replica.core.behind = self.rng.random() < 0.3
            replica.turn()

    def _transfer(self) -> None:
        leader = self._leader()
        if leader is not None:
            try:
                leader.core.transfer(self.rng.choice([None, *self.nodes]), leader.now_ms)
                self.reached["transfer"] += 1
            except Refused:
                pass
            leader.turn()

    def _change_membership(self) -> None:
        leader = self._leader()
        if leader is None or leader.core.membership is None:
            return
        old = leader.core.membership
        node = self.rng.choice(self.nodes)
        voters = {m.id: m for m in old.voters}
        learners = {m.id: m for m in old.learners}
        if node in voters:
            del voters[node]
        elif node in learners:
            voters[node] = learners.pop(node)
        else:
            learners[node] = Member(node)
        new = Membership(
            tuple(voters[k] for k in sorted(voters)), tuple(learners[k] for k in sorted(learners)), old.detail
        )
        try:
            leader.core.change_membership(new, leader.now_ms)
            self.reached["membership change"] += 1
        except Refused:
            pass
        leader.turn()

    def _retain(self) -> None:
        replica = self._pick()
        if replica is not None:
            limit = min(replica.core.commit, replica.core.durable, len(replica.disk.entries) - 2)
            if limit > replica.disk.dropped:
                replica.disk.dropped = self.rng.randint(replica.disk.dropped, limit)
                self.reached["retention"] += 1
        self._install()

    def _install(self) -> None:
        """Do what installers do for each peer that a leader gave up feeding entries."""
        for leader in self.cluster.replicas.values():
            wanted, leader.installs = leader.installs, []
            for node, _ in wanted:
                target = self.cluster[node]
                if not (leader.alive and leader.core.role == Role.LEADER and target.alive):
                    continue
                end = min(leader.core.commit, leader.core.durable)
                last = leader.core.entry_id(end)
                if last is None or not target.core.may_install(last):
                    continue
                target.crash(0)
                target.disk.install(leader.disk, end)
                target.start(Health.SUSPECT if target.disk.hard.suspect else Health.OK)
                target.turn()
                self.reached["install"] += 1

    def _storage_fault(self) -> None:
        replica = self._pick()
        if replica is None:
            return
        fault = self.rng.choice(list(StorageFault))
        replica.core.storage_failed(fault, replica.now_ms)
        replica.turn()
        self.reached[f"storage {fault.value}"] += 1
        if fault is StorageFault.FAILED:
            replica.crash(self.rng.randint(0, replica.disk.pending_steps()))
        elif self.rng.random() < 0.7:
            self._tick()
            replica.core.storage_recovered(replica.now_ms)
            replica.turn()

    def _barrier(self) -> None:
        leader = self._leader()
        if leader is not None:
            self.tokens += 1
            leader.barrier(self.tokens)
            self.reached["barrier"] += 1

    def _rot(self) -> None:
        """Synced entries of one replica vanish; recovery notices and says suspect. One replica at a time."""
        if self.suspect is not None:
            other = self.cluster[self.suspect]
            if not other.alive or other.core.health != Health.OK or other.disk.hard.suspect:
                return
        if len(self.voters) < 3:
            return
        replica = self._pick()
        if replica is None:
            return
        lost = self.rng.randint(0, min(self.rng.choice([1, 3, 20]), len(replica.disk.entries) - replica.disk.dropped))
        replica.crash(0)
        if lost:
            replica.disk.rot(lost)
        replica.start(Health.SUSPECT)
        replica.turn()
        self.suspect = replica.id
        self.reached["rot"] += 1

    # -- the end ----------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Heal everything; then there must be progress, and agreement."""
        cluster = self.cluster
        cluster.heal()
        for replica in cluster.replicas.values():
            if not replica.alive:
                replica.start()
            replica.core.storage_recovered(replica.now_ms)
            replica.turn()
        for _ in range(40):
            cluster.time(200)
            self._install()
            cluster.settle()
            if self._converged():
                break
        else:
            states = [r.core.status() for r in cluster.replicas.values()]
            raise Violation(f"L: no progress after healing: {states}")
        cluster.checker.same_logs({n: r.core for n, r in cluster.replicas.items()})

    def _converged(self) -> bool:
        leader = self.cluster.leader()
        if leader is None or not leader.core.own_term_committed:
            return False
        if not self.cluster.try_propose(leader.id, "last"):
            return False
        self.cluster.settle()
        self.cluster.time(200)
        membership = leader.core.membership
        assert membership is not None
        for node in (*membership.voter_ids, *membership.learner_ids):
            core = self.cluster[node].core
            if core.last != leader.core.last or core.commit != leader.core.commit or core.health != Health.OK:
                return False
        return True


def run_seed(
    seed: int, core_type: type[RaftCore] = RaftCore, steps: int = 2000, focus: Sequence[str] = ()
) -> Counter[str]:
    """Run one seed; returns what it reached. Raises Violation (or the core's own InvariantBroken)."""
    fuzz = Fuzz(seed, core_type, focus)
    fuzz.run(steps)
    checker = fuzz.cluster.checker
    fuzz.reached["committed"] += len(checker.committed)
    fuzz.reached["leaders"] += len(checker.leaders)
    fuzz.reached["beats"] += fuzz.cluster.count(Beat)
    return fuzz.reached
