"""Whole clusters, simulated: safety under faults, progress after healing, and the same seed always the same trace."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.sim.plan import draw_plan
from tests.sim.planted import BUGS, Bug
from tests.sim.run import simulate

QUICK_SEEDS = range(4)


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
    result = simulate(draw_plan(seed, fault_s=5.0))
    assert result.violations == []
    assert result.acked > 20


def test_the_same_seed_gives_the_same_trace_in_two_processes_with_different_hash_seeds() -> None:
    one = run("--seeds", "2", "--first-seed", "7", "--hours", "0.002", hash_seed="1")
    other = run("--seeds", "2", "--first-seed", "7", "--hours", "0.002", hash_seed="2")
    assert one.returncode == other.returncode == 0, one.stdout + one.stderr
    assert ledger(one.stdout) == ledger(other.stdout)
    assert one.stdout == other.stdout


def test_different_seeds_give_different_traces() -> None:
    assert simulate(draw_plan(1, 1.0)).digest != simulate(draw_plan(2, 1.0)).digest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_50_seeds_break_nothing_and_reach_every_state() -> None:
    done = run("--seeds", "50")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert ledger(done.stdout)["violations"] == "0"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug) -> None:
    for seed in range(60):
        if simulate(bug.plan(seed), core_type=bug.core_type, prepare=bug.prepare).violations:
            return
    pytest.fail(f"{bug.name}: not found in 60 seeds, the simulation is blind")
