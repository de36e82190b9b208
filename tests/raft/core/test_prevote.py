"""PreVote, CheckQuorum and stickiness (Raft thesis 4.2.3, 6.4.1, 9.6): leaders that work are left in peace."""

from __future__ import annotations

import pytest

from raft.core import AppendReply, Beat, BeatReply, Role, VoteReply, VoteRequest
from tests.raft.core.cluster import Cluster
from tests.raft.core.model import seal_terms


def terms(cluster: Cluster) -> list[int]:
    return [r.core.term for r in cluster.replicas.values()]


def test_a_pre_vote_changes_nothing_on_either_side() -> None:
    cluster = Cluster("abc")
    before = [(r.core.term, r.core.vote, r.disk.hard) for r in cluster.replicas.values()]
    cluster["a"].core._campaign(pre=True)
    cluster["a"].turn()
    cluster.deliver(lambda m: isinstance(m, VoteRequest))
    cluster.lose()
    assert [(r.core.term, r.core.vote, r.disk.hard) for r in cluster.replicas.values()] == before


def test_an_isolated_replica_returns_without_having_raised_its_term() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.isolate("c")
    cluster.time(10_000)
    assert terms(cluster) == [1, 1, 1]
    cluster.heal()
    cluster.time(2_000)
    assert terms(cluster) == [1, 1, 1]
    assert cluster["c"].core.leader == "a"


def test_pre_grants_of_a_stale_round_are_ignored() -> None:
    cluster = Cluster("abc")
    replica = cluster["a"]
    replica.core._campaign(pre=True)
    old = replica.core._nonce
    replica.core._campaign(pre=True)
    replica.turn()
    cluster.lose()
    replica.step(VoteReply(0, "b", "a", old, True, True))
    assert replica.core.role == Role.PRE_CANDIDATE


def test_a_pre_vote_needs_an_up_to_date_log() -> None:
    cluster = Cluster("abc", logs={"b": seal_terms([1]), "c": seal_terms([1])})
    cluster["a"].tick(900)
    cluster.settle()
    assert cluster["a"].core.role != Role.LEADER
    assert cluster["a"].core.term <= 1
    assert not [m for m in cluster.trace if isinstance(m, VoteRequest) and not m.pre and m.sender == "a"]


def test_a_vote_is_refused_while_a_leader_was_heard_within_e_and_the_term_is_not_adopted() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.time(200)
    cluster["b"].step(VoteRequest(7, "c", "b", cluster["c"].core.last, 1, False))
    cluster.settle()
    answer = [m for m in cluster.trace if isinstance(m, VoteReply) and m.nonce == 1]
    assert [(m.granted, m.sticky, m.term) for m in answer] == [(False, True, 1)]
    assert cluster["b"].core.term == 1


def test_the_leader_itself_is_sticky() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster["a"].step(VoteRequest(7, "c", "a", cluster["c"].core.last, 1, False))
    assert cluster["a"].core.role == Role.LEADER


def test_a_pre_vote_round_refused_only_for_stickiness_is_repeated_after_half_a_beat_interval() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.time(200)
    cluster["c"].core._campaign(pre=True)
    cluster["c"].turn()
    cluster.settle()
    assert cluster["c"].core.role == Role.FOLLOWER
    since = len(cluster.trace)
    cluster["c"].tick(60)
    asked = [m for m in cluster.trace[since:] if isinstance(m, VoteRequest)]
    assert len(asked) == 2
    assert all(m.pre for m in asked)


def test_a_stale_leader_learns_the_higher_term_from_the_answer_to_its_beat_and_to_its_append() -> None:
    for kind in (BeatReply, AppendReply):
        cluster = Cluster("abc")
        cluster.elect("a")
        cluster["c"].step(Beat(5, "b", "c", 0, 1, 0))
        cluster["b"].step(Beat(5, "b", "b", 0, 1, 0))
        cluster.settle()
        cluster["a"].propose("x")
        if kind is BeatReply:
            cluster["a"].tick(100)
            cluster.lose(lambda m: not isinstance(m, Beat))
        else:
            cluster.lose(lambda m: isinstance(m, Beat))
        cluster.settle()
        assert cluster["a"].core.role == Role.FOLLOWER
        assert cluster["a"].core.term == 5


def test_a_replica_stuck_at_a_higher_term_is_freed() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster["c"].step(VoteRequest(9, "x", "c", cluster["c"].core.last, 1, False, transfer=True))
    assert cluster["c"].core.term == 9
    cluster.time(3_000)
    leader = cluster.leader()
    assert leader is not None
    assert terms(cluster) == [leader.core.term] * 3
    assert leader.core.term > 9 or leader.id == "c"


def test_a_leader_cut_from_its_quorum_steps_down_within_e_and_keeps_its_term() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.time(200)
    cluster.isolate("a")
    cluster["a"].tick(360)
    assert cluster["a"].core.role == Role.LEADER
    cluster["a"].tick(160)
    assert cluster["a"].core.role in (Role.FOLLOWER, Role.PRE_CANDIDATE)
    assert cluster["a"].core.term == 1


def test_a_deposed_leader_returns_as_a_follower() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.isolate("a")
    cluster.time(3_000)
    cluster.heal()
    cluster.time(2_000)
    leader = cluster.leader()
    assert leader is not None
    assert leader.id != "a"
    assert cluster["a"].core.leader == leader.id


def converges(cluster: Cluster) -> int:
    """The leader that a quorum works with stays; returns how many terms that took."""
    cluster.time(6_000)
    first = cluster.leader()
    assert first is not None
    term = first.core.term
    cluster.time(6_000)
    leader = cluster.leader()
    assert leader is not None
    assert leader.core.term == term, "leadership flaps"
    leader.propose("x")
    cluster.time(200)
    assert leader.core.commit == leader.core.last.index
    return term


def test_a_chain_of_three_converges_on_one_leader() -> None:
    for start in "abc":
        cluster = Cluster("abc")
        cluster.elect(start)
        cluster.cut("a", "c")
        assert converges(cluster) <= 4


def test_a_star_of_five_converges_on_one_leader() -> None:
    for start in "abcde":
        cluster = Cluster("abcde")
        cluster.elect(start)
        for one in "bcde":
            for other in "bcde":
                if one < other:
                    cluster.cut(one, other)
        assert converges(cluster) <= 6


def test_five_replicas_of_which_the_leader_loses_one_link_keep_their_leader() -> None:
    cluster = Cluster("abcde")
    cluster.elect("a")
    cluster.cut("a", "e")
    assert converges(cluster) == 1
    assert cluster.leader() is cluster["a"]


def test_a_bridge_between_two_halves_of_five_converges() -> None:
    cluster = Cluster("abcde")
    cluster.elect("a")
    for one in "ab":
        for other in "de":
            cluster.cut(one, other)
    assert converges(cluster) <= 4


@pytest.mark.parametrize("towards", [True, False])
def test_a_one_way_link_to_the_leader_does_not_stop_the_others(towards: bool) -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    pair = ("c", "a") if towards else ("a", "c")
    cluster.cut(*pair, one_way=True)
    cluster.time(3_000)
    leader = cluster.leader()
    assert leader is not None
    before = leader.core.commit
    leader.propose("x")
    cluster.time(300)
    assert leader.core.commit > before
    assert leader.core.term <= 3


def test_a_leader_that_hears_nobody_but_is_heard_by_all_gives_way() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.cut("b", "a", one_way=True)
    cluster.cut("c", "a", one_way=True)
    cluster.time(4_000)
    leader = cluster.leader()
    assert leader is not None
    assert leader.id in "bc"


def test_a_link_down_hint_brings_a_new_leader_in_a_fraction_of_the_timeout() -> None:
    for seed in range(20):
        cluster = Cluster("abc", seed=seed)
        cluster.elect("a")
        cluster.time(300)
        cluster["a"].crash()
        for node in "bc":
            cluster[node].core.link_down("a", cluster[node].now_ms)
        start = cluster["b"].now_ms
        while cluster.leader() is None:
            cluster.time(20)
        assert cluster["b"].now_ms - start <= 260


def test_who_has_much_to_apply_lets_the_other_one_lead_but_not_with_an_older_log() -> None:
    for seed in range(20):
        cluster = Cluster("abc", seed=seed)
        cluster.elect("a")
        cluster.time(300)
        cluster["a"].crash()
        cluster["b"].core.behind = True
        for node in "bc":
            cluster[node].core.link_down("a", cluster[node].now_ms)
        start = cluster["b"].now_ms
        while cluster.leader() is None:
            cluster.time(20)
        assert cluster.leader() is cluster["c"]
        assert cluster["b"].now_ms - start <= 260

        cluster = Cluster(
            "abc", logs={"a": seal_terms([1, 1]), "b": seal_terms([1, 1]), "c": seal_terms([1])}, seed=seed
        )
        cluster["a"].crash()
        cluster["b"].core.behind = True
        cluster["b"].core._reset_election_timer()
        cluster.time(2_000 + cluster["b"].core.config.election_ms)
        assert cluster.leader() is cluster["b"], "it has what the other one lacks"


def test_a_pre_vote_refused_by_stickiness_is_repeated_soon_although_a_dead_voter_leaves_it_open() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.time(300)
    cluster["a"].crash()
    cluster["b"].core.link_down("a", cluster["b"].now_ms)  # c hears of it later
    cluster.time(140)
    assert cluster.leader() is None
    start = cluster["c"].now_ms
    cluster["c"].core.link_down("a", cluster["c"].now_ms)
    while cluster.leader() is None:
        cluster.time(20)
    assert cluster["c"].now_ms - start <= 180


def test_a_wrong_link_down_hint_is_harmless() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.time(300)
    cluster["b"].core.link_down("a", cluster["b"].now_ms)
    cluster.time(2_000)
    assert terms(cluster) == [1, 1, 1]
    assert cluster.leader() is cluster["a"]


def test_a_hint_about_another_node_than_the_leader_shortens_nothing() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    before = cluster["b"].core._deadline_ms
    cluster["b"].core.link_down("c", cluster["b"].now_ms)
    assert cluster["b"].core._deadline_ms == before


def test_a_late_tick_counts_as_two_at_most_so_a_stalled_follower_does_not_depose_its_leader() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.time(300)
    follower = cluster["b"]
    follower.now_ms += 5_000
    follower.core.tick(follower.now_ms)
    follower.turn()
    assert follower.core.role == Role.FOLLOWER
    assert not follower.disk.queue
    cluster.time(1_000)
    assert terms(cluster) == [1, 1, 1]


def test_beats_and_their_answers_do_not_wait_for_a_disk() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.held.update("abc")
    cluster["a"].propose("x")
    cluster.settle()
    cluster.time(3_000)
    assert cluster.leader() is cluster["a"]
    assert terms(cluster) == [1, 1, 1]


def test_an_idle_group_sends_beats_only() -> None:
    cluster = Cluster("abc")
    cluster.elect("a")
    cluster.time(1_000)
    since = len(cluster.trace)
    cluster.time(1_000)
    assert len(cluster.trace) - since == 40
    assert cluster.count(Beat, since) == cluster.count(BeatReply, since) == 20
