"""The tables one by one: producers, id window, offsets, locks, overlays, settings."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.metadata.groups import Groups
from broker.metadata.id_window import IdWindow, id_key
from broker.metadata.locks import GONE_S, LEASE_S, LockLeases, Locks
from broker.metadata.offsets import Offsets
from broker.metadata.ops import GroupPut, TopicPut, key_of
from broker.metadata.overlay import OverlayDict, Stamp
from broker.metadata.producers import (
    Producers,
    ProducerState,
    Run,
    Verdict,
    advance,
    judge,
    pack_positions,
    unpack_positions,
)
from broker.metadata.settings import check_setting
from broker.metadata.topics import Topics

# --- producers


def test_runs_below_the_floor_go() -> None:
    state: ProducerState | None = None
    for first in range(5):
        state = advance(state, 0, Run(first, 1, 0, first, first * 100), floor=max(0, first - 2))
    assert state is not None
    assert [run.first for run in state.runs] == [2, 3, 4]
    assert (state.next, state.floor) == (5, 2)
    late = advance(state, 0, Run(5, 3, 0, 5, 500), floor=1)
    assert late.floor == 2, "a floor never goes back"
    assert judge(late, 0, 8, 1, 8) == (Verdict.NEW, 8)


def test_a_run_across_the_floor_stays() -> None:
    state = advance(None, 0, Run(0, 4, 0, 0, 0), floor=0)
    state = advance(state, 0, Run(4, 1, 0, 4, 400), floor=3)
    assert [run.first for run in state.runs] == [0, 4]


def test_positions_of_a_run_survive_packing() -> None:
    run = Run(0, 3, 0, 0, 7, pack_positions([2**40, 2**41]))
    assert unpack_positions(run) == [7, 2**40, 2**41]
    assert unpack_positions(Run(0, 1, 0, 0, 7)) == [7]


def test_the_least_recently_used_producer_goes_in_log_order() -> None:
    table = Producers(limit=3)
    for pid in (1, 2, 3):
        table.apply(pid, 0, Run(0, 1, 0, 0, pid), 0)
    table.apply(1, 0, Run(1, 1, 0, 0, 10), 0)
    table.apply(4, 0, Run(0, 1, 0, 0, 11), 0)
    assert list(table.items()) == [3, 1, 4]
    assert table.get(2) is None


# --- id window


def test_an_id_is_remembered_for_one_to_two_periods() -> None:
    window = IdWindow(period_ms=1000, count_max=100)
    window.turn(10_000)
    window.enter(1, 100)
    window.turn(10_999)
    assert window.get(1) == 100
    window.turn(11_000)
    assert window.get(1) == 100
    window.enter(2, 200)
    window.turn(11_999)
    assert window.get(1) == 100
    window.turn(12_000)
    assert window.get(1) is None
    assert window.get(2) == 200


def test_generations_turn_by_count_too() -> None:
    window = IdWindow(period_ms=10**9, count_max=3)
    window.turn(10**10)
    for key in range(3):
        window.enter(key, key)
    window.turn(10**10)
    assert len(window) == 3
    for key in range(3, 6):
        window.enter(key, key)
    window.turn(10**10)
    assert [window.get(key) for key in range(6)] == [None, None, None, 3, 4, 5]


def test_after_a_long_silence_both_generations_are_over() -> None:
    window = IdWindow(period_ms=1000, count_max=100)
    window.turn(10_000)
    window.enter(1, 100)
    window.turn(12_000)
    assert window.get(1) is None


def test_the_newest_record_of_an_id_counts() -> None:
    window = IdWindow()
    window.turn(10**12)
    window.enter(1, 100)
    window.enter(1, 200)
    assert window.get(1) == 200


def test_an_id_key_tells_topic_id_and_retry_apart() -> None:
    keys = {id_key(b"t", b"id", 0), id_key(b"t", b"id", 1), id_key(b"ti", b"d", 0), id_key(b"t", b"id0", 0)}
    assert len(keys) == 4
    assert id_key(b"t", b"id", 0) == id_key(b"t", b"id", 0) < 2**64


# --- overlays


keys = st.integers(0, 5)
changes = st.lists(st.tuples(st.sampled_from(["put", "del", "forget"]), keys, st.integers(0, 9)), max_size=40)


@given(st.dictionaries(keys, st.integers(0, 9)), changes)
def test_an_overlay_is_the_dict_that_its_base_will_be(base: dict[int, int], steps: list[tuple[str, int, int]]) -> None:
    stamp = Stamp()
    overlay = OverlayDict(base, stamp)
    model = dict(base)
    log: list[tuple[int, str, int, int]] = []
    for index, (deed, key, value) in enumerate(steps, start=1):
        stamp.index = index
        if deed == "put":
            overlay[key] = model[key] = value
            log.append((index, deed, key, value))
        elif deed == "del":
            assert overlay.pop(key, None) == model.pop(key, None)
            log.append((index, deed, key, value))
        else:
            # Entries up to here are applied: the base catches up, the overlay forgets.
            for _, each, changed, to in log:
                if each == "put":
                    base[changed] = to
                else:
                    base.pop(changed, None)
            log.clear()
            overlay.forget(index)
            assert overlay.own_count == 0
        assert dict(overlay) == model
        assert len(overlay) == len(model)
        for each_key in range(6):
            assert overlay.find(each_key) == model.get(each_key)
            assert (each_key in overlay) == (each_key in model)


def test_deleting_what_an_overlay_does_not_have_is_an_error() -> None:
    nothing: Mapping[int, int] = {}
    with pytest.raises(KeyError):
        del OverlayDict(nothing, Stamp())[1]


# --- topics, groups, offsets, settings


def test_a_topic_id_never_changes_its_name() -> None:
    topics = Topics()
    topics.put(TopicPut(1, "a", 1, 1))
    with pytest.raises(ValueError, match="topic id 1"):
        topics.put(TopicPut(1, "b", 1, 1))
    topics.delete(1)
    assert topics.delete(1) is None
    assert (topics.get(b"a"), topics.highest) == (None, 1)


def test_a_deleted_groups_id_waits_for_its_name_only_when_offsets_are_kept() -> None:
    groups = Groups()
    groups.put(GroupPut(1, "a"))
    groups.put(GroupPut(2, "b"))
    groups.delete(1, drop_offsets=False)
    groups.delete(2, drop_offsets=True)
    assert groups.delete(2, drop_offsets=True) is None
    assert (groups.next_id("a"), groups.next_id("b")) == (1, 3)
    groups.put(GroupPut(1, "a"))
    assert groups.retired == {}


def test_old_resets_are_forgotten() -> None:
    offsets = Offsets()
    offsets.reset(1, 5, 3, 1000)
    offsets.expire(60_999)
    assert offsets.fence(1, 5) == (3, 1000)
    offsets.expire(61_000)
    assert offsets.fence(1, 5) is None
    assert not offsets.any_fence


def test_offsets_are_listed_by_group_and_by_topic() -> None:
    offsets = Offsets()
    offsets.put(1, key_of(1, 0), 5)
    offsets.put(2, key_of(1, 1), 6)
    offsets.put(2, key_of(2, 0), 7)
    assert offsets.of_group(2) == {key_of(1, 1): 6, key_of(2, 0): 7}
    assert offsets.groups_of_topic(1) == [1, 2]
    assert offsets.of_group(9) == {}


@pytest.mark.parametrize(
    ("key", "value"), [("listenPort", "1"), ("fileReservedTime", "0"), ("autoCreateTopicEnable", "yes")]
)
def test_only_allowed_settings_may_be_written(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=key if key == "listenPort" else value):
        check_setting(key, value)


def test_a_setting_is_taken_back_with_an_empty_value() -> None:
    check_setting("fileReservedTime", "")
    check_setting("fileReservedTime", "48")


# --- locks


def test_a_queue_has_one_owner_until_its_lease_ends() -> None:
    locks = Locks()
    leases = LockLeases(locks, now=0.0)
    assert leases.lock(1, "a", [10, 11], 0.0) == ([10, 11], [10, 11])
    locks.put(1, "a", [10, 11])
    assert leases.lock(1, "b", [10, 12], 1.0) == ([12], [12])
    assert leases.lock(1, "a", [10], 50.0) == ([10], [])
    assert leases.lock(1, "b", [11], LEASE_S) == ([11], [11])
    assert leases.lock(2, "b", [10], 1.0) == ([10], [10]), "another consumer group"


def test_a_new_leader_gives_every_restored_lock_a_full_lease() -> None:
    locks = Locks()
    locks.put(1, "a", [10])
    leases = LockLeases(locks, now=1000.0)
    assert leases.lock(1, "b", [10], 1000.0 + LEASE_S - 1).granted == []
    assert leases.expired(1000.0 + LEASE_S - 1) == {}
    assert leases.expired(1000.0 + LEASE_S) == {1: [10]}


def test_only_the_owner_unlocks() -> None:
    locks = Locks()
    locks.put(1, "a", [10])
    leases = LockLeases(locks, now=0.0)
    assert leases.unlock(1, "b", [10]) == []
    assert leases.unlock(1, "a", [10, 11]) == [10]


def test_the_lock_of_an_owner_that_is_gone_ends_when_it_can_not_believe_in_it_any_more() -> None:
    locks = Locks()
    leases = LockLeases(locks, now=0.0)
    locks.put(1, "dead", leases.lock(1, "dead", [10], 0.0).changed)
    assert leases.lock(1, "next", [10], GONE_S - 1, gone=lambda owner: owner == "dead").granted == []
    assert leases.lock(1, "next", [10], GONE_S + 1, gone=lambda owner: False).granted == [], "it is only late"
    verdict = leases.lock(1, "next", [10], GONE_S + 1, gone=lambda owner: owner == "dead")
    assert (verdict.granted, verdict.changed) == ([10], [10])
