"""Figures 7 and 8 of the Raft paper."""

from __future__ import annotations

import pytest

from raft.core import AppendReply, AppendRequest, HardState, Message, RaftConfig, RaftCore, Role
from tests.raft.core.checker import Violation
from tests.raft.core.cluster import Cluster
from tests.raft.core.model import seal_terms
from tests.raft.core.planted import CountsOldTerms

LEADER = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
FOLLOWERS = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "b": [1, 1, 1, 4],
    "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


def figure_7(node: str) -> Cluster:
    """The leader of term 8 and this follower, with enough others for a quorum."""
    logs = {node: seal_terms(FOLLOWERS[node])} | {n: seal_terms(LEADER) for n in "xyz"}
    hard = {node: HardState(term=7)} | {n: HardState(term=7) for n in "xyz"}
    return Cluster([node, *"xyz"], logs=logs, hard=hard)


@pytest.mark.parametrize("node", sorted(FOLLOWERS))
def test_figure_7_each_follower_converges_within_one_probe_per_divergent_term(node: str) -> None:
    cluster = figure_7(node)
    leader = cluster.elect("x")
    assert leader.core.term == 8
    assert cluster[node].terms == [*LEADER, 8]
    assert cluster[node].core.last == leader.core.last
    rejections = [m for m in cluster.trace if isinstance(m, AppendReply) and m.rejected >= 0]
    assert len(rejections) <= len(set(FOLLOWERS[node])) + 1


@pytest.mark.parametrize("node", sorted(FOLLOWERS))
def test_figure_7_nothing_committed_is_lost(node: str) -> None:
    cluster = figure_7(node)
    leader = cluster.elect("x")
    cluster.time(200)
    assert leader.core.commit == 11
    assert cluster[node].core.commit == 11
    assert [e.term for e in cluster[node].disk.entries] == [*LEADER, 8]


def figure_8(core_type: type[RaftCore] = RaftCore) -> Cluster:
    """Before step (c): s1 holds index 2 of term 2, s5 holds index 2 of term 3, s5 is cut off."""
    logs = {n: seal_terms([1]) for n in "234"} | {"1": seal_terms([1, 2]), "5": seal_terms([1, 3])}
    hard = {n: HardState(term=3) for n in "12345"}
    one_entry_each = RaftConfig(node_id="", window_bytes=100, request_bytes=100, probe_bytes=100)
    cluster = Cluster("12345", logs=logs, hard=hard, config=one_entry_each, core_type=core_type)
    cluster.isolate("5")
    return cluster


def copy_index_2(cluster: Cluster) -> None:
    """Step (c): s1 leads term 4 and copies index 2 to the others; its own no-op, index 3, reaches nobody."""

    def is_noop(message: Message) -> bool:
        holds = cluster[message.to].core.last.index >= 2
        return isinstance(message, AppendRequest) and bool(message.entries) and message.prev.index >= 2 and holds

    for _ in range(60):
        cluster["1"].tick()
        for _ in range(20):
            for node in "1234":
                while cluster[node].disk.queue:
                    cluster[node].finish()
            cluster.lose(is_noop)
            cluster.deliver()
    assert cluster["1"].core.role == Role.LEADER
    assert cluster["1"].core.term == 4
    assert [cluster[n].terms for n in "1234"] == [[1, 2, 4], [1, 2], [1, 2], [1, 2]]


def test_figure_8_an_old_entry_on_a_majority_is_not_committed_by_counting() -> None:
    cluster = figure_8()
    copy_index_2(cluster)
    assert [p.match for p in cluster["1"].core.status().peers] == [2, 2, 2, 0]
    assert cluster["1"].core.commit == 0, "four of five hold index 2, but its term is 2, not 4"


def test_figure_8_counting_it_would_be_caught() -> None:
    cluster = figure_8(CountsOldTerms)
    with pytest.raises(Violation, match="S8"):
        copy_index_2(cluster)


def test_figure_8_continued_the_old_entry_is_overwritten_when_s5_wins() -> None:
    cluster = figure_8()
    copy_index_2(cluster)
    cluster["1"].crash()
    cluster.heal()
    for node in "2345":
        cluster[node].core.link_down("1", cluster[node].now_ms)
    leader = cluster.elect("5")  # its last term is 3, the others' 2
    assert leader.core.term >= 5
    cluster["1"].start()
    cluster["1"].turn()
    cluster.time(1_000)
    assert [cluster[n].terms for n in "1234"] == [[1, 3, leader.core.term]] * 4


def test_figure_8_continued_the_old_entry_stays_once_an_entry_of_term_4_covers_it() -> None:
    cluster = figure_8()
    copy_index_2(cluster)
    leader = cluster["1"]
    cluster.time(400)
    assert leader.core.commit == 3
    leader.crash()
    cluster.heal()
    cluster["5"].tick(900)
    cluster.settle()
    assert cluster["5"].core.role != Role.LEADER, "its last term is too old now"
    successor = cluster.await_leader()
    assert successor.terms[:3] == [1, 2, 4]
