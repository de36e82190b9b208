"""Storage that fails, fills up, hangs or forgets: who may still vote, lead and count."""

from __future__ import annotations

import pytest

from raft.core import (
    AppendReply,
    BeatReply,
    CampaignNow,
    HardState,
    Health,
    NotLeader,
    RaftConfig,
    RaftCore,
    Role,
    StorageFault,
    VoteReply,
    VoteRequest,
)
from tests.raft.core.checker import Violation
from tests.raft.core.cluster import Cluster, Replica
from tests.raft.core.model import members, seal_terms
from tests.raft.core.planted import TrustsItselfTooEarly


def running(nodes: str = "abc") -> tuple[Cluster, Replica]:
    cluster = Cluster(nodes)
    leader = cluster.elect("a")
    leader.propose(*"uvwxyz")
    cluster.settle()
    cluster.time(200)
    return cluster, leader


def fault(replica: Replica, what: StorageFault) -> None:
    replica.core.storage_failed(what, replica.now_ms)
    replica.turn()


def lose_tail(replica: Replica, count: int) -> None:
    """Recovery found that synced bytes are gone, and says so."""
    replica.crash()
    replica.disk.rot(count)
    replica.start(Health.SUSPECT)
    replica.turn()
    replica.cluster.settle()


def test_a_leader_whose_disk_failed_stops_leading_in_that_turn_and_names_a_successor() -> None:
    cluster, leader = running()
    fault(leader, StorageFault.FAILED)
    assert leader.has(Role.FOLLOWER)
    assert leader.core.health == Health.IMPAIRED
    assert [m for m in cluster.queue if isinstance(m, CampaignNow)]
    cluster.settle()
    successor = cluster.leader()
    assert successor is not None
    assert successor.core.term == 2


def test_an_impaired_replica_says_nothing_but_knows_who_leads() -> None:
    cluster, leader = running()
    fault(cluster["b"], StorageFault.FAILED)
    since = len(cluster.trace)
    leader.propose("x")
    cluster.time(1_000)
    assert [m for m in cluster.trace[since:] if m.sender == "b"] == []
    assert cluster["b"].core.leader == "a"
    assert leader.core.commit == leader.core.last.index


def test_a_full_leader_hands_over_and_a_full_follower_still_votes_and_answers_beats() -> None:
    cluster, leader = running()
    fault(leader, StorageFault.FULL)
    assert leader.has(Role.FOLLOWER)
    cluster.settle()
    successor = cluster.leader()
    assert successor is not None
    since = len(cluster.trace)
    cluster.time(300)
    assert [m for m in cluster.trace[since:] if isinstance(m, BeatReply) and m.sender == "a"]
    held = leader.core.last
    successor.propose("x")
    cluster.time(500)
    assert leader.core.last == held, "no entries are taken"
    leader.core.link_down(successor.id, leader.now_ms)
    leader.step(VoteRequest(9, "c", "a", successor.core.last, 4, False, transfer=True))
    cluster.settle()
    assert [m.granted for m in cluster.trace if isinstance(m, VoteReply) and m.nonce == 4] == [True]


def test_a_full_replica_never_campaigns_and_recovers_when_space_is_back() -> None:
    cluster, leader = running()
    follower = cluster["b"]
    fault(follower, StorageFault.FULL)
    cluster.isolate("b")
    follower.tick(3_000)
    assert follower.core.role == Role.FOLLOWER
    cluster.heal()
    leader.propose("x")
    cluster.time(500)
    assert follower.core.last != leader.core.last
    follower.core.storage_recovered(follower.now_ms)
    cluster.time(500)
    assert follower.core.health == Health.OK
    assert follower.core.last == leader.core.last


def test_a_leader_with_a_slow_disk_hands_over_once_a_minute_at_most() -> None:
    cluster, leader = running()
    fault(leader, StorageFault.SLOW)
    cluster.settle()
    second = cluster.leader()
    assert second is not None
    assert second.id != "a"
    second.core.transfer("a", second.now_ms)
    second.turn()
    cluster.settle()
    assert leader.has(Role.LEADER)
    fault(leader, StorageFault.SLOW)
    assert not leader.core.transferring
    fault(leader, StorageFault.HUNG)  # a write that hangs does not wait for the minute
    cluster.settle()
    third = cluster.leader()
    assert third is not None
    assert third.id != "a"


def test_a_slow_leader_leads_on_when_nobody_can_take_over() -> None:
    cluster, leader = running()
    for node in "bc":
        fault(cluster[node], StorageFault.FULL)
    cluster.time(200)
    fault(leader, StorageFault.SLOW)
    assert leader.has(Role.LEADER)
    assert not leader.core.transferring


def test_a_stalled_leader_steps_down_and_does_not_campaign_until_it_recovers() -> None:
    cluster, leader = running()
    fault(leader, StorageFault.STALLED)
    assert leader.has(Role.FOLLOWER)
    cluster.isolate("a")
    leader.tick(5_000)
    assert leader.has(Role.FOLLOWER)
    leader.core.storage_recovered(leader.now_ms)
    leader.tick(1_000)
    assert leader.has(Role.PRE_CANDIDATE)


def test_a_damaged_replica_takes_nothing_votes_for_nobody_and_never_campaigns() -> None:
    cluster, leader = running()
    b = cluster["b"]
    b.crash()
    b.start(Health.DAMAGED)
    b.turn()
    cluster.settle()
    before = b.core.last
    leader.propose("x")
    cluster.time(500)
    assert b.core.last == before
    assert leader.core.peers["b"].health == Health.DAMAGED
    b.step(VoteRequest(9, "c", "b", leader.core.last, 4, False, transfer=True))
    cluster.settle()
    assert [m.granted for m in cluster.trace if isinstance(m, VoteReply) and m.nonce == 4] == [False]
    cluster.isolate("b")
    b.tick(5_000)
    assert b.core.role == Role.FOLLOWER


def test_a_suspect_replica_neither_votes_nor_counts() -> None:
    cluster, leader = running()
    cluster.isolate("c")
    cluster.held.add("b")
    lose_tail(cluster["b"], 3)
    while cluster["b"].disk.queue:
        cluster["b"].finish()
    leader.propose("x")
    cluster.settle()
    assert leader.core.commit == 7
    b = cluster["b"]
    b.step(VoteRequest(9, "c", "b", leader.core.last, 4, False, transfer=True))
    for _ in range(3):
        while b.disk.queue:
            b.finish()
        cluster.settle()
    assert [m.granted for m in cluster.trace if isinstance(m, VoteReply) and m.nonce == 4] == [False]


def test_suspicion_survives_restarts() -> None:
    cluster, _ = running()
    cluster.isolate("b")
    lose_tail(cluster["b"], 3)
    assert cluster["b"].disk.hard.suspect
    cluster["b"].crash()
    cluster["b"].start()
    assert cluster["b"].core.health == Health.SUSPECT


def test_suspicion_ends_once_everything_it_can_have_acknowledged_is_back_and_that_is_durable() -> None:
    cluster, leader = running()
    lose_tail(cluster["b"], 3)
    cluster.time(500)
    assert cluster["b"].core.health == Health.OK
    assert not cluster["b"].disk.hard.suspect
    assert cluster["b"].core.last == leader.core.last
    cluster["c"].crash()
    leader.propose("x")
    cluster.time(300)
    assert leader.core.commit == leader.core.last.index, "it counts again"


def test_an_empty_log_under_an_old_identity_is_suspect_too_and_recovers() -> None:
    cluster, leader = running()
    lose_tail(cluster["b"], 7)
    cluster.time(500)
    assert cluster["b"].core.health == Health.OK
    assert cluster["b"].core.last == leader.core.last


def test_what_a_replica_acknowledged_before_it_lost_its_tail_is_ignored_by_the_leader_that_knows() -> None:
    cluster, leader = running()
    b = cluster["b"]
    leader.propose("x")
    cluster.deliver(lambda m: m.to == "b")
    while b.disk.queue:
        b.finish()
    late = [m for m in cluster.queue if isinstance(m, AppendReply) and m.sender == "b"]
    cluster.lose()
    cluster["c"].crash()
    cluster.held.add("b")
    lose_tail(b, 1)
    b.finish()
    leader.tick(100)
    cluster.deliver(lambda m: m.to == "b")
    cluster.deliver(lambda m: m.to == "a")
    assert leader.core.peers["b"].incarnation == 2
    for message in late:
        leader.step(message)
    assert leader.core.peers["b"].match == 0
    assert leader.core.commit == 7


def suspect_follower_of_a_leader_that_dies(core_type: type[RaftCore]) -> None:
    """Entry by entry: b lost its tail, gets a part of it back, then the leader dies and only b and c remain."""
    config = RaftConfig(node_id="", window_bytes=100, request_bytes=100, probe_bytes=100, window_requests=1)
    cluster = Cluster("abc", config=config, core_type=core_type)
    leader = cluster.elect("a")
    cluster.isolate("c")
    for name in "uvwxyz":
        leader.propose(name)
        cluster.settle()
    assert leader.core.commit == 7  # on a and b
    b = cluster["b"]
    lose_tail(b, 5)
    for _ in range(50):
        leader.tick()
        cluster.deliver()
        while b.disk.queue:
            b.finish()
        if b.core.last.index >= 3:
            break
    assert 3 <= b.core.last.index < 7
    leader.crash()
    cluster.heal()
    for _ in range(4):
        cluster.time(500)
    if cluster.leader() is None:
        leader.start()
        leader.turn()
    cluster.await_leader()
    assert cluster.checker.committed[6].term == 1


def test_a_suspect_replica_that_got_back_a_part_helps_to_elect_nobody() -> None:
    suspect_follower_of_a_leader_that_dies(RaftCore)


def test_trusting_it_too_early_would_lose_what_was_committed() -> None:
    with pytest.raises(Violation, match="S6"):
        suspect_follower_of_a_leader_that_dies(TrustsItselfTooEarly)


def test_a_commit_index_of_an_older_term_does_not_end_suspicion() -> None:
    log = seal_terms([1, 1, 1])
    cluster = Cluster("abc", logs=dict.fromkeys("abc", log), hard={"b": HardState(1, "", True, 1)})
    b = cluster["b"]
    assert b.core.health == Health.SUSPECT
    b.core._follow(2, "a")
    b.core._verified = 3
    b.core._clear_at = 2
    b.core._maybe_clear_suspicion()
    assert b.core.health == Health.SUSPECT


def test_a_suspect_that_fills_up_stays_suspect_when_space_is_back() -> None:
    cluster, _ = running()
    cluster.isolate("b")
    lose_tail(cluster["b"], 1)
    fault(cluster["b"], StorageFault.FULL)
    cluster["b"].core.storage_recovered(cluster["b"].now_ms)
    assert cluster["b"].core.health == Health.SUSPECT


def test_a_quorum_of_suspects_elects_nobody() -> None:
    cluster, leader = running()
    leader.crash()
    for node in "bc":
        lose_tail(cluster[node], 1)
    cluster.time(5_000)
    assert cluster.leader() is None


def test_proposals_of_an_impaired_leader_are_refused() -> None:
    _, leader = running()
    fault(leader, StorageFault.FAILED)
    with pytest.raises(NotLeader):
        leader.propose("x")


def test_steadiness_counts_only_while_healthy_and_caught_up() -> None:
    cluster = Cluster("abc", membership=members("abc"))
    leader = cluster.elect("a")
    cluster.time(3_000)
    steady = {p.id: p.steady_ms for p in leader.core.status().peers}
    assert min(steady.values()) >= 2_500
    cluster.held.add("b")
    leader.propose("x")
    cluster.time(500)
    steady = {p.id: p.steady_ms for p in leader.core.status().peers}
    assert steady["b"] == 0
    assert steady["c"] >= 3_000


def test_a_full_replica_gives_its_vote_before_the_entries_that_find_no_room() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    cluster.time(200)
    cluster.held.add("c")
    leader.propose("x")
    cluster.settle()  # c has the entry in memory, and its write finds no room
    c = cluster["c"]
    c.core.storage_failed(StorageFault.FULL, c.now_ms)
    c.turn()
    leader.crash()
    for node in "bc":
        cluster[node].core.link_down("a", cluster[node].now_ms)
    b = cluster["b"]
    for _ in range(20):
        b.tick()
        cluster.settle()
    assert b.has(Role.CANDIDATE), "c's vote waits behind the entry"
    since = len(cluster.trace)
    waiting = [batch for batch in c.disk.queue if batch.hard_state is not None]
    c.disk.hard = waiting[-1].hard_state or c.disk.hard  # what the writer does: that file needs no room
    c.core.hard_state_done(c.disk.queue[-1].seq, c.now_ms)
    c.turn()
    sent = [m for m in cluster.trace[since:] if m.sender == "c"]
    assert sent
    assert all(isinstance(m, VoteReply) and m.granted for m in sent), "and nothing that speaks of its log"
    cluster.settle()
    assert b.has(Role.LEADER)
    cluster.held.clear()
    c.core.storage_recovered(c.now_ms)
    cluster.time(400)
    assert b.core.commit == c.core.commit == 3
