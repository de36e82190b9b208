"""The applied state: a function of the log, whole in its snapshot, loud about what changed."""

from __future__ import annotations

import random

import cbor2
import pytest

from broker.metadata import ops
from broker.metadata.state import GroupState
from broker.store.entry import START, EntryId, EntryKind, seal_entry
from tests.support.intake_bench import Queues, Replica, apply_entry
from tests.support.random_log import RandomWork


def random_log(seed: int) -> Replica:
    rng = random.Random(seed)
    leader = Replica(window_ms=2000, window_count=20)
    leader.lead()
    work = RandomWork(leader, rng)
    for _ in range(150):
        work.step()
        if rng.random() < 0.1:
            leader.flush()
    leader.intake.flush_offsets()
    leader.flush()
    return leader


def fresh() -> GroupState:
    return GroupState(window_ms=2000, window_count=20)


@pytest.mark.parametrize("seed", range(15))
def test_a_snapshot_holds_everything_and_the_log_goes_on_from_it(seed: int) -> None:
    leader = random_log(seed)
    entries = leader.log.entries
    cut = random.Random(seed).randrange(len(entries) + 1)

    straight, queues = fresh(), Queues()
    for entry in entries[:cut]:
        apply_entry(straight, queues, entry)
    encode = straight.snapshot()
    at_cut = encode()
    restored, restored_queues = fresh(), Queues()
    restored.restore(at_cut)
    restored_queues.ends = dict(queues.ends)
    assert restored.snapshot()() == at_cut

    for entry in entries[cut:]:
        apply_entry(straight, queues, entry)
        apply_entry(restored, restored_queues, entry)
    assert restored.snapshot()() == straight.snapshot()() == leader.state.snapshot()()
    assert list(restored.producers.items()) == list(straight.producers.items()), "the order of last use too"
    assert encode() == at_cut, "a snapshot does not change with the state"


def test_restoring_replaces_what_was_there() -> None:
    one, two = random_log(1), random_log(2)
    state = one.state
    state.restore(two.state.snapshot()())
    assert state.snapshot()() == two.state.snapshot()()
    assert state.applied_index == two.state.applied_index


@pytest.mark.parametrize("data", [b"", b"\xff", cbor2.dumps({}), cbor2.dumps({"format": 1}), cbor2.dumps([1])])
def test_a_malformed_snapshot_is_refused(data: bytes) -> None:
    with pytest.raises(ops.ControlError):
        fresh().restore(data)


def test_a_newer_snapshot_is_refused_by_name() -> None:
    with pytest.raises(ops.NewerVersion):
        fresh().restore(cbor2.dumps({"format": 2}))


def test_listeners_hear_of_changes_when_the_entry_is_applied() -> None:
    leader = Replica()
    leader.lead()
    state = leader.state
    heard: list[object] = []
    state.on_touched.append(lambda touched: heard.append(("touched", dict(touched))))
    state.on_applied.append(lambda index, end: heard.append(("applied", index)))
    state.on_topics.append(lambda: heard.append("topics"))
    state.on_topic_removed.append(lambda tid: heard.append(("removed", tid)))
    state.on_groups.append(lambda: heard.append("groups"))
    state.on_members.append(lambda gid: heard.append(("members", gid)))

    leader.put()
    (entry,) = leader.flush()
    assert heard == ["topics", ("applied", entry.index), ("touched", {ops.key_of(1, 0): 1})]
    assert state.topics_changed == entry.index

    heard.clear()
    gid = leader.intake.ensure_group("g").gid
    leader.intake.put_ops([ops.MembersPut(gid, ["b", "a"]), ops.TopicDel(1)])
    entries = leader.flush()
    assert heard == [
        "groups", "topics", ("applied", entries[0].index), ("members", gid), ("removed", 1), "topics",
        ("applied", entries[1].index),
    ]  # fmt: skip
    assert state.members.get(gid) == ("a", "b")


def test_an_unknown_op_stops_the_group_and_names_the_reason() -> None:
    state = fresh()
    entry = seal_entry(
        kind=EntryKind.METADATA,
        prev=START,
        term=1,
        lineage=1,
        commit_hint=0,
        control=cbor2.dumps([1, 5, [[60, "new"]]]),
    )
    with pytest.raises(ops.NewerVersion, match="op code 60"):
        state.apply_control(entry, entry.control)


def test_a_record_of_an_unknown_topic_is_a_broken_log() -> None:
    with pytest.raises(KeyError):
        fresh().topic_id(b"never")


def test_entries_without_payload_move_the_applied_index_only() -> None:
    state = fresh()
    entry = seal_entry(kind=EntryKind.NOOP, prev=EntryId(6, 1, 0, 600), term=1, lineage=1, commit_hint=0)
    state.entry_applied(entry, {})
    assert (state.applied_index, state.applied_end, state.log_time) == (7, 664, 0)


def test_a_feature_level_never_falls() -> None:
    state = fresh()
    state.tables.apply(ops.Feature(3), 0)
    state.tables.apply(ops.Feature(2), 0)
    assert state.settings.feature_level == 3
