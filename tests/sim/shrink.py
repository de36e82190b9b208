"""Make a failing run smaller while it still fails: fewer kinds of faults, fewer faults, less time, less load.

A smaller plan is another run, with other random choices in it; so each piece that is dropped is a new attempt, and what
is kept is whatever still breaks the *same rule* (the word before the colon). The result is printed as the command that
repeats it; the bug gets a named test in the suite of the part that had it (docs/track-record.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from tests.sim.plan import Plan, draw_plan

__all__ = ["changes_of", "rule_of", "shrink"]


def rule_of(violation: str) -> str:
    """What a violation breaks: S6, I10, lost, duplicates, bug ..."""
    return violation.removeprefix("SafetyViolation: ").partition(":")[0]


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Neighbours of a plan, the bolder ones first."""
    if plan.groups > 1:
        yield replace(plan, groups=1)
    if len(plan.faults) > 2:
        half = len(plan.faults) // 2
        yield replace(plan, faults=plan.faults[:half])
        yield replace(plan, faults=plan.faults[half:])
    if len(plan.faults) > 1:
        for fault in plan.faults:
            yield replace(plan, faults=tuple(f for f in plan.faults if f != fault))
    if plan.fault_s > 3:
        yield replace(plan, fault_s=plan.fault_s / 2)
        yield replace(plan, fault_s=round(plan.fault_s - 1, 3))
    if plan.producers > 1:
        yield replace(plan, producers=1)
    for feature in plan.features:
        yield replace(plan, features=tuple(each for each in plan.features if each != feature))
    for piece in ("tailers", "watchers", "poppers", "consumers"):
        if piece not in plan.without:
            yield replace(plan, without=(*plan.without, piece))
    if len(plan.bursts) > 1:
        yield replace(plan, bursts=(1,))
    if plan.slow_consumer_s:
        yield replace(plan, slow_consumer_s=0.0)
    if any(plan.drift) or set(plan.rates) != {1.0}:
        yield replace(plan, drift=(0.0, 0.0, 0.0), rates=(1.0, 1.0, 1.0))


def shrink(plan: Plan, violations: Callable[[Plan], list[str]], rule: str, *, attempts: int = 60) -> Plan:
    """The smallest plan found with a bounded number of runs that still breaks `rule`."""
    left = attempts
    while True:
        for smaller in _smaller(plan):
            if left == 0:
                return plan
            left -= 1
            if any(rule_of(each) == rule for each in violations(smaller)):
                plan = smaller
                break
        else:
            return plan


def changes_of(plan: Plan) -> dict[str, object]:
    """The fields in which a plan differs from the one that its seed draws."""
    drawn = draw_plan(plan.seed, plan.fault_s)
    return {
        each.name: getattr(plan, each.name)
        for each in fields(plan)
        if getattr(plan, each.name) != getattr(drawn, each.name)
    }
