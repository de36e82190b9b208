"""Short failover drills on real processes, and consumer offsets through failovers.

A campaign sets TRIMQ_DRILL_ROUNDS for the rounds of each; the suite keeps to a few.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio

from tests.drills.support import local_cluster
from trimq.drill.kinds import Fault
from trimq.drill.runner import Drill

ROUNDS = os.environ.get("TRIMQ_DRILL_ROUNDS")
RATE = 600


def run_drill(directory: Path, fault: Fault, rounds: int, *, websocket: bool = False) -> Drill:
    """One drill against a cluster of its own; asserts that it held and prints its figures."""
    rounds = int(ROUNDS or rounds)
    with local_cluster(directory, groups=3, troubled=fault.is_trouble) as cluster:
        drill = Drill(
            cluster=cluster,
            fault=fault,
            rounds=rounds,
            rate=RATE,
            topic=f"drill-{fault.value}",
            rng=random.Random(f"{fault.value}/{rounds}"),
            say=print,
            websocket=websocket,
        )
        verdict = trio.run(drill.run)
        print(f"{fault.value}: {verdict.as_json()}")
        assert not verdict.invalid
        assert verdict.violations == 0, verdict.examples
        assert verdict.rounds_hit == rounds
    return drill


@pytest.mark.slow
@pytest.mark.timeout(int(ROUNDS or 4) * 30 + 120)
def test_kills_lose_nothing_and_no_told_consumer_offset_goes_back(tmp_path: Path) -> None:
    """Four consumer groups: one that consumes, three that commit and ask all the time."""
    told = run_drill(tmp_path, Fault.KILL, 4).history.told_offsets
    groups: dict[str, int] = {}
    for (group, _), answers in told.items():
        groups[group] = groups.get(group, 0) + len(answers)
        assert answers == sorted(answers)
    print(f"told offsets: {groups}")
    assert len(groups) == 4
    assert all(answers > 20 for answers in groups.values())


@pytest.mark.slow
@pytest.mark.timeout(int(ROUNDS or 2) * 30 + 120)
def test_pauses_lose_nothing(tmp_path: Path) -> None:
    run_drill(tmp_path, Fault.PAUSE, 2)


@pytest.mark.slow
@pytest.mark.timeout(int(ROUNDS or 2) * 40 + 120)
def test_restarts_of_all_nodes_at_once_lose_nothing(tmp_path: Path) -> None:
    run_drill(tmp_path, Fault.RESTART, 2)


@pytest.mark.slow
@pytest.mark.timeout(int(ROUNDS or 3) * 30 + 120)
def test_kills_lose_nothing_for_clients_that_come_by_websocket(tmp_path: Path) -> None:
    run_drill(tmp_path, Fault.KILL, 3, websocket=True)


@pytest.mark.slow
@pytest.mark.timeout(int(ROUNDS or 6) * 30 + 120)
def test_partitions_lose_nothing(tmp_path: Path) -> None:
    """One round of each pattern."""
    run_drill(tmp_path, Fault.PARTITION, 6)


@pytest.mark.slow
@pytest.mark.timeout(int(ROUNDS or 1) * 40 + 120)
@pytest.mark.parametrize("fault", [Fault.DISK_FULL, Fault.DISK_ERROR, Fault.DISK_HANG, Fault.STALL])
def test_a_leader_in_trouble_loses_nothing(tmp_path: Path, fault: Fault) -> None:
    run_drill(tmp_path, fault, 1)
