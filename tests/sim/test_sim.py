"""Whole clusters, simulated: safety under faults, progress after healing, and the same seed always the same trace."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.sim.campaign import commit_id
from tests.sim.plan import draw_plan
from tests.sim.planted import BUGS, Bug, find
from tests.sim.run import simulate
from tests.sim.shrink import changes_of, rule_of, shrink

QUICK_SEEDS = range(100, 102)


def ledger(output: str) -> dict[str, str]:
    last = output.strip().splitlines()[-1]
    assert last.startswith("ledger ")
    return dict(field.split("=", 1) for field in last.split()[1:])


def run(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "tests.sim", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("seed", QUICK_SEEDS)
def test_a_seed_loses_doubles_and_reorders_nothing(seed: int) -> None:
    result = simulate(draw_plan(seed, fault_s=4.0))
    assert result.violations == []
    assert result.acked > 0


def test_the_same_seed_gives_the_same_trace_in_two_processes_with_different_hash_seeds() -> None:
    one = run("--seeds", "1", "--first-seed", "7", "--fault-seconds", "3", hash_seed="1")
    other = run("--seeds", "1", "--first-seed", "7", "--fault-seconds", "3", hash_seed="2")
    assert one.returncode == other.returncode == 0, one.stdout + one.stderr
    assert ledger(one.stdout) == ledger(other.stdout)
    assert one.stdout == other.stdout


def test_different_seeds_give_different_traces() -> None:
    assert simulate(draw_plan(1, 1.0)).digest != simulate(draw_plan(2, 1.0)).digest


def test_a_failing_run_is_made_smaller_while_it_breaks_the_same_rule() -> None:
    bug = next(bug for bug in BUGS if bug.name == "disk: a sync does nothing")
    plan = draw_plan(0, fault_s=5.0, faults=("power all", "kill", "slow link"))

    def violations(each: object) -> list[str]:
        return simulate(each, prepare=bug.prepare).violations  # type: ignore[arg-type]

    rule = rule_of(violations(plan)[0])
    small = shrink(plan, violations, rule, attempts=4)
    assert any(rule_of(each) == rule for each in violations(small))
    assert len(small.faults) < len(plan.faults)
    assert "faults" in changes_of(small)


@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.timeout(300)
def test_the_share_of_a_ci_run_breaks_nothing() -> None:
    name = os.environ.get("GITHUB_SHA") or commit_id()  # new seeds with every commit
    done = run("--ci", name, "--jobs", "2")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert ledger(done.stdout)["violations"] == "0"


SHOW_AT_ONCE = [
    bug for bug in BUGS if bug.name.startswith(("disk:", "core:", "driver:", "intake: answered", "client:"))
]


@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", SHOW_AT_ONCE, ids=lambda bug: bug.name)
def test_planted_bugs_that_show_at_once_are_found(bug: Bug) -> None:
    """A few of them, so that a checker that has gone blind is noticed; `python -m tests.sim --planted` has them all."""
    used, violation = find(bug, seeds=12)
    assert violation, f"not found in {used} seeds"
