"""Barriers (Raft thesis 6.4): read points confirmed by one round of beats that all waiters share."""

from __future__ import annotations

import pytest

from raft.core import AppendRequest, Beat, BeatReply, NotLeader, ReadGrant
from tests.raft.core.cluster import Cluster


def test_a_barrier_is_granted_with_the_commit_index_after_a_quorum_has_answered() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.propose("x")
    cluster.settle()
    leader.barrier(7)
    assert leader.reads == []
    cluster.settle()
    assert leader.reads == [ReadGrant(7, 2)]


def test_waiters_share_one_round() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    cluster.settle()
    since = len(cluster.trace)
    for token in range(1, 101):
        leader.barrier(token)
    cluster.settle()
    assert [g.token for g in leader.reads] == list(range(1, 101))
    assert cluster.count(Beat, since) == 4, "one round for the first, one for all who came while it was under way"


def test_a_waiter_that_comes_later_is_not_served_by_a_round_of_before() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.barrier(1)
    leader.barrier(2)
    cluster.deliver(lambda m: isinstance(m, Beat))
    cluster.deliver(lambda m: isinstance(m, BeatReply))
    assert [g.token for g in leader.reads] == [1]
    cluster.settle()
    assert [g.token for g in leader.reads] == [1, 2]


def test_a_deposed_leader_that_does_not_know_it_grants_nothing() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    cluster.isolate("a")
    for node in "bc":
        cluster[node].core.link_down("a", cluster[node].now_ms)
    cluster.elect("b")
    cluster["b"].propose("newer")
    cluster.settle()
    leader.barrier(1)
    cluster.settle()
    assert leader.reads == []
    leader.tick(600)
    assert leader.reads == [ReadGrant(1, None)]


def test_a_new_leader_holds_barriers_until_its_no_op_is_committed() -> None:
    cluster = Cluster("abc")
    a = cluster["a"]
    a.tick(900)
    for _ in range(8):
        for node in "abc":
            while cluster[node].disk.queue:
                cluster[node].finish()
        cluster.lose(lambda m: isinstance(m, AppendRequest))
        cluster.deliver()
    assert a.core.noop_index == 1
    a.barrier(1)
    cluster.lose(lambda m: isinstance(m, AppendRequest))
    cluster.settle()
    assert a.reads == []
    cluster.time(300)
    assert a.reads == [ReadGrant(1, 1)]


def test_lost_beats_delay_a_barrier_by_one_interval_only() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    cluster.settle()
    leader.barrier(1)
    cluster.lose()
    cluster.time(120)
    assert leader.reads == [ReadGrant(1, 1)]


def test_a_group_of_one_grants_at_once() -> None:
    cluster = Cluster("a")
    leader = cluster.elect("a")
    leader.barrier(1)
    assert leader.reads == [ReadGrant(1, 1)]


def test_barriers_are_refused_elsewhere() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    with pytest.raises(NotLeader):
        cluster["b"].barrier(1)
