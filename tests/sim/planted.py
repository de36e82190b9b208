"""Bugs planted into the running system, which the simulation has to find, each within 500 seeds.

From raft.md's list of what others got wrong, and from faults that tests of brokers must catch. Three kinds: a core that
decides wrongly (`core_type`, shared with the tests of the core), a world that lies (`prepare`), and product code with a
mistake in it (`patch`): driver, store, dispatch, intake, client. Each comes with the faults that give it a chance; the
load, the clocks and everything else are drawn as in any run.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from raft.core import RaftCore
from tests.raft.core import planted as core_bugs
from tests.sim.plan import Plan, draw_plan
from tests.sim.run import Result, simulate
from tests.sim.world import World

__all__ = ["BUGS", "SEEDS_MAX", "Bug", "find", "print_table"]

SEEDS_MAX = 500


@dataclass(frozen=True, slots=True)
class Bug:
    """What is wrong, and a plan that gives it a chance to show."""

    name: str
    faults: tuple[str, ...]
    core_type: type[RaftCore] = RaftCore
    prepare: Callable[[World], None] | None = None
    patch: Callable[[], AbstractContextManager[Any]] | None = None
    change: Callable[[Plan], Plan] = lambda plan: plan
    fault_s: float = 5.0

    def plan(self, seed: int) -> Plan:
        return self.change(draw_plan(seed, fault_s=self.fault_s, faults=self.faults))

    def run(self, seed: int) -> Result:
        return simulate(self.plan(seed), core_type=self.core_type, prepare=self.prepare, patch=self.patch)


def find(bug: Bug, seeds: int = SEEDS_MAX) -> tuple[int, str]:
    """(seeds used, first violation); the text is empty when none of the seeds found it."""
    for seed in range(seeds):
        violations = bug.run(seed).violations
        if violations:
            return seed + 1, violations[0]
    return seeds, ""


def _lying_disks(world: World) -> None:
    """A sync succeeds and does nothing, as in a write cache without a battery."""
    for node in world.nodes:
        for disk in node.disks.values():
            disk.lying = True


@contextmanager
def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """`owner.name` is `make(original)` within the block."""
    original = vars(owner)[name]
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


BUGS: tuple[Bug, ...] = (
    Bug("lying disks", ("power all",), prepare=_lying_disks),
    Bug("commits unverified entries", ("isolate", "pair", "kill"), core_type=core_bugs.CommitsUnverified),
    Bug("votes for any log", ("isolate", "kill"), core_type=core_bugs.VotesForAnyLog),
    Bug("counts itself before its sync", ("power", "power all", "slow disk"), core_type=core_bugs.CountsItselfEarly),
    Bug("match is one too high", ("isolate", "kill", "power"), core_type=core_bugs.MatchOffByOne),
    Bug("acknowledges before the write", ("power all", "slow disk"), core_type=core_bugs.AcksBeforeTheWrite),
)


def _find(number: int) -> tuple[int, int, str, float]:
    begun = time.process_time()
    used, violation = find(BUGS[number])
    return number, used, violation, time.process_time() - begun


def print_table(jobs: int = 1, only: str = "") -> int:
    """Look for all of them; status 1 when one was not found."""
    wanted = [number for number, bug in enumerate(BUGS) if only in bug.name]
    missed = 0
    print(f"{'planted bug':44} {'seeds':>5} {'cpu s':>6}  found as")
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=4) as pool:
        for number, used, violation, seconds in pool.imap(_find, wanted):
            missed += not violation
            print(f"{BUGS[number].name:44} {used:5} {seconds:6.1f}  {violation[:90] or 'NOT FOUND'}", flush=True)
    print(f"{len(wanted) - missed} of {len(wanted)} planted bugs found, each within {SEEDS_MAX} seeds")
    return 1 if missed else 0
