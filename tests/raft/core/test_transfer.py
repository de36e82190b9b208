"""Handing leadership over (Raft thesis 3.10): bounded, and never a reason for a group to refuse writes for long."""

from __future__ import annotations

import pytest

from raft.core import (
    AppendRequest,
    CampaignNow,
    NotLeader,
    Role,
    StorageFault,
    TransferRefused,
    Transferring,
    VoteRequest,
)
from tests.raft.core.cluster import Cluster, Replica
from tests.raft.core.model import members


def ready(nodes: str = "abc", learners: str = "") -> tuple[Cluster, Replica]:
    cluster = Cluster(nodes + learners, membership=members(nodes, learners))
    leader = cluster.elect("a")
    cluster.time(200)
    return cluster, leader


def transfer(leader: Replica, target: str | None) -> str:
    chosen = leader.core.transfer(target, leader.now_ms)
    leader.turn()
    return chosen


def test_an_up_to_date_target_leads_within_two_round_trips_and_without_pre_vote() -> None:
    cluster, leader = ready()
    since = len(cluster.trace)
    assert transfer(leader, "b") == "b"
    cluster.settle()
    assert cluster["b"].core.role == Role.LEADER
    assert cluster["b"].core.term == leader.core.term == 2
    asked = [m for m in cluster.trace[since:] if isinstance(m, VoteRequest)]
    assert all(m.transfer and not m.pre for m in asked)
    assert [t.done for t in leader.transfers] == [True]


def test_a_lagging_target_is_brought_up_to_date_first() -> None:
    cluster, leader = ready()
    cluster.held.add("b")
    leader.propose("x")
    cluster.settle()
    transfer(leader, "b")
    assert not [m for m in cluster.queue if isinstance(m, CampaignNow)]
    cluster.held.clear()
    cluster.settle()
    assert cluster["b"].core.role == Role.LEADER
    assert cluster["b"].core.last.index == 3


def test_proposals_are_refused_during_a_transfer_and_taken_again_after_an_abort() -> None:
    cluster, leader = ready()
    cluster.isolate("b")
    transfer(leader, "b")
    with pytest.raises(Transferring):
        leader.propose("x")
    cluster.time(360)
    assert leader.core.transferring
    cluster.time(80)
    assert [t.done for t in leader.transfers] == [False]
    leader.propose("x")
    cluster.settle()
    assert leader.core.commit == leader.core.last.index


def test_a_target_that_dies_costs_one_election_timeout() -> None:
    cluster, leader = ready()
    cluster["b"].crash()
    transfer(leader, "b")
    start = leader.now_ms
    while leader.core.transferring:
        cluster.time(20)
    assert leader.now_ms - start <= 420
    assert leader.core.role == Role.LEADER


def test_a_second_transfer_to_another_target_is_refused_and_to_the_same_one_is_the_same() -> None:
    cluster, leader = ready()
    cluster.isolate("b")
    transfer(leader, "b")
    assert transfer(leader, "b") == "b"
    assert transfer(leader, None) == "b"
    with pytest.raises(TransferRefused, match="under way"):
        transfer(leader, "c")


def test_an_order_to_campaign_that_is_lost_is_repeated_with_the_beats() -> None:
    cluster, leader = ready()
    transfer(leader, "b")
    cluster.lose(lambda m: isinstance(m, CampaignNow))
    cluster.time(120)
    assert cluster["b"].core.role == Role.LEADER


def test_a_step_down_during_a_transfer_clears_it_for_the_next_term_of_leadership() -> None:
    cluster, leader = ready()
    cluster.isolate("a")
    transfer(leader, "b")
    leader.step(VoteRequest(9, "c", "a", leader.core.last, 1, False, transfer=True))
    assert not leader.core.transferring
    assert len(leader.transfers) == 1
    cluster.heal()
    cluster["b"].core.link_down("a", 0)
    cluster.settle()
    cluster.time(3_000)
    again = cluster.leader()
    assert again is not None
    if again.id != "a":
        transfer(again, "a")
        cluster.settle()
    assert leader.core.role == Role.LEADER
    leader.propose("x")
    cluster.settle()
    assert leader.core.commit == leader.core.last.index


@pytest.mark.parametrize(
    ("target", "why"), [("a", "leads already"), ("z", "no member"), ("d", "learner"), ("c", "silent")]
)
def test_a_transfer_to_who_cannot_take_over_is_refused(target: str, why: str) -> None:
    cluster, leader = ready("abc", "d")
    cluster.isolate("c")
    cluster.time(500)
    with pytest.raises(TransferRefused, match=why):
        transfer(leader, target)
    assert not leader.core.transferring


def test_a_transfer_to_an_unhealthy_target_is_refused() -> None:
    cluster, leader = ready()
    cluster["b"].core.storage_failed(StorageFault.FULL, cluster["b"].now_ms)
    cluster.time(200)
    with pytest.raises(TransferRefused, match="full"):
        transfer(leader, "b")


def test_a_target_that_lags_by_many_megabytes_is_refused() -> None:
    cluster, leader = ready()
    cluster.held.add("b")
    for _ in range(9):
        leader.propose("x", size=1 << 20)
        cluster.settle()
    with pytest.raises(TransferRefused, match="too far behind"):
        transfer(leader, "b")


def test_only_a_leader_transfers() -> None:
    cluster, _ = ready()
    with pytest.raises(NotLeader):
        transfer(cluster["b"], "c")


def test_without_a_target_the_one_that_holds_most_is_chosen_then_the_preferred_one() -> None:
    cluster = Cluster("abcd", membership=members("abcd", ranks={"b": 2, "c": 1, "d": 0}))
    leader = cluster.elect("a")
    cluster.time(200)
    cluster.held.add("d")
    leader.propose("x")
    cluster.settle()
    assert transfer(leader, None) == "c"


def test_a_transfer_under_continuous_load_succeeds() -> None:
    cluster, leader = ready()
    for n in range(10):
        leader.propose(n)
    transfer(leader, "c")
    assert [m for m in cluster.queue if isinstance(m, AppendRequest)]
    cluster.settle()
    assert cluster["c"].core.role == Role.LEADER
    assert cluster["c"].core.last.index == 12


def test_an_order_to_campaign_of_an_older_term_or_of_a_stranger_is_ignored() -> None:
    cluster, _ = ready()
    b = cluster["b"]
    b.step(CampaignNow(0, "a", "b"))
    b.step(CampaignNow(1, "c", "b"))
    assert b.core.role == Role.FOLLOWER


def test_a_transfer_to_a_member_that_is_removed_meanwhile_ends() -> None:
    cluster, leader = ready("abcd")
    cluster.isolate("d")
    transfer(leader, "d")
    leader.core.memberships.appended(leader.core.last.index, members("abc"))
    leader.core._membership_changed()
    leader.turn()
    assert [t.reason for t in leader.transfers] == ["the target was removed"]
