"""Master-slave under faults, from one seed: whole brokers and a name server in one deterministic run.

`python -m tests.sim.ha_world --seeds 50` prints a line per strategy and what was reached; exit status 1: a violation.

Faults: process crashes, power cuts, links cut and healed. Between them an operator promotes, sometimes by force where
nothing else is left (only under `async`), and moves the group to another strategy. What is checked afterwards, all
healed and one master found:

- replicas hold the same messages at the same offsets, each sent message at most once, none that nobody sent;
- `sync` with SYNC_FLUSH: everything acknowledged (code 0) is there, whatever happened;
- `async`: the same, unless a promotion was forced; then at most what was acknowledged since the replica that was made
  master had last been in sync is missing;
- after healing a fresh message is acknowledged in full.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections import Counter
from dataclasses import dataclass, field

import trio

from broker.config import FlushDiskType, Strategy
from broker.replication.ha.promotion import PromotionRefused
from broker.replication.raft_group import RaftReplicator
from tests.broker.cluster import Cluster, Node, in_sync, node_ip, open_master_slave, until
from tests.broker.support import drained, open_user
from trimq.errors import TrimqError
from trimq.sim.deterministic import VirtualClock, run_deterministic
from trimq.wire.codes import ResponseCode

FAULTS = 8
FAULT_KINDS = (
    *("kill", "kill", "power", "cut", "heal", "start", "start"),
    *("promote", "move", "takeover", "takeover", "die writing", "die writing", "lag"),
)
SENDERS = 3


@dataclass
class Run:
    """One seed of one strategy."""

    seed: int
    strategy: Strategy
    sent: dict[bytes, bool] = field(default_factory=dict)
    """Body to whether it was acknowledged."""
    reached: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    forced: bool = False
    takeovers: int = 0
    """Instead of random faults: so often the master is cut off, dies, is replaced and comes back."""

    def __post_init__(self) -> None:
        self.rng = random.Random(f"ha/{self.strategy.value}/{self.seed}")

    async def run(self, clock: VirtualClock) -> None:
        async with open_master_slave(self.strategy, flush_disk_type=FlushDiskType.SYNC_FLUSH) as cluster:
            async with trio.open_nursery() as nursery:
                for number in range(SENDERS):
                    nursery.start_soon(self._send, cluster, number)
                for _ in range(0 if self.takeovers else FAULTS):
                    await trio.sleep(self.rng.uniform(0.1, 1.5))
                    await self._fault(cluster)
                for _ in range(self.takeovers):
                    await trio.sleep(self.rng.uniform(0.1, 0.5))
                    await self._take_over(cluster)
                    await self._heal(cluster)
                nursery.cancel_scope.cancel()
            await self._heal(cluster)
            await self._judge(cluster)

    async def _send(self, cluster: Cluster, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        for count in range(1_000_000):
            body = b"%d/%d" % (number, count)
            node = rng.choice(cluster.nodes)
            if node.broker is not None and node.broker.replicas:
                self.sent[body] = False
                with trio.move_on_after(8):
                    try:
                        async with open_user(cluster.world, node.replica().address) as user:
                            answer = await user.send("T", body, props={"UNIQ_KEY": body.decode()})
                    except TrimqError:
                        continue
                    if answer.code == ResponseCode.SUCCESS:
                        self.sent[body] = True
                    self.reached[ResponseCode(answer.code).name.lower()] += 1
            await trio.sleep(rng.uniform(0.01, 0.1))

    # faults and the operator

    async def _fault(self, cluster: Cluster) -> None:
        up = [node for node in cluster.nodes if node.broker is not None]
        down = [node for node in cluster.nodes if node.broker is None]
        choice = self.rng.choice(FAULT_KINDS)
        if choice in ("kill", "power") and len(up) > 1:
            await self.rng.choice(up).kill(keep=1.0 if choice == "kill" else 0.0)
        elif choice == "cut" and up:
            number = self.rng.choice(up).number
            others = [node_ip(node.number) for node in cluster.nodes if node.number != number]
            cluster.world.network.cut(node_ip(number), others)
        elif choice == "heal":
            cluster.world.network.heal()
        elif choice == "start" and down:
            await self.rng.choice(down).start()
        elif choice == "promote" and up:
            await self._promote(self.rng.choice(up), force=self.strategy is Strategy.ASYNC and self.rng.random() < 0.3)
        elif choice == "move":
            await self._move(cluster)
        elif choice == "takeover":
            await self._take_over(cluster)
        elif choice == "die writing":
            await self._die_writing(cluster)
        elif choice == "lag":
            await self._lag(cluster)
        else:
            return
        self.reached[choice] += 1

    async def _take_over(self, cluster: Cluster) -> None:
        """The master is cut off while producers send to it, then it dies, and another one is made the master."""
        master = cluster.leader()
        if master is None:
            return
        others = [node for node in cluster.nodes if node is not master]
        cluster.world.network.cut(node_ip(master.number), [node_ip(node.number) for node in others])
        await trio.sleep(self.rng.uniform(0.2, 1.5))
        await master.kill(keep=self.rng.choice((0.0, 1.0)))
        cluster.world.network.heal()
        await trio.sleep(self.rng.uniform(0.5, 1.5))
        for node in others:
            if await self._promote(node, force=False):
                self.reached["master replaced"] += 1
                return
        if self.strategy is Strategy.ASYNC:
            await self._promote(others[0], force=True)

    async def _lag(self, cluster: Cluster) -> None:
        """A slave is cut off while the others go on, then the master dies: first the one that lags is asked to lead."""
        master = cluster.leader()
        slaves = [node for node in cluster.nodes if node is not master and node.broker is not None]
        if master is None or len(slaves) < 2:
            return
        self.rng.shuffle(slaves)
        lags = slaves[0]
        cluster.world.network.cut(node_ip(lags.number), [node_ip(n.number) for n in cluster.nodes if n is not lags])
        await trio.sleep(self.rng.uniform(0.3, 1.5))
        await master.kill(keep=self.rng.choice((0.0, 1.0)))
        cluster.world.network.heal()
        await trio.sleep(self.rng.uniform(0.5, 1.5))
        for node in slaves:
            if await self._promote(node, force=False):
                self.reached["shorter log leads" if node is lags else "shorter log refused"] += 1
                return

    async def _die_writing(self, cluster: Cluster) -> None:
        """The master dies while its own writes hang: its slaves hold what it does not. Then it comes back."""
        master = cluster.leader()
        if master is None:
            return
        disk = cluster.world.disk(f"n{master.number}/broker-a")
        disk.stall("write", 1.0)
        await trio.sleep(self.rng.uniform(0.05, 0.5))
        await master.kill(keep=self.rng.choice((0.0, 1.0)))
        disk.heal()
        await trio.sleep(self.rng.uniform(0.1, 1.0))
        await master.start()
        await trio.sleep(2)
        if cluster.leader() is master:
            self.reached["master came back"] += 1

    async def _promote(self, node: Node, *, force: bool) -> bool:
        found = replicator(node)
        if found is None or not found.formed or found.is_ready:
            return False
        self.forced |= force
        with trio.move_on_after(10):
            try:
                await found.promote(force=force)
            except PromotionRefused:
                self.reached["promotion refused"] += 1
                return False
            except Exception as error:  # the replica is being opened anew
                self.reached[type(error).__name__] += 1
                return False
            self.reached["forced" if force else "promoted"] += 1
            return True
        return False

    async def _move(self, cluster: Cluster) -> None:
        """There and back, so that the strategy under test has the longer share."""
        for strategy in ("raft", self.strategy.value):
            master = cluster.leader()
            found = replicator(master) if master is not None else None
            if found is None:
                return
            with trio.move_on_after(1):
                try:
                    await found.set_strategy(strategy)
                    self.reached[f"moved to {strategy}"] += 1
                except Exception as error:  # refused, or leadership went: that is no violation
                    self.reached[type(error).__name__] += 1

    async def _heal(self, cluster: Cluster) -> None:
        cluster.world.network.heal()
        for node in cluster.nodes:
            if node.broker is None:
                await node.start()
        with trio.move_on_after(60):
            while True:
                await trio.sleep(3)
                master = cluster.leader()
                found = replicator(master) if master is not None else None
                if found is not None and found.strategy == "raft":
                    await self._back(found)
                elif len(in_sync(cluster)) == len(cluster.nodes):
                    return
                elif master is None:
                    for node in cluster.nodes:
                        if await self._promote(node, force=False):
                            break
        self.violations.append("after healing the group is not whole within 60 s")

    async def _back(self, found: RaftReplicator) -> None:
        with trio.move_on_after(2):
            try:
                await found.set_strategy(self.strategy.value)
            except Exception as error:
                self.reached[type(error).__name__] += 1

    # the verdict

    async def _judge(self, cluster: Cluster) -> None:
        if self.violations:
            return
        master = cluster.leader()
        assert master is not None
        async with open_user(cluster.world, master.replica().address) as user:
            answer = await user.send("T", b"fresh")
        if answer.code != ResponseCode.SUCCESS:
            self.violations.append(f"a fresh message is answered {answer.code} after healing")
        await until(lambda: len({node.replica().store.dispatched for node in cluster.nodes}) == 1, 30)
        readings: list[list[bytes]] = []
        for node in cluster.nodes:
            async with open_user(cluster.world, node.replica().address) as user:
                topic = node.replica().state.topics.get(b"T")
                assert topic is not None
                end = node.replica().store.queues.next_offset(topic.tid << 16)
                readings.append([message.body for message in await drained(user, "T", 0, end)])
        if any(reading != readings[0] for reading in readings):
            self.violations.append("the replicas differ")
        stored = Counter(readings[0])
        doubled = [body for body, count in stored.items() if count > 1]
        if doubled:
            self.violations.append(f"stored twice: {doubled[:3]}")
        unknown = [body for body in stored if body not in self.sent and body != b"fresh"]
        if unknown:
            self.violations.append(f"nobody sent {unknown[:3]}")
        lost = [body for body, acked in self.sent.items() if acked and body not in stored]
        if lost and not (self.strategy is Strategy.ASYNC and self.forced):
            self.violations.append(f"acknowledged and lost: {lost[:3]} and {len(lost)} in all")
        self.reached["acked"] += sum(self.sent.values())
        self.reached["lost by force"] += len(lost)


def replicator(node: Node) -> RaftReplicator | None:
    """The replica's, while it runs."""
    if node.broker is None or not node.broker.replicas:
        return None
    found = node.replica().replicator
    assert isinstance(found, RaftReplicator)
    return found


def simulate(seed: int, strategy: Strategy, *, takeovers: int = 0) -> Run:
    """One run, to its verdict."""
    run = Run(seed, strategy, takeovers=takeovers)
    try:
        run_deterministic(run.run, seed)
    except BaseException as error:
        run.violations.append(f"{type(error).__name__}: {error}")
    return run


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.sim.ha_world")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--takeovers", type=int, default=0, help="rounds of kill and promotion in each run")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    failed = 0
    for strategy in (Strategy.SYNC, Strategy.ASYNC):
        reached: Counter[str] = Counter()
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            run = simulate(seed, strategy, takeovers=arguments.takeovers)
            reached += run.reached
            for violation in run.violations:
                failed += 1
                print(f"{strategy.value} seed {seed}: {violation}", flush=True)
        print(f"{strategy.value}: seeds={arguments.seeds} {dict(sorted(reached.items()))}", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
