"""Planned work on a real cluster under load: rolling restarts, replaced disks, a group that grows, shrinks and moves.

Nothing acknowledged may be lost, no send may fail at our client, and the pauses are printed. A campaign sets
TRIMQ_MAINTENANCE_ROUNDS.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from tests.drills.maintenance import Site, local_cluster_of, open_site
from trimq.drill.verdict import Verdict

ROUNDS = int(os.environ.get("TRIMQ_MAINTENANCE_ROUNDS", "1"))
GROUP = "broker-a"


def judge(site: Site, verdicts: list[Verdict], name: str, pauses_ms: list[float]) -> None:
    """Assert that nothing was lost and no send failed; print the figures."""
    (verdict,) = verdicts
    listed = " ".join(f"{pause:.0f}" for pause in pauses_ms)
    print(
        f"{name}: acked {verdict.acked}, lost {verdict.lost}, duplicates {verdict.duplicates}, failed sends "
        f"{site.history.client_errors}, longest pause {max(pauses_ms):.0f} ms (each step: {listed})"
    )
    assert verdict.violations == 0, verdict.examples
    assert site.history.client_errors == 0
    assert verdict.acked > 200


@pytest.mark.slow
@pytest.mark.timeout(60 + 60 * ROUNDS)
def test_a_rolling_restart_fails_no_send(tmp_path: Path) -> None:
    verdicts: list[Verdict] = []
    pauses: list[float] = []
    sites: list[Site] = []

    async def work() -> None:
        async with open_site(cluster, verdicts) as site:
            sites.append(site)
            for node in cluster.nodes * ROUNDS:
                await site.stop(node)
                pauses.append(site.longest_ms())
                await site.start(node)
                await site.settled(cluster.nodes)
                pauses.append(site.longest_ms())

    with local_cluster_of(tmp_path, founders=3, nodes=3, groups=3) as cluster:
        trio.run(work)
    judge(sites[0], verdicts, "rolling restart (stop, start of each node)", pauses)


@pytest.mark.slow
@pytest.mark.timeout(60 + 60 * ROUNDS)
def test_each_of_three_nodes_is_replaced_by_an_empty_one(tmp_path: Path) -> None:
    verdicts: list[Verdict] = []
    pauses: list[float] = []
    sites: list[Site] = []

    async def work() -> None:
        async with open_site(cluster, verdicts) as site:
            sites.append(site)
            for node in cluster.nodes * ROUNDS:
                await site.stop(node)
                await site.wipe(node)
                await site.remove(node, GROUP, maintenance=True)
                await site.start(node)
                await site.add(node, GROUP)
                await site.settled(cluster.nodes)
                assert await site.voters(GROUP) == cluster.nodes
                pauses.append(site.longest_ms())

    with local_cluster_of(tmp_path, founders=3, nodes=3, groups=1) as cluster:
        trio.run(work)
    judge(sites[0], verdicts, "each node replaced by an empty one", pauses)


@pytest.mark.slow
@pytest.mark.timeout(60 + 60 * ROUNDS)
def test_three_become_five_and_three_again_and_the_leader_is_removed(tmp_path: Path) -> None:
    verdicts: list[Verdict] = []
    pauses: list[float] = []
    sites: list[Site] = []

    async def work() -> None:
        async with open_site(cluster, verdicts) as site:
            sites.append(site)
            for node in ("n3", "n4"):
                await site.start(node)
                await site.add(node, GROUP)
                pauses.append(site.longest_ms())
            assert await site.voters(GROUP) == cluster.nodes
            for _ in range(2):
                leader = await site.leader(GROUP)
                voters = await site.remove_by_command(leader, GROUP)
                assert sorted([*voters, leader]) == sorted(set(cluster.nodes) - site.gone)
                await site.settled(voters, GROUP)
                assert await site.voters(GROUP) == voters
                await site.unregistered(leader, GROUP)
                await trio.sleep(1)  # who was removed still runs: it disturbs nobody
                assert await site.leader(GROUP) in voters
                pauses.append(site.longest_ms())
                await site.leave(leader)
                pauses.append(site.longest_ms())

    with local_cluster_of(tmp_path, founders=3, nodes=5, groups=1) as cluster:
        trio.run(work)
    judge(sites[0], verdicts, "3 to 5 to 3, the leader removed twice", pauses)
