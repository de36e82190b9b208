"""Random clusters of pure cores: safety throughout, progress after healing; and the checker finds every planted bug."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from raft.core import InvariantBroken, RaftCore
from tests.raft.core import planted
from tests.raft.core.checker import Violation
from tests.raft.core.fuzz import run_seed

MUST_BE_REACHED = (
    "crash",
    "crash before a grant",
    "overwritten",
    "deposed with a tail",
    "install",
    "retention",
    "rot",
    "transfer",
    "membership change",
    "proposal refused",
    "barrier",
    "storage failed",
    "storage full",
    "storage slow",
    "storage stalled",
)


def run_seeds(seeds: Iterable[int]) -> Counter[str]:
    reached: Counter[str] = Counter()
    for seed in seeds:
        try:
            reached.update(run_seed(seed))
        except Exception as error:
            error.add_note(f"seed {seed}: run_seed({seed}) repeats it")
            raise
    return reached


def test_60_random_runs_break_nothing() -> None:
    reached = run_seeds(range(60))
    assert reached["leaders"] > 100
    assert reached["committed"] > 2_000


@pytest.mark.slow
@pytest.mark.computes
def test_300_random_runs_break_nothing_and_reach_every_state() -> None:
    reached = run_seeds(range(300))
    blind = [state for state in MUST_BE_REACHED if not reached[state]]
    assert not blind
    assert reached["leaders"] > 500
    assert reached["committed"] > 10_000


@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.parametrize("first", range(10_000, 13_000, 500))
def test_500_more_random_runs_break_nothing(first: int) -> None:
    run_seeds(range(first, first + 500))


def test_the_same_seed_gives_the_same_run() -> None:
    assert run_seed(7) == run_seed(7)


@pytest.mark.parametrize("mutant", planted.PLANTED, ids=lambda m: m.__name__)
def test_a_planted_bug_is_found(mutant: type[RaftCore]) -> None:
    focus = planted.FOCUS.get(mutant, ())
    for seed in range(500):
        try:
            run_seed(seed, mutant, focus=focus)
        except (Violation, InvariantBroken):
            return
    pytest.fail(f"{mutant.__name__} was not found in 500 seeds: the checker is blind")
