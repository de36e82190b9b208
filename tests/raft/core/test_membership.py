"""Membership changes (Raft thesis ch. 4): one server at a time, in force when appended, undone when truncated."""

from __future__ import annotations

from itertools import combinations

import pytest

from raft.core import (
    AppendRequest,
    ChangeRefused,
    EntryId,
    HardState,
    Health,
    InvariantBroken,
    Member,
    Membership,
    RaftCore,
    Role,
    StorageFault,
    Transferring,
    VoteReply,
    VoteRequest,
)
from raft.core.membership import Memberships
from raft.core.quorum import Verdict, agreed, holds, majority, quorum_of, tally
from tests.raft.core.checker import Violation
from tests.raft.core.cluster import Cluster, Replica
from tests.raft.core.model import Entry, members, seal, seal_terms
from tests.raft.core.planted import ChangesTwoAtOnce


def change(leader: Replica, voters: str, learners: str = "", *, allow_two: bool = False) -> int:
    index = leader.core.change_membership(members(voters, learners), leader.now_ms, allow_two=allow_two)
    leader.turn()
    leader.cluster.settle()
    return index


def grown(nodes: str, voters: str) -> tuple[Cluster, Replica]:
    """A running group of `voters` inside a larger set of nodes."""
    cluster = Cluster(nodes, membership=members(voters))
    leader = cluster.elect("a")
    cluster.time(200)
    return cluster, leader


def ids(cluster: Cluster) -> dict[str, tuple[str, ...]]:
    return {n: r.core.membership.voter_ids if r.core.membership else () for n, r in cluster.replicas.items()}


def test_three_grow_to_four_and_five_and_shrink_again_step_by_step() -> None:
    cluster, leader = grown("abcde", "abc")
    for voters, learners in (("abc", "d"), ("abcd", ""), ("abcd", "e"), ("abcde", "")):
        change(leader, voters, learners)
        cluster.time(300)
        assert leader.core.commit == leader.core.last.index
    assert set(ids(cluster).values()) == {tuple("abcde")}
    for voters in ("abcd", "abc"):
        change(leader, voters)
        cluster.time(300)
        assert leader.core.commit == leader.core.last.index
    assert ids(cluster)["b"] == tuple("abc")


def test_a_change_is_in_force_when_it_is_appended() -> None:
    cluster, leader = grown("abcd", "abc")
    change(leader, "abc", "d")
    cluster.time(300)
    cluster.isolate("c")
    cluster.isolate("d")
    change(leader, "abcd")
    assert ids(cluster)["a"] == ids(cluster)["b"] == tuple("abcd")
    assert leader.core.commit < leader.core.last.index, "two of four are no majority any more"


def test_an_uncommitted_change_is_undone_with_its_truncation() -> None:
    cluster, leader = grown("abcd", "abc")
    change(leader, "abc", "d")
    cluster.time(300)
    cluster.isolate("a")
    change(leader, "abcd")
    assert ids(cluster)["a"] == tuple("abcd")
    cluster.time(2_000)
    cluster.heal()
    cluster.time(2_000)
    assert set(ids(cluster).values()) == {tuple("abc")}
    assert leader.core.role == Role.FOLLOWER


def test_a_second_change_waits_until_the_first_is_committed() -> None:
    cluster, leader = grown("abcde", "abc")
    cluster.isolate("a")
    change(leader, "abc", "d")
    with pytest.raises(ChangeRefused, match="not committed"):
        change(leader, "abc", "de")


def test_a_leader_that_has_committed_nothing_of_its_term_may_not_change_anything() -> None:
    cluster = Cluster("abcd", membership=members("abc"))
    cluster.held.update("bc")
    a = cluster["a"]
    a.tick(900)
    for _ in range(4):
        cluster.settle()
        for node in "bc":
            if not any(e.entries for e in cluster[node].disk.queue):
                while cluster[node].disk.queue:
                    cluster[node].finish()
    assert a.core.role == Role.LEADER
    assert not a.core.own_term_committed
    with pytest.raises(ChangeRefused, match="own term"):
        change(a, "abc", "d")


def test_more_than_one_voter_at_a_time_is_refused() -> None:
    cluster, leader = grown("abcde", "abc")
    change(leader, "abc", "de")
    cluster.time(300)
    for voters in ("abcde", "ab" + "d", "a"):
        with pytest.raises(ChangeRefused):
            change(leader, voters)


@pytest.mark.parametrize(
    "bad",
    [
        Membership(()),
        Membership((Member("b"), Member("a"))),
        Membership((Member("a"), Member("b"), Member("c")), (Member("c"),)),
        Membership((Member("a"), Member("a"))),
    ],
)
def test_a_malformed_membership_is_refused(bad: Membership) -> None:
    _, leader = grown("abc", "abc")
    with pytest.raises(ChangeRefused):
        leader.core.change_membership(bad, leader.now_ms)


def test_a_voter_has_to_be_a_learner_first_and_to_have_caught_up() -> None:
    cluster, leader = grown("abcd", "abc")
    with pytest.raises(ChangeRefused, match="learner"):
        change(leader, "abcd")
    cluster.isolate("d")
    change(leader, "abc", "d")
    with pytest.raises(ChangeRefused, match="caught up"):
        change(leader, "abcd")
    cluster.heal()
    cluster.time(300)
    change(leader, "abcd")
    assert leader.core.commit == leader.core.last.index


def test_a_learner_that_lags_behind_is_not_promoted() -> None:
    cluster, leader = grown("abcd", "abc")
    change(leader, "abc", "d")
    cluster.time(300)
    cluster.held.add("d")  # its disk hangs
    for _ in range(40):
        leader.propose("x")
        cluster.time(20)
    with pytest.raises(ChangeRefused, match="caught up"):
        change(leader, "abcd")


def test_a_group_of_two_needs_a_word() -> None:
    cluster, leader = grown("abc", "abc")
    with pytest.raises(ChangeRefused, match="two"):
        change(leader, "ab")
    change(leader, "ab", allow_two=True)
    assert leader.core.commit == leader.core.last.index
    assert ids(cluster)["b"] == ("a", "b")


def test_one_grows_to_three_through_two() -> None:
    cluster, leader = grown("abc", "a")
    change(leader, "a", "bc")
    cluster.time(300)
    change(leader, "ab", "c", allow_two=True)
    cluster.time(300)
    change(leader, "abc")
    cluster.time(300)
    assert leader.core.commit == leader.core.last.index
    leader.crash()
    assert cluster.await_leader().id in "bc"


def two_leaders_with_disjoint_quorums(core_type: type[RaftCore]) -> None:
    """The published flaw of single-server changes: a adds e, then b, elected by b, c, d, removes d.

    a's five {a, d, e} and b's three {b, c} have majorities that do not meet. The guard of the own term makes b commit
    an entry on three of four first, and then a cannot win any more.
    """
    cluster = Cluster("abcde", membership=members("abcd", "e"), core_type=core_type)
    a, b = cluster.elect("a"), cluster["b"]
    cluster.time(300)
    for node in "bcd":
        cluster.cut("a", node)
        cluster.cut("e", node)
    a.core.change_membership(members("abcde"), a.now_ms)
    a.turn()
    cluster.settle()
    cluster.cut("b", "d")
    cluster.down -= {("b", "d"), ("d", "b")}
    while b.core.role != Role.LEADER:
        for node in "bcd":
            cluster[node].tick(20 if node == "b" or b.now_ms < 1_000 else 0)
        for _ in range(10):
            for node in "bcd":
                while cluster[node].disk.queue:
                    cluster[node].finish()
            cluster.lose(lambda m: isinstance(m, AppendRequest))
            cluster.deliver()
    b.core.change_membership(members("abc"), b.now_ms)  # refused here by the guard
    b.turn()
    cluster.cut("b", "d")
    cluster.time(300, "b", "c")
    assert b.core.commit == b.core.last.index, "two of three"
    b.crash()
    cluster["c"].crash()
    cluster.heal()
    cluster.time(5_000)  # a, d and e are three of five


def test_the_counterexample_of_two_leaders_with_disjoint_quorums_is_stopped_by_the_guards() -> None:
    with pytest.raises(ChangeRefused, match="own term"):
        two_leaders_with_disjoint_quorums(RaftCore)


def test_without_the_guards_two_leaders_commit_different_entries() -> None:
    with pytest.raises(Violation, match="S6"):
        two_leaders_with_disjoint_quorums(ChangesTwoAtOnce)


def test_quorums_of_neighbouring_memberships_always_meet() -> None:
    for size in range(1, 8):
        old = tuple("abcdefgh"[:size])
        new = (*old, "x")
        for one in combinations(old, majority(size)):
            for other in combinations(new, majority(size + 1)):
                assert set(one) & set(other)


def test_a_learner_grants_votes_because_it_may_have_been_promoted() -> None:
    cluster, leader = grown("abcd", "abc")
    change(leader, "abc", "d")
    cluster.time(300)
    d = cluster["d"]
    assert d.core.role == Role.LEARNER
    d.core.link_down("a", d.now_ms)
    d.step(VoteRequest(5, "b", "d", d.core.last, 1, False))
    cluster.settle()
    answer = [m for m in cluster.trace if isinstance(m, VoteReply) and m.sender == "d"]
    assert [m.granted for m in answer] == [True]


def test_a_learner_never_campaigns() -> None:
    cluster, leader = grown("abcd", "abc")
    change(leader, "abc", "d")
    cluster.time(300)
    cluster.isolate("d")
    cluster["d"].tick(5_000)
    assert cluster["d"].core.role == Role.LEARNER
    assert cluster["d"].core.leader == "", "it does not name a leader that it has not heard for long"


def test_a_removed_leader_commits_its_removal_without_counting_itself_and_hands_over() -> None:
    cluster, leader = grown("abcd", "abcd")
    change(leader, "bcd")
    assert leader.core.commit == leader.core.last.index
    assert leader.core.role == Role.LEARNER
    successor = cluster.await_leader(1_000)
    assert successor.id in "bcd"
    assert leader.core.membership is not None
    cluster.time(3_000)
    assert leader.core.role == Role.LEARNER


def test_a_removed_leader_takes_nothing_more_and_stays_until_what_it_took_is_committed() -> None:
    """No later leader would tell it: whoever waits for those entries would hear nothing until the deadline."""
    cluster, leader = grown("abcd", "abcd")
    removal = leader.core.change_membership(members("bcd"), leader.now_ms)
    leader.turn()
    leader.propose("behind the removal")
    cluster.lose(lambda m: isinstance(m, AppendRequest) and m.prev.index >= removal)
    cluster.settle()
    assert leader.core.commit == removal
    assert leader.has(Role.LEADER)
    with pytest.raises(Transferring):
        leader.propose("too late")
    leader.tick(200)  # a beat's answer opens replication again
    cluster.settle()
    assert leader.core.commit == leader.core.last.index == removal + 1
    assert leader.has(Role.LEARNER)
    successor = cluster.await_leader(1_000)
    assert successor.id == leader.core.successor


def test_a_removed_leader_goes_after_one_election_timeout_whatever_is_open() -> None:
    cluster, leader = grown("abcd", "abcd")
    removal = leader.core.change_membership(members("bcd"), leader.now_ms)
    leader.turn()
    leader.propose("behind the removal")
    cluster.lose(lambda m: isinstance(m, AppendRequest) and m.prev.index >= removal)
    cluster.settle()
    assert leader.has(Role.LEADER)
    cluster.isolate("a")
    leader.tick(leader.core.config.election_ms)
    assert leader.has(Role.LEARNER)
    cluster.await_leader(3_000)


def test_a_leader_being_removed_does_not_count_itself() -> None:
    cluster, leader = grown("abcd", "abcd")
    cluster.isolate("b")
    cluster.isolate("c")
    change(leader, "bcd")
    assert leader.core.commit < leader.core.last.index


def test_a_removed_leader_may_still_be_needed_until_its_removal_is_committed() -> None:
    cluster, leader = grown("abc", "abc")
    cluster.isolate("a")
    leader.core.change_membership(members("bc"), leader.now_ms, allow_two=True)
    leader.turn()
    leader.tick(600)
    assert leader.core.role in (Role.LEARNER, Role.PRE_CANDIDATE)
    leader.tick(900)
    assert leader.core.role == Role.PRE_CANDIDATE
    asked = [m.to for m in cluster.dropped if isinstance(m, VoteRequest)]
    assert set(asked) == {"b", "c"}


def test_a_removed_replica_that_does_not_know_it_disturbs_nobody() -> None:
    cluster, leader = grown("abcd", "abcd")
    cluster.isolate("d")
    change(leader, "abc")
    cluster.time(3_000)
    term = leader.core.term
    cluster.heal()
    cluster.time(4_000)
    assert leader.core.role == Role.LEADER
    assert leader.core.term == term
    assert cluster["d"].core.role in (Role.FOLLOWER, Role.PRE_CANDIDATE)


def test_a_membership_survives_restarts() -> None:
    cluster, leader = grown("abcd", "abc")
    change(leader, "abc", "d")
    cluster.time(300)
    change(leader, "abcd")
    cluster.time(300)
    for replica in cluster.replicas.values():
        replica.crash()
    for replica in cluster.replicas.values():
        replica.start()
        replica.turn()
    assert set(ids(cluster).values()) == {tuple("abcd")}
    cluster.await_leader()


def test_a_change_is_refused_while_leadership_is_handed_over() -> None:
    cluster, leader = grown("abcd", "abc")
    cluster.lose()
    cluster.cut("a", "b", one_way=True)
    leader.core.transfer("b", leader.now_ms)
    with pytest.raises(Transferring):
        leader.core.change_membership(members("abc", "d"), leader.now_ms)


def test_an_unhealthy_learner_is_not_promoted() -> None:
    cluster, leader = grown("abcd", "abc")
    change(leader, "abc", "d")
    cluster.time(300)
    cluster["d"].core.storage_failed(StorageFault.FULL, cluster["d"].now_ms)
    cluster.time(200)
    assert leader.core.peers["d"].health == Health.FULL
    with pytest.raises(ChangeRefused):
        change(leader, "abcd")


def test_two_uncommitted_changes_cannot_be_cut_away() -> None:
    both = Memberships([(5, members("abc")), (7, members("abcd"))])
    with pytest.raises(InvariantBroken, match="S17"):
        both.truncated_after(4)
    assert both.truncated_after(6)
    assert both.index == 5


def test_the_newest_two_memberships_of_the_log_are_enough_at_a_start() -> None:
    log = seal_terms([1, 1])
    third = seal(log[1], 1, members("abcd"), kind=3)
    cluster = Cluster("abcd", membership=members("abc"), logs={"a": [*log, third]}, hard={"a": HardState(1)})
    assert ids(cluster)["a"] == tuple("abcd")
    core = cluster["a"].core
    core._truncate_after(2)
    assert core.membership == members("abc")
    assert isinstance(third, Entry)
    assert core.last == EntryId.of(log[1])


# -- quorums as sets of sets ---------------------------------------------------------------------------------------


def test_a_decision_needs_a_majority_of_every_set() -> None:
    joint = (("a", "b", "c"), ("c", "d", "e"))
    assert tally(joint, {"a": True, "b": True}) is Verdict.PENDING
    assert tally(joint, {"a": True, "b": True, "c": True, "d": True}) is Verdict.WON
    assert tally(joint, {"a": True, "b": True, "d": False, "e": False}) is Verdict.LOST
    assert agreed(joint, {"a": 9, "b": 8, "c": 3, "d": 2, "e": 1}) == 2
    assert holds(joint, {"a", "c", "d"})
    assert not holds(joint, {"a", "b", "c"})


def test_without_voters_nothing_is_ever_decided() -> None:
    nobody = quorum_of(None)
    assert tally(nobody, {"a": True}) is Verdict.LOST
    assert agreed(nobody, {"a": 5}) == 0
    assert not holds(nobody, {"a"})


@pytest.mark.parametrize(
    ("values", "expected"), [([5], 5), ([5, 3], 3), ([5, 3, 1], 3), ([5, 4, 3, 1], 3), ([9, 7, 5, 3, 1], 5)]
)
def test_what_a_majority_has_reached(values: list[int], expected: int) -> None:
    names = tuple("abcde"[: len(values)])
    assert agreed((names,), dict(zip(names, values, strict=True))) == expected
