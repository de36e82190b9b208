"""The one who breaks things: draws faults from the plan until its time is over, then heals everything.

Each fault undoes itself after a while; `heal` undoes what is left. Faults may overlap, except where the promise would
not hold any more: the disks of one node only rot, and a full or failing disk is one node's at a time per group.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from broker.replica import Replica
from broker.replication.base import ChangeKind, MembershipChange, ReplicatorError
from tests.sim.world import CLIENT_IP, SimNode, World

__all__ = ["Nemesis"]

LASTS_S = (0.2, 1.0, 3.0)
REPLACED_WITHIN_S = 90.0
"""After healing."""


class Nemesis:
    """Faults of one run. At most what the plan allows; everything is undone by `heal`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = random.Random(f"{world.plan.seed}/nemesis")
        self.done: list[str] = []
        self._reached = world.oracle.reached
        self._replacing = False
        self._healed = False
        """What takes a while, like links that flap, ends."""
        self._actions: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": partial(self._fell, power=False),
            "power": partial(self._fell, power=True),
            "kill all": partial(self._fell_many, power=False, count=3),
            "power all": partial(self._fell_many, power=True, count=3),
            "kill majority": partial(self._fell_many, power=False, count=2),
            "stop": self._stop,
            "rolling": self._rolling,
            "replace": self._replace,
            "pause": self._pause,
            "clock jump": self._clock_jump,
            "isolate": self._isolate,
            "one way": self._one_way,
            "pair": self._pair,
            "clients cut": self._clients_cut,
            "flap": self._flap,
            "slow link": self._slow_link,
            "thin link": self._thin_link,
            "resets": self._resets,
            "slow disk": self._slow_disk,
            "hung disk": self._hung_disk,
            "sync error": partial(self._disk_error, "sync"),
            "write error": partial(self._disk_error, "write"),
            "read error": partial(self._disk_error, "pread"),
            "full disk": self._full_disk,
            "rot": self._rot,
            "transfer": self._transfer,
        }

    async def run(self) -> None:
        """Break things for `fault_s` seconds, then heal."""
        plan = self.world.plan
        end = trio.current_time() + plan.fault_s
        while True:
            await trio.sleep(self.rng.expovariate(1 / plan.fault_every_s) + 0.05)
            if trio.current_time() >= end:
                break
            if len(self.done) >= plan.faults_max:
                await trio.sleep_until(end)
                break
            fault = self.rng.choice(plan.faults)
            self.world.trace("fault", fault)
            self.done.append(fault)
            self._reached[fault] += 1
            await self._actions[fault]()
        await self.heal()

    async def heal(self) -> None:
        """Links, disks and machines work again, and who was being replaced is a voter again."""
        world = self.world
        world.trace("heal")
        self._healed = True
        await world.heal()
        await world.until(lambda: not self._replacing, REPLACED_WITHIN_S)

    # -- machines -------------------------------------------------------------------------------------------------

    def _victim(self) -> SimNode | None:
        """A running machine, more often than not one that leads."""
        up = [node for node in self.world.nodes if node.up]
        if not up:
            return None
        if self.rng.random() < 0.6:
            leader = self.world.leader(self.rng.choice(self.world.groups))
            if leader is not None:
                return leader
        return self.rng.choice(up)

    async def _fell(self, *, power: bool) -> None:
        victim = self._victim()
        if victim is not None:
            self._note(victim.name)
            await self._down(victim, power=power)
            self.world.nursery.start_soon(self._return, victim, self.rng.uniform(0.1, 3.0))

    async def _fell_many(self, *, power: bool, count: int) -> None:
        victims = self.rng.sample(self.world.nodes, count)
        async with trio.open_nursery() as falling:
            for node in victims:
                if node.up:
                    falling.start_soon(partial(self._down, node, power=power))
        for node in victims:
            self.world.nursery.start_soon(self._return, node, self.rng.uniform(0.1, 1.5))

    async def _down(self, node: SimNode, *, power: bool) -> None:
        self.world.kills += 1
        self._reached["power cut" if power else "kill -9"] += 1
        await node.kill(power=power)

    async def _return(self, node: SimNode, after_s: float) -> None:
        await trio.sleep(after_s)
        self.world.trace("return", node.name)
        await node.start()

    async def _stop(self) -> None:
        victim = self._victim()
        if victim is not None:
            self._note(victim.name)
            self.world.nursery.start_soon(self._restart, victim)

    async def _restart(self, node: SimNode) -> None:
        if await node.stop():
            self._reached["stopped cleanly"] += 1
        await trio.sleep(self.rng.uniform(0.05, 1.0))
        await node.start()

    async def _rolling(self) -> None:
        """Each machine in turn, the next one when all are well again."""

        async def roll() -> None:
            for node in self.world.nodes:
                if self._healed:
                    return
                await self._restart(node)
                await self.world.until(self._all_lead, 5.0)

        self.world.nursery.start_soon(roll)

    async def _replace(self) -> None:
        """A machine comes back with an empty disk: out of each group, in as a learner, and a voter again.

        Always the machine whose disk may rot: what two of three lose is beyond any log.
        """
        node = self.world.nodes[self.world.plan.rotten]
        if self._replacing or not node.up:
            return
        self._replacing = True
        self._note(node.name)
        await self._down(node, power=True)
        for disk in node.disks.values():
            disk.wipe()
            disk.rotted = False
        self.world.oracle.wiped(node.name)
        await node.start()

        async def rejoin() -> None:
            for group in self.world.groups:
                await self._change(
                    group, lambda: MembershipChange(kind=ChangeKind.REMOVE, node_id=node.name, maintenance=True)
                )
                await self._change(group, partial(self._joining, node, group))
                await self._change(group, lambda: MembershipChange(kind=ChangeKind.PROMOTE, node_id=node.name))
            self._reached["replaced"] += 1
            self._replacing = False

        self.world.nursery.start_soon(rejoin)

    def _joining(self, node: SimNode, group: str) -> MembershipChange | None:
        replica = self.world.replica(node, group)
        if replica is None:
            return None
        status = replica.replicator.status()
        return MembershipChange(
            kind=ChangeKind.ADD,
            node_id=node.name,
            address=status.peer_address,
            client_address=replica.address,
            uuid=status.store_uuid,
        )

    async def _change(self, group: str, wanted: Callable[[], MembershipChange | None]) -> None:
        """Ask whoever leads until it is done, as an operator would."""
        while True:
            await trio.sleep(0.2)
            leader = self.world.leader(group)
            replica = self.world.replica(leader, group) if leader is not None else None
            change = wanted()
            if replica is None or change is None:
                continue
            if self._is_done(replica, change):
                return
            with trio.move_on_after(5.0):
                try:
                    await replica.replicator.change(change)
                except ReplicatorError as error:
                    self.world.trace("change refused", change.kind, type(error).__name__, str(error))

    @staticmethod
    def _is_done(replica: Replica, change: MembershipChange) -> bool:
        known = replica.replicator.replicas
        voters = [node for node, _ in known.voters]
        learners = [node for node, _ in known.learners]
        if change.kind is ChangeKind.REMOVE:
            return change.node_id not in voters and change.node_id not in learners
        if change.kind is ChangeKind.ADD:
            return change.node_id in voters or change.node_id in learners
        return change.node_id in voters

    def _all_lead(self) -> bool:
        return all(self.world.leader(group) is not None for group in self.world.groups)

    async def _pause(self) -> None:
        victim = self._victim()
        if victim is None:
            return
        self._note(victim.name)
        victim.pause()
        lasts = self.rng.choice((0.1, 0.5, 2.0, 6.0))

        async def go_on() -> None:
            await trio.sleep(lasts)
            victim.resume()

        self.world.nursery.start_soon(go_on)

    async def _clock_jump(self) -> None:
        """The wall clock of one machine goes somewhere else, and perhaps comes back."""
        node = self.rng.choice(self.world.nodes)
        self._note(node.name)
        node.clock.jump_ms += self.rng.choice((-3_600_000, -5_000, 5_000, 900_000))

    # -- links ----------------------------------------------------------------------------------------------------

    def _later_mend(self, links: Sequence[tuple[str, str]], lasts: Sequence[float] = LASTS_S) -> None:
        seconds = self.rng.choice(lasts)

        async def mend() -> None:
            await trio.sleep(seconds)
            self.world.net.mend(links)

        self._reached["cut"] += 1
        self.world.nursery.start_soon(mend)

    def _cut(self, links: Sequence[tuple[str, str]], lasts: Sequence[float] = LASTS_S) -> None:
        for source, target in links:
            self.world.net.cut(source, target)
        self._later_mend(links, lasts)

    async def _isolate(self) -> None:
        """A minority on its own; at times the clients are on its side."""
        victim = self._victim()
        if victim is not None:
            self._note(victim.name)
            others = [node.ip for node in self.world.nodes if node is not victim]
            if self.rng.random() < 0.3:
                others.append(CLIENT_IP)
            self._cut([pair for other in others for pair in _both(victim.ip, other)])

    async def _one_way(self) -> None:
        source, target = self.rng.sample(self.world.nodes, 2)
        self._note(source.name, target.name)
        self._cut([(source.ip, target.ip)])

    async def _pair(self) -> None:
        """The bridge: two that do not see each other, and a third that sees both."""
        one, other = self.rng.sample(self.world.nodes, 2)
        self._note(one.name, other.name)
        self._cut(_both(one.ip, other.ip))

    async def _clients_cut(self) -> None:
        node = self.rng.choice(self.world.nodes)
        self._note(node.name)
        self._cut(_both(node.ip, CLIENT_IP), (0.5, 2.0, 20.0))

    async def _flap(self) -> None:
        victim = self._victim()
        if victim is None:
            return
        links = [pair for other in self.world.nodes if other is not victim for pair in _both(victim.ip, other.ip)]
        self._note(victim.name)
        rounds, rng = self.rng.randrange(3, 10), random.Random(self.rng.getrandbits(64))

        async def flap() -> None:
            for _ in range(rounds):
                if self._healed:
                    return
                for source, target in links:
                    self.world.net.cut(source, target)
                await trio.sleep(rng.uniform(0.05, 0.7))
                self.world.net.mend(links)
                await trio.sleep(rng.uniform(0.05, 0.7))

        self._reached["cut"] += 1
        self.world.nursery.start_soon(flap)

    async def _slow_link(self) -> None:
        one, other = self.rng.sample(self.world.nodes, 2)
        self.world.net.slow[one.ip, other.ip] = self.rng.choice((0.02, 0.1, 0.3))
        self._later_mend([(one.ip, other.ip)])

    async def _thin_link(self) -> None:
        one, other = self.rng.sample(self.world.nodes, 2)
        self.world.net.thin[one.ip, other.ip] = self.rng.choice((2_000.0, 20_000.0))
        self._later_mend([(one.ip, other.ip)])

    async def _resets(self) -> None:
        one = self.rng.choice(self.world.nodes)
        other = self.rng.choice([CLIENT_IP, *(node.ip for node in self.world.nodes if node is not one)])
        self._note(one.name, other)
        self.world.net.reset(one.ip, other)

    # -- disks ----------------------------------------------------------------------------------------------------

    async def _slow_disk(self) -> None:
        node = self.rng.choice(self.world.nodes)
        self._note(node.name)
        for disk in node.disks.values():
            disk.stall("sync", self.rng.choice((0.05, 0.3)), times=self.rng.choice((1, 5, 20)))

    async def _hung_disk(self) -> None:
        node = self._victim()
        if node is not None:
            self._note(node.name)
            for disk in node.disks.values():
                disk.stall("sync", self.rng.choice((2.0, 8.0)), times=1)

    async def _disk_error(self, kind: str) -> None:
        node = self._victim()
        if node is not None:
            self._note(node.name)
            node.disks[self.rng.choice(self.world.groups)].fail(kind, times=1)

    async def _full_disk(self) -> None:
        node = self._victim()
        if node is None:
            return
        self._note(node.name)
        disk = node.disks[self.rng.choice(self.world.groups)]
        disk.capacity = disk._used() + self.rng.choice((0, 0, 700, 20_000))
        lasts = self.rng.choice((0.5, 2.0, 5.0))

        async def room() -> None:
            await trio.sleep(lasts)
            disk.capacity = 1 << 40

        self.world.nursery.start_soon(room)

    async def _rot(self) -> None:
        """Bits flip on the disks of one node; it finds out when it reads them, at the latest when it starts."""
        node = self.world.nodes[self.world.plan.rotten]
        disk = node.disks[self.rng.choice(self.world.groups)]
        self._note(node.name, disk.rot(self.rng))

    # -- leadership -----------------------------------------------------------------------------------------------

    async def _transfer(self) -> None:
        group = self.rng.choice(self.world.groups)
        leader = self.world.leader(group)
        replica = self.world.replica(leader, group) if leader is not None else None
        if replica is None:
            return
        target = self.rng.choice((None, *(node.name for node in self.world.nodes)))
        with trio.move_on_after(2.0):
            try:
                await replica.replicator.transfer(target)
            except ReplicatorError as error:
                self.world.trace("transfer refused", type(error).__name__)

    def _note(self, *what: str) -> None:
        self.world.trace("at", *what)


def _both(one: str, other: str) -> list[tuple[str, str]]:
    return [(one, other), (other, one)]
