"""Short drills of what is decided later, on real processes: delays, times, transactions, with leaders killed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from tests.drills.later import delays, small_cluster, transactions


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_delayed_messages_come_once_and_none_early_through_kills(tmp_path: Path) -> None:
    async def run() -> None:
        seen = await delays(cluster, levels=400, timed=200, kills=2, span_s=8, rng=random.Random("delays"))
        print(f"delays: {seen.as_json()}")
        assert seen.violations == 0
        assert seen.sent >= 590

    with small_cluster(tmp_path) as cluster:
        trio.run(run)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_transactions_are_visible_as_decided_through_kills(tmp_path: Path) -> None:
    async def run() -> None:
        seen = await transactions(cluster, count=300, kills=2, rng=random.Random("transactions"))
        print(f"transactions: {seen.as_json()}")
        assert seen.violations == 0
        assert seen.begun >= 280
        assert seen.left > 10

    with small_cluster(tmp_path) as cluster:
        trio.run(run)
