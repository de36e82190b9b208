"""Elections (Raft paper 5.2, 5.4.1): who wins, who may vote, and what a vote costs."""

from __future__ import annotations

import random

import pytest

from raft.core import (
    AppendRequest,
    Beat,
    BeatReply,
    HardState,
    Message,
    RaftConfig,
    RaftCore,
    Recovered,
    Role,
    VoteReply,
    VoteRequest,
)
from tests.raft.core.cluster import Cluster, Replica
from tests.raft.core.model import Disk, Maker, members, seal_terms


def votes(cluster: Cluster, *, pre: bool = False) -> list[VoteReply]:
    return [m for m in cluster.trace if isinstance(m, VoteReply) and m.pre is pre]


def ask(replica: Replica, term: int, log: list[int], *, sender: str = "b", nonce: int = 1) -> VoteReply:
    """A real vote request from a candidate with this log; what the replica answers."""
    end = seal_terms(log)[-1] if log else None
    last = Disk(seal_terms(log)).last if end else Disk().last
    before = len(replica.cluster.trace)
    replica.step(VoteRequest(term, sender, replica.id, last, nonce, False))
    replica.cluster.settle()
    answers = [m for m in replica.cluster.trace[before:] if isinstance(m, VoteReply) and m.sender == replica.id]
    assert len(answers) == 1
    return answers[0]


def test_the_first_replica_whose_timer_runs_out_becomes_leader_of_term_1() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("b")
    assert leader.core.term == 1
    assert [r.core.leader for r in cluster.replicas.values()] == ["b", "b", "b"]
    assert [r.core.role for r in cluster.replicas.values()] == [Role.FOLLOWER, Role.LEADER, Role.FOLLOWER]


def test_the_election_timeout_lies_between_e_and_2e_and_differs_between_replicas() -> None:
    waited = set()
    for seed in range(40):
        cluster = Cluster("abc", seed=seed)
        replica = cluster["a"]
        while replica.core.role == Role.FOLLOWER:
            replica.tick()
        waited.add(replica.now_ms)
    assert min(waited) >= 400
    assert max(waited) <= 820
    assert len(waited) > 10


def test_a_lower_rank_waits_longer_but_at_most_half_an_election_timeout_more() -> None:
    longest = 0
    for seed in range(30):
        cluster = Cluster("abc", seed=seed, membership=members("abc", ranks={"a": 9, "b": 1}))
        for node, least in (("a", 600), ("b", 450), ("c", 400)):
            replica = cluster[node]
            while replica.core.role == Role.FOLLOWER:
                replica.tick()
            assert replica.now_ms >= least
            longest = max(longest, replica.now_ms)
    assert longest <= 1020


def test_a_split_vote_ends_without_a_leader_and_the_next_round_finds_one() -> None:
    cluster = Cluster("abcd")
    for one, other in ("ab", "ad", "cb", "cd"):
        cluster.cut(one, other)
    for node in "ab":  # both campaign in term 1 and get two votes of four
        core = cluster[node].core
        core._campaign(pre=False)
        cluster[node].turn()
    cluster.settle()
    assert cluster.leader() is None
    assert {cluster[n].core.term for n in "ab"} == {1}
    cluster.heal()
    leader = cluster.await_leader()
    assert leader.core.term >= 2


def test_two_pre_candidates_whose_requests_cross_do_not_split_the_vote() -> None:
    cluster = Cluster("abc", membership=members("abc", ranks={"a": 2, "b": 1, "c": 0}))
    cluster["a"].crash()
    for node in "bc":
        cluster[node].core._campaign(pre=True)
        cluster[node].turn()
    cluster.settle()
    assert cluster.leader() is cluster["c"]
    assert cluster["c"].core.term == 1


def test_a_candidate_whose_own_vote_is_being_written_does_not_start_another_term() -> None:
    cluster = Cluster("abc")
    cluster.held.add("a")
    cluster["a"].tick(3_000)
    cluster.settle()
    cluster["a"].tick(3_000)
    assert cluster["a"].core.role == Role.CANDIDATE
    assert cluster["a"].core.term == 1


def test_a_candidate_that_meets_the_leader_of_its_own_term_follows_it() -> None:
    cluster = Cluster("abc")
    cluster["c"].core._campaign(pre=False)
    cluster["c"].turn()
    assert cluster["c"].has(Role.CANDIDATE)
    cluster.lose()
    cluster["c"].step(Beat(1, "a", "c", 0, 1, 0))
    assert cluster["c"].has(Role.FOLLOWER)
    assert cluster["c"].core.leader == "a"
    assert cluster["c"].core.vote == "c", "the vote of a term outlives the candidacy"


@pytest.mark.parametrize("role", ["follower", "pre-candidate", "candidate", "leader"])
def test_a_message_of_a_higher_term_turns_every_role_into_a_follower_of_that_term(role: str) -> None:
    cluster = Cluster("abc")
    replica = cluster["a"]
    if role == "leader":
        cluster.elect("a")
    elif role != "follower":
        replica.core._campaign(pre=role == "pre-candidate")
        replica.turn()
        cluster.lose()
    replica.step(Beat(9, "c", "a", 0, 1, 0))
    cluster.settle()
    assert replica.has(Role.FOLLOWER)
    assert (replica.core.term, replica.core.leader, replica.core.vote) == (9, "c", "")
    assert replica.disk.hard.term == 9


@pytest.mark.parametrize(
    ("own", "candidate", "granted"),
    [
        ([], [], True),
        ([1], [1], True),
        ([1], [1, 1], True),
        ([1, 1], [1], False),  # shorter
        ([1, 2], [1, 1, 1], False),  # longer, but its last term is older
        ([1, 1, 1], [1, 2], True),  # shorter, but its last term is newer
        ([1], [], False),
    ],
)
def test_a_vote_needs_a_log_at_least_as_new(own: list[int], candidate: list[int], granted: bool) -> None:
    cluster = Cluster("abc", logs={"a": seal_terms(own)})
    assert ask(cluster["a"], 5, candidate).granted is granted


def test_a_repeated_request_of_the_same_candidate_is_granted_again_and_nobody_elses() -> None:
    cluster = Cluster("abc")
    assert ask(cluster["a"], 1, [], nonce=1).granted
    assert ask(cluster["a"], 1, [], nonce=1).granted
    assert not ask(cluster["a"], 1, [], sender="c", nonce=2).granted


def test_a_vote_survives_step_down_and_restart() -> None:
    cluster = Cluster("abc")
    replica = cluster["a"]
    assert ask(replica, 3, []).granted
    replica.step(Beat(3, "b", "a", 0, 1, 0))
    replica.crash()
    replica.start()
    assert replica.core.vote == "b"
    assert not ask(replica, 3, [], sender="c").granted


def test_a_grant_of_an_earlier_round_is_ignored() -> None:
    cluster = Cluster("abc")
    replica = cluster["a"]
    replica.core._campaign(pre=False)
    replica.turn()
    cluster.lose()
    first = replica.core._nonce
    replica.finish()
    replica.core._campaign(pre=False)
    replica.turn()
    replica.finish()
    replica.step(VoteReply(2, "b", "a", first, False, True))
    assert replica.has(Role.CANDIDATE)
    replica.step(VoteReply(2, "b", "a", replica.core._nonce, False, True))
    assert replica.has(Role.LEADER)


def test_a_grant_does_not_reach_a_later_life_of_the_candidate() -> None:
    cluster = Cluster("abc")
    replica = cluster["a"]
    replica.core._campaign(pre=False)
    replica.turn()
    late = VoteReply(1, "b", "a", replica.core._nonce, False, True)
    replica.crash()  # nothing of the campaign was written
    replica.start()
    replica.core._campaign(pre=False)
    replica.turn()
    cluster.lose()
    replica.finish()
    assert replica.core.term == 1, "the term was lost with the crash, so it is used again"
    replica.step(late)
    assert replica.has(Role.CANDIDATE)


def test_no_request_and_no_own_vote_counts_before_the_candidates_vote_is_durable() -> None:
    cluster = Cluster("abc")
    cluster.held.add("a")
    replica = cluster["a"]
    replica.core._campaign(pre=False)
    replica.turn()
    assert not cluster.queue
    cluster.held.clear()
    cluster.settle()
    assert replica.has(Role.LEADER)
    requests = [m for m in cluster.trace if isinstance(m, VoteRequest) and not m.pre]
    assert len(requests) == 2


def test_a_candidate_advertises_only_what_is_durable() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.held.add("b")
    cluster["a"].propose("x")
    cluster.deliver(lambda m: isinstance(m, AppendRequest) and m.to == "b")
    assert cluster["b"].core.last.index == 2
    assert cluster["b"].core.durable == 1
    cluster["b"].core._campaign(pre=False)
    cluster["b"].turn()
    assert not [m for m in cluster.queue if isinstance(m, VoteRequest)], "it waits for the entry, too"
    cluster["b"].finish()
    while cluster["b"].disk.queue:
        cluster["b"].finish()  # the checker compares each request with the disk
    assert [m.last.index for m in cluster.queue if isinstance(m, VoteRequest)] == [2, 2]


def test_the_own_log_end_is_reported_with_the_term_of_its_entry_not_the_current_one() -> None:
    cluster = Cluster("abc", logs={n: seal_terms([1, 1]) for n in "abc"}, hard={"a": HardState(term=7)})
    cluster["a"].core._campaign(pre=False)
    cluster["a"].turn()
    cluster["a"].finish()
    asked = [m for m in cluster.queue if isinstance(m, VoteRequest)]
    assert {(m.term, m.last.term, m.last.index) for m in asked} == {(8, 1, 2)}


def test_a_refusal_waits_for_the_write_it_may_depend_on() -> None:
    cluster = Cluster("abc")
    cluster.held.add("a")
    replica = cluster["a"]
    replica.step(VoteRequest(4, "b", "a", replica.core.last, 1, False))
    replica.step(VoteRequest(4, "c", "a", replica.core.last, 2, False))
    assert not cluster.queue
    while replica.disk.queue:
        replica.finish()
    answers = [m for m in cluster.queue if isinstance(m, VoteReply)]
    assert [(m.to, m.granted) for m in answers] == [("b", True), ("c", False)]


def test_a_group_of_one_leads_and_commits_only_after_its_own_sync() -> None:
    cluster = Cluster("a")
    cluster.held.add("a")
    replica = cluster["a"]
    replica.tick(1000)
    assert replica.has(Role.CANDIDATE), "its vote for itself is not durable yet"
    replica.finish()
    assert replica.has(Role.LEADER)
    replica.propose("x")
    assert replica.core.commit == 0
    while replica.disk.queue:
        replica.finish()
    assert replica.core.commit == 2


def test_the_no_op_goes_out_at_once_and_commits_older_entries_with_it() -> None:
    log = seal_terms([1, 1, 2])
    cluster = Cluster("abc", logs=dict.fromkeys("abc", log), hard={n: HardState(term=2) for n in "abc"})
    leader = cluster.elect("a")
    assert leader.core.term == 3
    assert leader.core.noop_index == 4
    assert leader.core.commit == 4


def test_a_filler_may_stand_before_the_no_op() -> None:
    log = seal_terms([1])
    cluster = Cluster("abc", logs=dict.fromkeys("abc", log), maker=Maker(filler_every=2))
    leader = cluster.elect("a")
    assert leader.core.noop_index == 3
    assert leader.core.commit == 3


def test_two_leaders_of_one_term_stop_the_group() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    with pytest.raises(Exception, match="S1"):
        cluster["a"].step(Beat(1, "b", "a", 0, 1, 0))


def test_an_unformed_replica_takes_entries_but_never_votes_nor_campaigns() -> None:
    disk = Disk()
    config = RaftConfig(node_id="x")
    core = RaftCore(config, random.Random(1), disk, Maker(), Recovered(HardState(), 0, ()), 0)
    for now in range(0, 5_000, 20):
        core.tick(now)
    core.step(VoteRequest(1, "a", "x", core.last, 1, False), 5_000)
    core.step(Beat(1, "a", "x", 0, 1, 0), 5_000)
    sent: list[Message] = []
    for _ in range(3):
        ready = core.ready()
        sent += ready.send
        for batch in ready.appends:
            disk.queue.append(batch)
            core.append_done(disk.finish(), 5_000)
    assert core.role == Role.LEARNER
    assert [m.granted for m in sent if isinstance(m, VoteReply)] == [False]
    assert [m.round for m in sent if isinstance(m, BeatReply)] == [1]


def test_every_life_has_a_number_that_is_durable_before_it_promises_anything() -> None:
    cluster = Cluster("abc")
    assert [r.disk.hard.starts for r in cluster.replicas.values()] == [1, 1, 1]
    cluster["a"].crash()
    cluster["a"].start()
    cluster["a"].turn()
    cluster.held.add("a")
    cluster["a"].step(VoteRequest(1, "b", "a", cluster["a"].core.last, 1, False))
    assert not cluster.queue
    while cluster["a"].disk.queue:
        cluster["a"].finish()
    assert cluster["a"].disk.hard.starts == 2
    assert len(cluster.queue) == 1
