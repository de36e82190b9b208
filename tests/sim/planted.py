"""Bugs planted into the running system, which the simulation has to find: ways to lose what was acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raft.core import RaftCore
from tests.raft.core import planted as core_bugs
from tests.sim.plan import Plan, draw_plan
from tests.sim.world import World

__all__ = ["BUGS", "Bug"]


@dataclass(frozen=True, slots=True)
class Bug:
    """What is wrong, and a plan that gives it a chance to show."""

    name: str
    faults: tuple[str, ...]
    core_type: type[RaftCore] = RaftCore
    prepare: Callable[[World], None] | None = None

    def plan(self, seed: int) -> Plan:
        return draw_plan(seed, fault_s=6.0, faults=self.faults)


def _lying_disks(world: World) -> None:
    """A sync succeeds and does nothing, as in a write cache without a battery."""
    for node in world.nodes:
        for disk in node.disks.values():
            disk.lying = True


BUGS = (
    Bug("lying disks", ("power all",), prepare=_lying_disks),
    Bug("commits unverified entries", ("isolate", "pair", "kill"), core_type=core_bugs.CommitsUnverified),
    Bug("votes for any log", ("isolate", "kill"), core_type=core_bugs.VotesForAnyLog),
    Bug("counts itself before its sync", ("power", "power all", "slow disk"), core_type=core_bugs.CountsItselfEarly),
    Bug("match is one too high", ("isolate", "kill", "power"), core_type=core_bugs.MatchOffByOne),
    Bug("acknowledges before the write", ("power all", "slow disk"), core_type=core_bugs.AcksBeforeTheWrite),
)
