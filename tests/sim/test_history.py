"""The history checker on hand-made histories: good ones pass, and each rule fires on the history that breaks it."""

from __future__ import annotations

import pytest

from tests.sim.history import Outcome, QueueId, SimHistory, Value, judge
from tests.sim.workload import HEAD_BYTES, full_body, value_of

QUEUE = QueueId("t", "g", 0)


def history(values: int = 4) -> SimHistory:
    """Everything acknowledged, read by everybody, delivered and popped."""
    made = SimHistory()
    for sequence in range(values):
        value = Value(0, sequence)
        made.begin(value, QUEUE)
        made.end(value, Outcome.OK, sequence)
        made.delivered(value)
        made.took(value, f"{QUEUE} offset {sequence}")
    for node in ("n0", "n1"):
        made.reads[node, QUEUE] = {n: Value(0, n) for n in range(values)}
        made.first[node, QUEUE], made.ends[node, QUEUE] = 0, values
    return made


def rules(made: SimHistory) -> set[str]:
    return {each.partition(":")[0] for each in judge(made, delivered=True, popped=True)}


def test_a_good_history_passes() -> None:
    assert rules(history()) == set()


@pytest.mark.parametrize("there", [True, False])
def test_an_unknown_send_may_be_there_or_not(there: bool) -> None:
    made = history()
    made.begin(Value(1, 0), QUEUE)
    for node in ("n0", "n1"):
        if there:
            made.reads[node, QUEUE][4] = Value(1, 0)
            made.ends[node, QUEUE] = 5
    assert rules(made) == set()


def test_an_expired_message_is_not_lost() -> None:
    made = history()
    for node in ("n0", "n1"):
        del made.reads[node, QUEUE][0]
        made.first[node, QUEUE] = 1
    del made.deliveries[Value(0, 0)], made.popped[Value(0, 0)]
    assert rules(made) == set()


def test_a_lost_message_is_found_also_when_the_queue_ends_before_it() -> None:
    made = history()
    del made.reads["n1", QUEUE][3]
    made.ends["n1", QUEUE] = 3
    assert rules(made) == {"lost"}


def test_a_failed_send_that_is_there_is_a_phantom() -> None:
    made = history()
    made.sends[Value(0, 2)] = (QUEUE, Outcome.FAILED)
    assert rules(made) == {"phantom"}


def test_a_message_that_nobody_sent_is_a_phantom() -> None:
    made = history()
    made.saw("a tailer", QUEUE, 4, Value(7, 7))
    assert rules(made) == {"phantom"}


def test_a_message_at_two_offsets_is_a_duplicate() -> None:
    made = history()
    for node in ("n0", "n1"):
        made.reads[node, QUEUE][4] = Value(0, 3)
        made.ends[node, QUEUE] = 5
    assert "duplicates" in rules(made)


def test_a_reader_that_saw_something_else_disagrees() -> None:
    made = history()
    made.saw("a consumer", QUEUE, 1, Value(0, 2))
    assert "disagree" in rules(made)


def test_a_message_that_stands_elsewhere_than_told_has_moved() -> None:
    made = history()
    made.told[Value(0, 1)] = 3
    assert rules(made) == {"moved"}


def test_offsets_of_a_queue_are_dense() -> None:
    made = history()
    made.sends[Value(0, 1)] = (QUEUE, Outcome.UNKNOWN)
    for node in ("n0", "n1"):
        del made.reads[node, QUEUE][1]
    assert rules(made) == {"gap"}


def test_the_order_of_a_producer_is_kept() -> None:
    made = history()
    for node in ("n0", "n1"):
        made.reads[node, QUEUE][1], made.reads[node, QUEUE][2] = Value(0, 2), Value(0, 1)
    made.told[Value(0, 1)], made.told[Value(0, 2)] = 2, 1
    assert rules(made) == {"reordered"}


def test_a_message_that_the_application_sent_again_may_come_late_but_once() -> None:
    made = history()
    for node in ("n0", "n1"):
        made.reads[node, QUEUE][1], made.reads[node, QUEUE][2] = Value(0, 2), Value(0, 1)
    made.told[Value(0, 1)], made.told[Value(0, 2)] = 2, 1
    made.repeated.add(Value(0, 1))
    assert rules(made) == set()
    made.saw("a tailer", QUEUE, 4, Value(0, 1))
    assert "duplicates" in rules(made)


def test_told_offsets_and_ends_never_go_back() -> None:
    made = history()
    made.told_offsets["g", QUEUE] += [1, 3, 2]
    made.told_ends[QUEUE] += [4, 3]
    assert rules(made) == {"offsets back", "ends back"}


def test_what_no_consumer_got_is_undelivered() -> None:
    made = history()
    del made.deliveries[Value(0, 2)]
    assert rules(made) == {"undelivered"}


def test_what_no_pop_consumer_got_is_invisible() -> None:
    made = history()
    del made.popped[Value(0, 2)]
    assert rules(made) == {"invisible"}


def test_a_message_popped_after_its_acknowledgement_came_back() -> None:
    made = history()
    made.took(Value(0, 2), "its retry topic", attempt=2)
    assert rules(made) == set()
    made.finished[Value(0, 2)] = 2
    made.took(Value(0, 2), "its own queue, late", attempt=1)
    assert rules(made) == set()
    made.took(Value(0, 2), "its retry topic", attempt=2)
    assert rules(made) == {"came back"}


@pytest.mark.parametrize("value", [None, Value(7, 7)])
def test_a_pop_consumer_that_got_what_nobody_sent_met_a_phantom(value: Value | None) -> None:
    made = history()
    made.took(value, f"{QUEUE} offset 4")
    assert rules(made) == {"phantom"}


@pytest.mark.parametrize("size", [HEAD_BYTES, 64, 6000])
def test_a_body_proves_its_value_and_a_damaged_one_proves_nothing(size: int) -> None:
    body = full_body(Value(3, 9), size)
    assert len(body) == size
    assert value_of(body) == Value(3, 9)
    assert value_of(body[:-1] + bytes([body[-1] ^ 1])) is None
