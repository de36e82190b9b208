"""The small world of masters and slaves holds, and can see a broken promise."""

from __future__ import annotations

import pytest

from broker.config import Strategy
from broker.replication.ha.rules import GroupRules
from tests.sim.ha_world import simulate

pytestmark = [pytest.mark.slow, pytest.mark.computes]


@pytest.mark.parametrize("strategy", [Strategy.SYNC, Strategy.ASYNC])
def test_the_promises_of_a_strategy_hold(strategy: Strategy) -> None:
    runs = [simulate(seed, strategy) for seed in (1, 2)]
    assert [run.violations for run in runs] == [[], []]
    assert all(run.reached["acked"] > 20 for run in runs)


def test_the_same_seed_gives_the_same_run() -> None:
    first, second = simulate(3, Strategy.SYNC), simulate(3, Strategy.SYNC)
    assert (first.sent, first.reached) == (second.sent, second.reached)


def test_a_master_that_acknowledges_alone_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GroupRules, "_acknowledged", lambda self, core, membership, reached: reached[core.id])
    for seed in range(1, 20):
        run = simulate(seed, Strategy.SYNC)
        if any("acknowledged and lost" in violation for violation in run.violations):
            return
    raise AssertionError("acknowledging alone went unnoticed for 19 seeds")


def test_a_vote_for_whatever_is_shorter_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slave yields what it has beyond the candidate to the returning master only."""
    monkeypatch.setattr(GroupRules, "yields_tail", lambda *_: True)
    for seed in range(1, 40):
        run = simulate(seed, Strategy.SYNC)
        if any("acknowledged and lost" in violation for violation in run.violations):
            return
    raise AssertionError("votes for shorter logs went unnoticed for 39 seeds")
