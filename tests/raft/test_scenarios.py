"""The scenario files say exactly what the core does (see `scenario.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.raft.scenario import SCENARIOS, play

FILES = sorted(SCENARIOS.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_trace_is_as_written(path: Path) -> None:
    assert play(path.read_text()) == path.read_text()


def test_there_is_a_scenario_of_every_kind() -> None:
    assert {path.stem for path in FILES} >= {
        "aba", "crossed-campaigns", "election", "figure-7", "figure-8", "membership", "probe-replicate", "slow-disk",
        "transfer",
    }  # fmt: skip
