"""A planted bug: what is wrong, and how to look for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from raft.core import RaftCore
from tests.sim.plan import Plan, draw_plan
from tests.sim.run import Result, simulate
from tests.sim.world import World

__all__ = ["SEEDS_MAX", "Bug", "find", "replaced"]

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
    feature: str = ""
    """The one that it is a bug of; it is the only one in the load then."""

    def plan(self, seed: int) -> Plan:
        drawn = draw_plan(seed, fault_s=self.fault_s, faults=self.faults)
        if self.feature:
            return self.change(replace(drawn, features=(self.feature,), retention_s=0, without=("poppers",)))
        return self.change(replace(drawn, features=(), without=()))

    def run(self, seed: int) -> Result:
        return simulate(self.plan(seed), core_type=self.core_type, prepare=self.prepare, patch=self.patch)


def find(bug: Bug, seeds: int = SEEDS_MAX) -> tuple[int, str]:
    """(seeds used, first violation); the text is empty when none of the seeds found it."""
    for seed in range(seeds):
        violations = bug.run(seed).violations
        if violations:
            return seed + 1, violations[0]
    return seeds, ""


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """`owner.name` is `make(original)` within the block."""
    original = vars(owner)[name]
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)
