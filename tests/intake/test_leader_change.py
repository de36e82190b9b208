"""A new leader's view, made by scanning, is the state that applying the same log would give."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from broker.metadata.id_window import id_key
from broker.store.entry import Entry
from tests.support.intake_bench import Client, Replica, apply_entry, drive, run_scan
from tests.support.random_log import RandomWork, assert_view_is
from trimq.message.properties import get as get_property


def random_leader(seed: int, steps: int = 150) -> tuple[Replica, random.Random]:
    rng = random.Random(seed)
    leader = Replica(segment_bytes=128 << 10)
    leader.lead()
    work = RandomWork(leader, rng)
    for _ in range(steps):
        work.step()
        if rng.random() < 0.15:
            leader.take()
        if rng.random() < 0.1:
            leader.flush()
    leader.intake.flush_offsets()
    return leader, rng


def replayed(entries: list[Entry]) -> Replica:
    replica = Replica(segment_bytes=128 << 10)
    for entry in entries:
        apply_entry(replica.state, replica.queues, entry)
    return replica


@pytest.mark.parametrize("seed", range(30))
def test_the_view_of_the_writing_leader_is_what_its_log_will_make_true(seed: int) -> None:
    leader, _ = random_leader(seed)
    leader.take()
    view = leader.intake.view
    after = replayed(leader.log.entries)
    assert_view_is(view, after.state, after.queues.ends)
    leader.flush()
    assert_view_is(view, leader.state, leader.queues.ends)


@pytest.mark.parametrize("seed", range(60))
def test_a_scan_gives_what_applying_gives_wherever_it_begins_and_whatever_is_applied_meanwhile(seed: int) -> None:
    leader, rng = random_leader(seed)
    leader.take()
    entries = leader.log.entries
    after = replayed(entries)

    applied = rng.randrange(len(entries) + 1)
    follower = replayed(entries[:applied])
    follower.log.entries = list(entries)
    follower.log.segment_bytes = leader.log.segment_bytes
    rate, burst = rng.choice([(0.0, 0), (0.05, 5), (0.2, 2), (0.9, 1)])

    def dispatch() -> None:
        if rng.random() < rate:
            follower.apply(follower.state.applied_index + burst)

    run_scan(follower.intake, 2, entries[applied:], dispatch)
    follower.intake.begin_term(2, follower.log.last)
    view = follower.intake.view
    assert_view_is(view, after.state, after.queues.ends)
    for record in after.records() or leader.records():
        uniq = get_property(record.properties, b"UNIQ_KEY")
        if uniq:
            key = id_key(record.topic, uniq, record.reconsume_times)
            # The overlay may know more than the window: it does not turn generations.
            assert after.state.id_window.get(key) in (None, view.find_id(key))

    # What is in flight becomes applied: the overlays are empty then, and the view still says the same.
    follower.apply()
    assert_view_is(view, after.state, after.queues.ends)
    assert view.producers.own_count == view.tables.topic_names.own_count == 0

    # And the new leader goes on where the old one stopped.
    follower.put(topic=b"t0", queue_id=0, uniq=b"new")
    follower.flush()
    assert follower.records()[-1].properties == b"UNIQ_KEY\x01new\x02"


def test_what_is_applied_before_the_scan_reads_its_first_entry_counts_too() -> None:
    leader, _ = random_leader(3)
    leader.take()
    entries = leader.log.entries
    follower = replayed(entries[: len(entries) // 3])
    follower.log.entries = list(entries)

    async def stream() -> AsyncIterator[Entry]:
        follower.apply(2 * len(entries) // 3)
        for entry in entries[follower.state.applied_index :]:
            yield entry

    drive(follower.intake.scan(2, stream()))
    follower.intake.begin_term(2, follower.log.last)
    after = replayed(entries)
    assert_view_is(follower.intake.view, after.state, after.queues.ends)


def test_a_new_leader_gives_the_offsets_that_follow_the_uncommitted_tail() -> None:
    old = Replica()
    old.lead()
    for number in range(5):
        old.put(uniq=b"%d" % number)
        old.take()
    old.intake.end_term()
    old.elect()
    client = Client()
    old.put(client, uniq=b"next")
    old.flush()
    assert client.take()[0].ext["queueOffset"] == "5"


def test_a_scan_that_is_dropped_leaves_nothing() -> None:
    replica = Replica()
    replica.lead()
    replica.put()
    replica.flush()
    replica.intake.end_term()
    run_scan(replica.intake, 9, replica.log.entries)
    replica.intake.end_term()  # deposed before admission opened
    assert not replica.intake.admitting
    replica.lead()
    replica.put()
    replica.flush()
    assert replica.records()[-1].queue_offset == 1


def test_the_replicator_may_place_an_entry_of_its_own_between_batches() -> None:
    replica = Replica()
    replica.lead()
    replica.put()
    replica.flush()
    replica.elect_noop()
    replica.put()
    replica.flush()
    assert [record.queue_offset for record in replica.records()] == [0, 1]
