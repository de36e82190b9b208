"""What counts and who leads, strategy by strategy, and while a group moves: the pure rules, on a view of a core."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from broker.replication.ha.epochs import next_epoch
from broker.replication.ha.rules import GroupRules, grants_needed, reached_by
from broker.replication.membership import GroupDetail
from broker.store.boot import Belief
from raft.core.messages import AppendReply, VoteRequest
from raft.core.quorum import Verdict
from raft.core.state import CoreState
from raft.core.types import Campaign, EntryId, Health, Member, Membership, Role

IDS = ("n0", "n1", "n2")


def membership(
    strategy: str, *, count: int = 3, required: int = 2, master: str = "n0", flush: bool = True
) -> Membership:
    voters = tuple(Member(id=node, rank=rank, uuid=f"u{rank}") for rank, node in enumerate(IDS[:count]))
    return Membership(voters, (), GroupDetail(strategy=strategy, required=required, master="n0", flush_sync=flush))


@dataclass
class Memberships:
    before: Membership | None = None
    index: int = 1


@dataclass
class View:
    """As much of a core as rules look at."""

    membership: Membership
    id: str = "n0"
    commit: int = 10
    durable: int = 20
    term: int = 256
    vote: str = ""
    role: Role = Role.LEADER
    campaign: Campaign = Campaign.ELECTION
    transfer_from: str = ""
    gone: set[str] = field(default_factory=set)
    unheard: frozenset[str] = frozenset()
    last: EntryId = field(default_factory=lambda: EntryId(20, 256, 0, 0))
    memberships: Memberships = field(default_factory=Memberships)

    @property
    def core(self) -> CoreState:
        return cast("CoreState", self)


def rules(*in_sync: str, **changes: object) -> GroupRules:
    made = GroupRules()
    made.in_sync, made.uuid = in_sync, "u0"
    for name, value in changes.items():
        setattr(made, name, value)
    return made


REACHED = {"n0": 20, "n1": 18, "n2": 15}


@pytest.mark.parametrize(
    ("strategy", "in_sync", "committed", "acknowledged"),
    [
        ("async", IDS, 20, 20),
        ("sync", IDS, 15, 18),
        ("sync", ("n0", "n1"), 18, 18),
        ("sync", ("n0",), 20, 18),
        ("raft", (), 18, 10),
    ],
)
def test_what_counts(strategy: str, in_sync: tuple[str, ...], committed: int, acknowledged: int) -> None:
    view, made = View(membership(strategy)), rules(*in_sync)
    assert made.committed(view.core, REACHED) == committed
    assert made.acknowledged(view.core, REACHED) == acknowledged


def test_the_own_end_bounds_every_acknowledgement() -> None:
    reached = {"n0": 5, "n1": 18, "n2": 18}
    assert rules(*IDS).acknowledged(View(membership("sync")).core, reached) == 5


@pytest.mark.parametrize(("old", "new"), list(itertools.permutations(("async", "sync", "raft"), 2)))
def test_from_append_to_commit_of_a_move_both_rules_hold(old: str, new: str) -> None:
    made = rules(*IDS)
    view = View(membership(new), memberships=Memberships(membership(old), index=17))
    for reached in ({"n0": 20, "n1": 18, "n2": 15}, {"n0": 20, "n1": 0, "n2": 0}, {"n0": 12, "n1": 20, "n2": 20}):
        alone = [View(membership(each)) for each in (old, new)]
        assert made.committed(view.core, reached) == min(made.committed(each.core, reached) for each in alone)
    assert made.strategies(view.core) == (old, new)
    view.commit = 17
    assert made.strategies(view.core) == (new,)


def test_every_set_of_grants_that_is_enough_has_what_was_acknowledged() -> None:
    for count in range(1, 4):
        for required in range(1, count + 1):
            group = membership("sync", count=count, required=required)
            needed = grants_needed(group)
            for holders in itertools.combinations(group.voter_ids, required):
                for granted in itertools.combinations(group.voter_ids, needed):
                    assert set(holders) & set(granted), (count, required, holders, granted)


def vote(view: View, made: GroupRules, votes: Mapping[str, bool], *, over: bool = False) -> Verdict:
    return made.tally(view.core, votes, over=over)


def test_a_promotion_waits_for_whoever_can_answer_and_ends_with_a_refusal() -> None:
    view = View(membership("sync"), id="n1", role=Role.CANDIDATE, campaign=Campaign.ORDERED)
    made = rules()
    assert vote(view, made, {"n1": True, "n2": True}) is Verdict.PENDING
    assert vote(view, made, {"n1": True, "n2": True}, over=True) is Verdict.WON
    assert vote(view, made, {"n1": True}, over=True) is Verdict.LOST
    assert vote(view, made, {"n1": True, "n2": True, "n0": False}) is Verdict.LOST
    assert vote(view, made, {"n2": True, "n0": True}, over=True) is Verdict.PENDING, "the own vote is not on the disk"


def test_only_an_order_does_without_the_word_of_whoever_cannot_answer() -> None:
    made, votes = rules(), {"n1": True, "n2": True}
    for silent in ({"gone": {"n0"}}, {"unheard": frozenset({"n0"})}):
        view = View(membership("sync"), id="n1", role=Role.CANDIDATE, **silent)
        assert vote(view, made, votes) is Verdict.PENDING, "a master that comes back asks on"
        view.campaign = Campaign.ORDERED
        assert vote(view, made, votes) is Verdict.WON
        assert vote(view, made, {"n1": True}) is Verdict.PENDING, "n2 lives and may refuse"
        assert vote(view, made, {**votes, "n0": False}) is Verdict.LOST, "it lives after all"


def test_under_async_only_all_grants_or_force_make_a_master() -> None:
    view = View(membership("async"), id="n1", role=Role.CANDIDATE, campaign=Campaign.ORDERED)
    assert vote(view, rules(), {"n1": True, "n2": True}, over=True) is Verdict.LOST
    assert vote(view, rules(), {"n1": True, "n2": True, "n0": True}) is Verdict.WON
    view.campaign = Campaign.FORCED
    assert vote(view, rules(), {"n1": True}) is Verdict.WON


def test_a_hand_over_needs_the_master_only() -> None:
    view = View(membership("async"), id="n1", role=Role.CANDIDATE, campaign=Campaign.TRANSFER, transfer_from="n0")
    assert vote(view, rules(), {"n1": True, "n0": True}) is Verdict.WON


def test_a_returning_master_goes_on_alone_where_it_has_all_it_acknowledged() -> None:
    alone = {"n0": True}
    resuming = View(membership("async"), role=Role.CANDIDATE)
    assert vote(resuming, rules(), alone, over=True) is Verdict.WON
    assert vote(resuming, rules(), {"n0": True, "n1": False}) is Verdict.LOST, "somebody has more, or another master"
    two = View(membership("sync", count=2), role=Role.CANDIDATE)
    assert vote(two, rules(), alone, over=True) is Verdict.WON
    unflushed = View(membership("sync", count=2, flush=False), role=Role.CANDIDATE)
    assert vote(unflushed, rules(), alone, over=True) is Verdict.WON
    assert vote(unflushed, rules(belief=Belief.DOUBTED), alone, over=True) is Verdict.LOST, "its log may be short"
    assert vote(unflushed, rules(belief=Belief.DOUBTED), {"n0": True, "n1": True}) is Verdict.WON
    single = View(membership("sync", count=1, flush=False), role=Role.CANDIDATE)
    assert vote(single, rules(belief=Belief.DOUBTED), alone) is Verdict.WON, "nobody has more"


def test_a_slave_gives_up_what_only_the_masters_own_epoch_has() -> None:
    """What the master was killed while writing; never what another one, or a log that may be short, lacks."""
    back = View(membership("sync"), role=Role.CANDIDATE, term=512, vote="n0")
    assert rules().resumes(back.core)
    assert not rules(belief=Belief.DOUBTED).resumes(back.core)
    assert not rules(belief=Belief.ACCEPTED).resumes(back.core), "an operator's word does not outweigh a slave's log"
    assert not rules().resumes(replace(back, vote="").core), "it has heard of a newer epoch"
    assert not rules().resumes(replace(back, campaign=Campaign.ORDERED).core)
    assert not rules().resumes(replace(back, id="n1", vote="n1").core)
    assert not rules().resumes(replace(back, memberships=Memberships(membership("raft"), index=11)).core)

    ask = VoteRequest(512, "n0", "n1", EntryId(17, 256, 0, 0), 1, pre=False, resumes=True)
    slave = View(membership("sync"), id="n1", role=Role.FOLLOWER)
    assert rules().yields_tail(slave.core, ask)
    assert not rules().yields_tail(slave.core, replace(ask, resumes=False))
    assert not rules().yields_tail(slave.core, replace(ask, sender="n2")), "not the master that the log names"
    assert not rules().yields_tail(slave.core, replace(ask, last=EntryId(17, 254, 0, 0))), "an older epoch's end"
    promoted = replace(slave, last=EntryId(20, 257, 0, 0))
    assert not rules().yields_tail(promoted.core, replace(ask, last=EntryId(17, 257, 0, 0))), "n1's epoch, not n0's"
    moving = replace(slave, memberships=Memberships(membership("raft"), index=11))
    assert not rules().yields_tail(moving.core, ask)


def test_only_the_named_master_with_its_own_store_campaigns_by_itself() -> None:
    assert rules().elects(View(membership("sync")).core)
    assert not rules().elects(View(membership("sync"), id="n1").core)
    assert not rules(uuid="another").elects(View(membership("sync")).core)
    assert rules().elects(View(membership("raft"), id="n1").core)


def test_on_the_way_to_raft_a_slave_campaigns_once_the_entry_is_on_its_disk() -> None:
    view = View(membership("raft"), id="n1", memberships=Memberships(membership("sync"), index=17), durable=16)
    assert not rules().elects(view.core)
    view.durable = 17
    assert rules().elects(view.core)


def test_epochs_are_never_opened_twice_and_an_order_stays_ahead_of_restarts() -> None:
    epochs = [next_epoch(256 + old, rank) for old in (0, 1, 2) for rank in range(3)]
    assert sorted(set(epochs)) == [512, 513, 514]
    ordered = next_epoch(256, 1, steps=4096)
    restarted = 256
    for _ in range(4000):
        restarted = next_epoch(restarted, 0)
    assert restarted < ordered


def test_a_report_beyond_the_masters_end_is_refused() -> None:
    view = View(membership("sync"))
    honest = AppendReply(256, "n1", "n0", 20, -1, 0, 0, 1, Health.OK, 1)
    forged = AppendReply(256, "n1", "n0", 21, -1, 0, 0, 1, Health.OK, 1)
    assert rules().refuses(view.core, honest) == ""
    assert "forged" in rules().refuses(view.core, forged)


def test_reached_by() -> None:
    assert [reached_by(count, IDS, REACHED) for count in (0, 1, 2, 3, 4)] == [0, 20, 18, 15, 0]
