"""Commitment: what counts, and who may know when (Raft paper 5.3, 5.4.2)."""

from __future__ import annotations

import random

import pytest

from raft.core import ZERO, AppendRequest, Beat, EntryId, InvariantBroken, NotLeader, RaftConfig, RaftCore, Recovered
from raft.core.types import HardState
from tests.raft.core.cluster import Cluster
from tests.raft.core.model import Disk, Maker, members, seal, seal_terms


def test_an_entry_commits_when_a_majority_holds_it_on_disk() -> None:
    cluster = Cluster("abcde")
    leader = cluster.elect("a")
    cluster.held.update("bcde")
    leader.propose("x")
    cluster.settle()
    assert leader.core.commit == 1
    for node, commit in (("b", 1), ("c", 2)):
        cluster[node].finish()
        cluster.settle()
        assert leader.core.commit == commit


def test_followers_may_commit_an_entry_before_the_leaders_own_disk_has_it() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    cluster.held.add("a")
    leader.propose("x")
    cluster.settle()
    assert leader.core.commit == 2
    assert leader.core.durable == 1


def test_a_group_of_two_needs_both() -> None:
    cluster = Cluster("ab")
    leader = cluster.elect("a")
    cluster.held.add("a")
    leader.propose("x")
    cluster.settle()
    assert leader.core.commit == 1
    cluster.held.clear()
    cluster.settle()
    assert leader.core.commit == 2


def test_a_followers_commit_stops_at_what_this_leader_has_verified() -> None:
    log = seal_terms([1, 1, 1])
    cluster = Cluster("ab", logs={"b": log})
    cluster["b"].step(AppendRequest(2, "a", "b", EntryId.of(log[0]), EntryId.of(log[0]), 3, 0))
    assert cluster["b"].core.commit == 1
    cluster["b"].step(Beat(2, "a", "b", 3, 1, 0))
    assert cluster["b"].core.commit == 1


def test_what_an_earlier_leader_verified_does_not_count_for_the_next_one() -> None:
    log = seal_terms([1, 1, 1])
    cluster = Cluster("ab", logs={"b": log})
    cluster["b"].step(AppendRequest(2, "a", "b", EntryId.of(log[2]), EntryId.of(log[2]), 0, 0))
    cluster["b"].step(Beat(3, "a", "b", 3, 1, 0))
    assert cluster["b"].core.commit == 0


def test_the_commit_hint_in_beats_is_capped_at_the_followers_match() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    cluster.lose()
    cluster.cut("a", "c")
    leader.propose("x", "y")
    cluster.settle()
    cluster.heal()
    leader.tick(100)
    beats = {m.to: m.commit for m in cluster.queue if isinstance(m, Beat)}
    assert beats == {"b": 3, "c": 1}


def test_an_idle_follower_learns_the_commit_index_with_the_next_beat() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.propose("x")
    cluster.settle()
    cluster.time(120)
    assert [r.core.commit for r in cluster.replicas.values()] == [2, 2, 2]


def test_older_entries_commit_with_the_first_of_the_own_term() -> None:
    cluster = Cluster("abc", logs={n: seal_terms([1, 1, 2]) for n in "ab"})
    leader = cluster.elect("a")
    assert leader.core.commit == 4


def test_commit_after_a_restart_begins_at_what_recovery_knows() -> None:
    disk = Disk(seal_terms([1, 1, 1]))
    config = RaftConfig(node_id="a")
    recovered = Recovered(HardState(1), 2, [(0, members("abc"))])
    core = RaftCore(config, random.Random(1), disk, Maker(), recovered, 0)
    assert core.commit == 2
    assert core.ready().committed is None, "what was committed before is not new"


def test_a_recovered_commit_behind_the_log_stops_the_start() -> None:
    with pytest.raises(InvariantBroken, match="S10"):
        RaftCore(
            RaftConfig(node_id="a"),
            random.Random(1),
            Disk(seal_terms([1])),
            Maker(),
            Recovered(HardState(1), 2, [(0, members("abc"))]),
            0,
        )


def test_a_term_that_only_the_log_remembers_is_not_lost() -> None:
    cluster = Cluster("abc", logs={"a": seal_terms([1, 4])})
    assert cluster["a"].core.term == 4
    assert cluster["a"].disk.hard.term == 4
    assert cluster["a"].core.vote == ""


def test_truncation_below_commit_stops_the_replica() -> None:
    log = seal_terms([1, 1])
    other = seal_terms([1, 2])
    cluster = Cluster("ab", logs={"b": log})
    cluster["b"].step(AppendRequest(2, "a", "b", EntryId.of(log[1]), EntryId.of(log[1]), 2, 0))
    assert cluster["b"].core.commit == 2
    core = cluster["b"].core
    with pytest.raises(InvariantBroken, match="S10"):
        core._take(other[1:])
    assert core.last == EntryId.of(log[1])


def test_a_leader_never_cuts_its_own_log() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    with pytest.raises(InvariantBroken, match="S5"):
        leader.core._truncate_after(0)


def test_proposals_at_another_replica_name_the_leader() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    with pytest.raises(NotLeader) as refused:
        cluster["b"].propose("x")
    assert refused.value.leader == "a"


def test_an_entry_of_another_term_is_no_proposal() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    with pytest.raises(InvariantBroken):
        leader.core.propose([seal(leader.core.last, 9, "x")], leader.now_ms)


def test_every_committed_range_is_reported_once_and_in_order() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    for n in range(20):
        leader.propose(n)
        if n % 3 == 0:
            cluster.settle()
    cluster.settle()
    cluster.time(200)
    # The checker requires that each range begins where the one before ended.
    assert cluster.checker.commits == {"a": 21, "b": 21, "c": 21}


def test_zero_stands_before_the_first_entry() -> None:
    assert Cluster("abc")["a"].core.entry_id(0) == ZERO
