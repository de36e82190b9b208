"""Replication (Raft paper 5.3): where logs meet, what is sent, and what a lost message costs."""

from __future__ import annotations

import pytest

from raft.core import (
    ZERO,
    AppendReply,
    AppendRequest,
    EntryId,
    Health,
    InvariantBroken,
    PeerState,
    PeerStatus,
    RaftConfig,
    Role,
)
from tests.raft.core.cluster import Cluster, Replica
from tests.raft.core.model import Entry, members, seal, seal_terms
from tests.raft.core.planted import AcksItsOwnEnd


def peer(leader: Replica, node: str) -> PeerStatus:
    return next(p for p in leader.core.status().peers if p.id == node)


def request(log: list[Entry], first: int, last: int, *, term: int, commit: int = 0, to: str = "b") -> AppendRequest:
    """Entries (first..last] of a leader's log, as it would send them."""
    prev = EntryId.of(log[first - 1]) if first else ZERO
    end = EntryId.of(log[last - 1]) if last else ZERO
    return AppendRequest(term, "a", to, prev, end, commit, 0, tuple(log[first:last]))


def answer(replica: Replica, message: AppendRequest) -> AppendReply:
    since = len(replica.cluster.trace)
    for index, entry in enumerate(message.entries, message.prev.index + 1):
        replica.cluster.checker.said[message.term, index] = entry.crc
        replica.cluster.checker.entry("a", entry)
    replica.cluster.checker.said[message.term, message.prev.index] = message.prev.crc
    replica.step(message)
    while replica.disk.queue:
        replica.finish()
    replies = [m for m in replica.cluster.trace[since:] if isinstance(m, AppendReply) and m.sender == replica.id]
    assert len(replies) == 1
    return replies[0]


def test_a_new_leader_probes_with_one_request_and_then_replicates() -> None:
    cluster = Cluster("abc")
    cluster.cut("a", "c")
    leader = cluster.elect("a")
    assert peer(leader, "b").state == PeerState.REPLICATE
    assert peer(leader, "c").state == PeerState.PROBE
    since = len(cluster.trace)
    for _ in range(5):
        leader.propose("x")
    assert [m.to for m in cluster.trace[since:] if isinstance(m, AppendRequest) and m.to == "c"] == []


def test_at_most_two_requests_are_in_flight() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    since = len(cluster.trace)
    for _ in range(6):
        leader.propose("x")
    sent = [m for m in cluster.trace[since:] if isinstance(m, AppendRequest) and m.to == "b"]
    assert len(sent) == 2
    assert peer(leader, "b").in_flight == 2
    cluster.settle()
    assert peer(leader, "b").match == 7
    assert cluster.count(AppendRequest, since) == 6, "the four that waited went as one request per follower"


def test_the_window_is_bounded_in_bytes_and_one_larger_entry_goes_alone() -> None:
    config = RaftConfig(node_id="", window_requests=64, window_bytes=1000, request_bytes=500, probe_bytes=100)
    cluster = Cluster("ab", config=config)
    leader = cluster.elect("a")
    since = len(cluster.trace)
    leader.propose("x", "y", size=400)
    leader.propose("huge", size=5000)
    leader.propose("z", size=100)
    sizes = [m.last.end - m.prev.end for m in cluster.trace[since:] if isinstance(m, AppendRequest)]
    assert sizes == [400, 400], "the large one waits until it can go alone"
    cluster.settle()
    sizes = [m.last.end - m.prev.end for m in cluster.trace[since:] if isinstance(m, AppendRequest)]
    assert sizes == [400, 400, 5000, 100]
    assert cluster["b"].core.last == leader.core.last


def test_a_full_window_that_is_lost_entirely_is_reopened_by_a_beat() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.propose("x")
    leader.propose("y")
    leader.propose("z")
    cluster.lose(lambda m: isinstance(m, AppendRequest))
    cluster.settle()
    assert leader.core.commit == 1
    cluster.time(300)
    assert leader.core.commit == 4
    assert [r.core.last.index for r in cluster.replicas.values()] == [4, 4, 4]


def test_lost_acknowledgements_are_found_by_a_beat_without_sending_the_entries_again() -> None:
    cluster = Cluster("ab")
    leader = cluster.elect("a")
    leader.propose("x")
    cluster.deliver(lambda m: isinstance(m, AppendRequest))
    while cluster["b"].disk.queue:
        cluster["b"].finish()
    cluster.lose(lambda m: isinstance(m, AppendReply))
    since = len(cluster.trace)
    cluster.time(300)
    assert leader.core.commit == 2
    assert not [m for m in cluster.trace[since:] if isinstance(m, AppendRequest) and m.entries]


def test_a_single_lost_request_is_found_without_further_traffic() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.propose("x")
    cluster.lose(lambda m: isinstance(m, AppendRequest) and m.to == "c")
    cluster.time(400)
    assert cluster["c"].core.last.index == 2


def test_a_slow_answer_does_not_multiply_requests() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    cluster.held.add("c")
    since = len(cluster.trace)
    leader.propose("x", size=1000)
    cluster.time(1_000)
    to_c = [m for m in cluster.trace[since:] if isinstance(m, AppendRequest) and m.to == "c"]
    assert len([m for m in to_c if m.entries]) == 1
    assert len(to_c) <= 11, "one empty request a beat at most"


def test_doubled_and_reordered_requests_do_no_harm() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.propose("x")
    leader.propose("y")
    mine = [m for m in cluster.queue if isinstance(m, AppendRequest) and m.to == "b"]
    cluster.lose(lambda m: m.to == "b")
    for message in (mine[1], mine[0], mine[0], mine[1], mine[1]):
        cluster["b"].step(message)
    cluster.settle()
    cluster.time(200)
    assert cluster["b"].core.last == leader.core.last
    assert cluster["b"].core.commit == 3


def test_a_delayed_append_below_commit_is_answered_with_commit_and_touches_nothing() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.propose("x")
    late = next(m for m in cluster.queue if isinstance(m, AppendRequest) and m.to == "b")
    cluster.settle()
    leader.propose("y", "z")
    cluster.settle()
    cluster.time(200)
    assert cluster["b"].core.commit == 4
    before = cluster["b"].core.last
    reply = answer(cluster["b"], late)
    assert (reply.match, reply.rejected) == (4, -1)
    assert cluster["b"].core.last == before


def test_a_prev_that_retention_has_deleted_is_no_reason_to_delete() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.propose(*"vwxyz")
    cluster.settle()
    cluster.time(200)
    cluster["b"].disk.dropped = 4
    log = [e for e in leader.disk.entries if isinstance(e, Entry)]
    reply = answer(cluster["b"], request(log, 1, 3, term=1))
    assert (reply.match, reply.rejected, reply.first_index) == (6, -1, 5)
    assert cluster["b"].core.last.index == 6


def test_an_empty_append_never_truncates_a_longer_follower() -> None:
    log = seal_terms([1, 1, 1])
    cluster = Cluster("ab", logs={"b": log})
    reply = answer(cluster["b"], request(log, 1, 1, term=1))
    assert (reply.match, cluster["b"].core.last.index) == (1, 3)


def test_an_acknowledgement_names_what_the_request_verified_not_the_followers_own_end() -> None:
    log = seal_terms([1, 1, 1])
    cluster = Cluster("ab", logs={"b": log})
    assert answer(cluster["b"], request(log, 0, 2, term=1)).match == 2
    wrong = Cluster("ab", logs={"b": log}, core_type=AcksItsOwnEnd)
    with pytest.raises(AssertionError, match="S11"):
        answer(wrong["b"], request(log, 0, 2, term=1))


def test_a_batch_that_is_partly_known_appends_only_the_rest() -> None:
    log = seal_terms([1, 1, 1, 1])
    cluster = Cluster("ab", logs={"b": log[:2]})
    cluster["b"].step(request(log, 1, 4, term=1))
    batch = cluster["b"].disk.queue[-1]
    assert [e.index for e in batch.entries] == [3, 4]
    assert batch.truncate_to is None


def test_only_the_first_differing_term_is_where_a_follower_is_cut() -> None:
    own = seal_terms([1, 1, 2, 2, 2])
    leaders = seal_terms([1, 1, 2, 3, 3])
    cluster = Cluster("ab", logs={"b": own})
    cluster["b"].step(request(leaders, 1, 5, term=3))
    batch = cluster["b"].disk.queue[-1]
    assert batch.truncate_to == EntryId.of(own[2])
    assert [(e.index, e.term) for e in batch.entries] == [(4, 3), (5, 3)]
    assert cluster["b"].core.durable == 3
    assert cluster["b"].terms == [1, 1, 2, 3, 3]


def test_a_rejection_hints_at_the_largest_own_entry_that_could_still_agree() -> None:
    cluster = Cluster("ab", logs={"b": seal_terms([1, 1, 2, 2, 2])})
    far = seal_terms([1, 1, 1, 3, 3, 3, 3])
    reply = answer(cluster["b"], request(far, 7, 7, term=3))
    assert (reply.rejected, reply.hint_index, reply.hint_term) == (7, 5, 2)
    older = seal_terms([1, 1, 1, 1])
    reply = answer(cluster["b"], request(older, 4, 4, term=3))
    assert (reply.rejected, reply.hint_index, reply.hint_term) == (4, 2, 1)


def test_stale_rejections_are_ignored() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.propose("x", "y")
    cluster.settle()
    before = peer(leader, "b")
    leader.step(AppendReply(1, "b", "a", 0, 2, 0, 0, 1, Health.OK, 1))
    assert peer(leader, "b") == before


def test_a_rejection_by_hint_skips_the_leaders_own_newer_terms_too() -> None:
    cluster = Cluster("ab", logs={"a": seal_terms([1, 3, 3, 3, 3]), "b": seal_terms([1, 2, 2])})
    since = len(cluster.trace)
    leader = cluster.elect("a")
    assert cluster["b"].core.last == leader.core.last
    rejected = [m for m in cluster.trace[since:] if isinstance(m, AppendReply) and m.rejected >= 0]
    assert [(m.rejected, m.hint_index, m.hint_term) for m in rejected] == [(5, 3, 2)]


def test_equal_terms_but_another_header_crc_stop_the_replica_and_nothing_is_cut() -> None:
    log = seal_terms([1, 1, 1])
    other = [seal(ZERO, 1, "rotten")]
    cluster = Cluster("ab", logs={"b": log})
    with pytest.raises(InvariantBroken, match="S4"):
        cluster["b"].step(request(other, 1, 1, term=1))
    assert cluster["b"].core.last.index == 3
    assert not cluster["b"].disk.queue


def test_entries_that_do_not_chain_stop_the_replica() -> None:
    first = seal_terms([1])
    gap = seal(EntryId(1, 1, first[0].crc, 999), 1, "elsewhere")
    cluster = Cluster("ab", logs={"b": first})
    message = AppendRequest(1, "a", "b", EntryId.of(first[0]), EntryId.of(gap), 0, 0, (gap,))
    with pytest.raises(InvariantBroken, match="S15"):
        cluster["b"].step(message)


def test_a_proposal_that_does_not_chain_is_refused_by_stopping() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    with pytest.raises(InvariantBroken, match="S15"):
        leader.core.propose([seal(ZERO, 1, "x")], leader.now_ms)


def test_an_append_of_an_older_term_is_rejected_with_the_own_term() -> None:
    cluster = Cluster("ab")
    cluster["b"].step(AppendRequest(4, "a", "b", ZERO, ZERO, 0, 0))
    cluster.settle()
    reply = answer(cluster["b"], AppendRequest(3, "a", "b", ZERO, ZERO, 0, 0))
    assert (reply.term, reply.rejected) == (4, 0)


def test_a_peer_that_needs_deleted_entries_is_installed_and_then_fed_from_its_new_end() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    cluster.isolate("c")
    leader.propose(*"tuvwxyz")
    cluster.settle()
    leader.disk.dropped = 5
    cluster.heal()
    cluster.time(300)
    assert peer(leader, "c").state == PeerState.INSTALL
    assert {i[0] for i in leader.installs} == {"c"}
    cluster.time(1_000)
    assert len(leader.installs) >= 10, "said again while it lasts"
    end = leader.core.entry_id(7)
    assert end is not None
    assert cluster["c"].core.may_install(end)
    cluster["c"].crash()
    cluster["c"].disk.install(leader.disk, 7)
    cluster["c"].start()
    cluster["c"].turn()
    cluster.time(300)
    assert peer(leader, "c").state == PeerState.REPLICATE
    assert cluster["c"].core.last == leader.core.last


def test_a_peer_that_was_installed_is_asked_where_it_stands_and_not_installed_again() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    cluster.isolate("c")
    leader.propose(*"tuvwxyz")
    cluster.settle()
    cluster["a"].crash()
    cluster["a"].start()
    leader = cluster.elect("b")  # it has never heard an acknowledgement of c's
    cluster.settle()
    for node in "ab":
        cluster[node].disk.dropped = 5
    cluster.heal()
    cluster.time(300)
    assert peer(leader, "c").state == PeerState.INSTALL
    assert peer(leader, "c").match == 0
    cluster["c"].crash()
    cluster["c"].disk.install(leader.disk, 7)
    cluster["c"].start()
    cluster["c"].turn()
    offers = len(leader.installs)
    cluster.time(300)
    assert peer(leader, "c").state == PeerState.REPLICATE
    assert len(leader.installs) == offers
    assert cluster["c"].core.last == leader.core.last


def test_an_install_is_refused_once_the_log_holds_its_end() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.propose(*"xyz")
    cluster.settle()
    end = leader.core.entry_id(3)
    assert end is not None
    assert not cluster["b"].core.may_install(end)


def test_an_acknowledgement_beyond_the_leaders_log_stops_the_leader() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    with pytest.raises(InvariantBroken, match="S6"):
        leader.step(AppendReply(1, "b", "a", 99, -1, 0, 0, 1, Health.OK, 1))


def test_messages_of_strangers_and_of_older_terms_are_ignored() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    before = leader.core.status()
    leader.step(AppendReply(1, "z", "a", 99, -1, 0, 0, 1, Health.OK, 1))
    leader.step(AppendReply(0, "b", "a", 99, -1, 0, 0, 1, Health.OK, 1))
    assert leader.core.status() == before


def test_a_lost_link_brings_the_peer_back_to_probing_and_its_return_resumes_at_once() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.propose("x")
    cluster.lose(lambda m: m.to == "b")
    leader.core.link_down("b", leader.now_ms)
    leader.propose("y")
    leader.turn()
    assert peer(leader, "b").state == PeerState.PROBE
    leader.core.link_up("b", leader.now_ms)
    leader.turn()
    cluster.settle()
    assert cluster["b"].core.last.index == 3


def test_a_restarted_follower_is_probed_from_what_it_had_acknowledged() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.propose("x")
    cluster.settle()
    leader.propose("y")
    cluster.deliver(lambda m: m.to == "b")
    cluster["b"].crash()
    cluster["b"].start()
    cluster["b"].turn()
    cluster.time(300)
    assert cluster["b"].core.last == leader.core.last
    assert peer(leader, "b").losses == 0


def test_a_follower_whose_disk_lied_is_fed_again_at_the_pace_of_beats_and_noted() -> None:
    cluster = Cluster("abc")
    leader = cluster.elect("a")
    leader.propose(*"xyz")
    cluster.settle()
    cluster["b"].crash()
    cluster["b"].disk.rot(2)
    cluster["b"].start()  # recovery noticed nothing
    cluster["b"].turn()
    since = len(cluster.trace)
    cluster.time(1_000)
    assert cluster["b"].core.last == leader.core.last
    assert peer(leader, "b").losses == 1
    assert cluster.count(AppendRequest, since) < 10


def test_a_follower_answers_everything_of_one_turn_with_one_write_and_one_acknowledgement() -> None:
    cluster = Cluster("ab")
    leader = cluster.elect("a")
    leader.propose("x")
    leader.propose("y", "z")
    follower = cluster["b"]
    for message in [m for m in cluster.queue if isinstance(m, AppendRequest)]:
        follower.core.step(message, follower.now_ms)
    cluster.lose()
    follower.turn()
    assert len(follower.disk.queue) == 1
    batch = follower.disk.queue[0]
    assert [e.index for e in batch.entries] == [2, 3, 4]
    assert [m.match for m in batch.release if isinstance(m, AppendReply)] == [4]


def test_a_learner_is_fed_but_never_counted() -> None:
    cluster = Cluster("abcd", membership=members("abc", "d"))
    leader = cluster.elect("a")
    cluster.isolate("b")
    cluster.isolate("c")
    leader.propose("x")
    cluster.settle()
    assert cluster["d"].core.last.index == 2
    assert cluster["d"].core.role == Role.LEARNER
    assert leader.core.commit == 1
