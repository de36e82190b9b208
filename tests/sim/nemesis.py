"""The one who breaks things: draws faults from the plan until its time is over, then heals everything."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from broker.replication.base import ReplicatorError
from tests.sim.world import Node, World

__all__ = ["Nemesis"]


class Nemesis:
    """Faults of one run. At most what the plan allows; everything is undone by `heal`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = random.Random(f"{world.plan.seed}/nemesis")
        self.done: list[str] = []
        self._actions: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": partial(self._fell, power=False),
            "power": partial(self._fell, power=True),
            "kill all": partial(self._fell_all, power=False),
            "power all": partial(self._fell_all, power=True),
            "isolate": self._isolate,
            "one way": self._one_way,
            "pair": self._pair,
            "slow link": self._slow_link,
            "slow disk": self._slow_disk,
            "sync error": self._sync_error,
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
            fault = self.rng.choice(plan.faults)
            self.world.trace("fault", fault)
            self.done.append(fault)
            await self._actions[fault]()
        await self.heal()

    async def heal(self) -> None:
        """Links, disks and machines work again."""
        self.world.trace("heal")
        self.world.net.heal()
        for node in self.world.nodes:
            for disk in node.disks.values():
                disk.heal()
        for node in self.world.nodes:
            await node.start()

    # -- machines -------------------------------------------------------------------------------------------------

    def _victim(self) -> Node | None:
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

    async def _fell_all(self, *, power: bool) -> None:
        async with trio.open_nursery() as falling:
            for node in self.world.nodes:
                if node.up:
                    falling.start_soon(partial(self._down, node, power=power))
        for node in self.world.nodes:
            self.world.nursery.start_soon(self._return, node, self.rng.uniform(0.1, 1.5))

    async def _down(self, node: Node, *, power: bool) -> None:
        self.world.kills += 1
        self.world.oracle.reached["power cut" if power else "kill"] += 1
        await node.kill(power=power)

    async def _return(self, node: Node, after_s: float) -> None:
        await trio.sleep(after_s)
        self.world.trace("return", node.name)
        await node.start()

    # -- links ----------------------------------------------------------------------------------------------------

    def _later_heal(self) -> None:
        async def heal() -> None:
            await trio.sleep(self.rng.choice((0.2, 1.0, 3.0)))
            self.world.net.heal()

        self.world.oracle.reached["cut"] += 1
        self.world.nursery.start_soon(heal)

    async def _isolate(self) -> None:
        victim = self._victim()
        if victim is not None:
            self._note(victim.name)
            for other in self.world.nodes:
                if other is not victim:
                    self.world.net.cut(victim.ip, other.ip)
                    self.world.net.cut(other.ip, victim.ip)
            self._later_heal()

    async def _one_way(self) -> None:
        source, target = self.rng.sample(self.world.nodes, 2)
        self._note(source.name, target.name)
        self.world.net.cut(source.ip, target.ip)
        self._later_heal()

    async def _pair(self) -> None:
        one, other = self.rng.sample(self.world.nodes, 2)
        self._note(one.name, other.name)
        self.world.net.cut(one.ip, other.ip)
        self.world.net.cut(other.ip, one.ip)
        self._later_heal()

    async def _slow_link(self) -> None:
        one, other = self.rng.sample(self.world.nodes, 2)
        self.world.net.slow[one.ip, other.ip] = self.rng.choice((0.02, 0.1, 0.3))
        self._later_heal()

    # -- disks ----------------------------------------------------------------------------------------------------

    async def _slow_disk(self) -> None:
        node = self.rng.choice(self.world.nodes)
        self._note(node.name)
        for disk in node.disks.values():
            disk.stall("sync", self.rng.choice((0.05, 0.3, 2.0)), times=self.rng.choice((1, 5, 20)))
        self.world.oracle.reached["slow disk"] += 1

    async def _sync_error(self) -> None:
        node = self._victim()
        if node is not None:
            self._note(node.name)
            group = self.rng.choice(self.world.groups)
            node.disks[group].fail("sync", times=1)
            self.world.oracle.reached["sync error"] += 1

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
