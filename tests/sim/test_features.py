"""Every message feature in the simulated load: its promise holds under faults, and its checker is not blind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.bug import Bug, find
from tests.sim.features.mix import FEATURES, settings_of
from tests.sim.features.planted import FEATURE_BUGS
from tests.sim.plan import FEATURES as DRAWN
from tests.sim.plan import Plan, draw_plan
from tests.sim.run import simulate


def plan_with(feature: str, seed: int, fault_s: float = 3.0) -> Plan:
    drawn = draw_plan(seed, fault_s, ("kill", "transfer", "resets"))
    return replace(drawn, features=(feature,), retention_s=0, without=("poppers", "tailers", "watchers"), groups=1)


def test_the_plan_draws_every_feature_there_is() -> None:
    assert tuple(FEATURES) == DRAWN
    drawn = [draw_plan(seed).features for seed in range(400)]
    assert {feature for each in drawn for feature in each} == set(DRAWN)
    assert max(map(len, drawn)) == 2
    assert any(not each for each in drawn)


def test_every_feature_has_a_planted_bug() -> None:
    assert {bug.feature for bug in FEATURE_BUGS} == set(DRAWN)


def test_features_do_not_want_different_brokers() -> None:
    for one in FEATURES.values():
        for other in FEATURES.values():
            assert all(other.broker[field] == value for field, value in one.broker.items() if field in other.broker)
    assert {"timer_roll_s", "delay_levels_ms"} == set(
        settings_of(replace(draw_plan(1), features=("retries", "delays")))
    )


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("feature", DRAWN)
def test_a_feature_keeps_its_promise_through_kills(feature: str) -> None:
    result = simulate(plan_with(feature, seed=11, fault_s=5.0))
    assert result.violations == []
    assert result.reached[f"feature: {feature}"] == 1
    assert sum(result.reached[state] for state in FEATURES[feature].states) > 0


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_run_with_features_is_the_same_run_each_time() -> None:
    plan = replace(plan_with("retries", seed=5, fault_s=2.0), features=("retries", "requests"))
    lines: list[list[str]] = [[], []]
    digests = [simulate(plan, keep=each.append).digest for each in lines]
    assert lines[0] == lines[1]
    assert digests[0] == digests[1]


AT_ONCE = [
    bug for bug in FEATURE_BUGS if bug.name.startswith(("ordered: a", "delays: a neigh", "broadcast", "filters: c"))
]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("bug", AT_ONCE, ids=lambda bug: bug.name)
def test_planted_bugs_of_features_that_show_at_once_are_found(bug: Bug) -> None:
    used, violation = find(bug, seeds=6)
    assert violation, f"not found in {used} seeds"
