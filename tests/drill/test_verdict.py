"""Each rule of the drill's verdict: a good history passes, a planted violation is caught."""

from __future__ import annotations

from trimq.drill.history import History, Outcome, QueueId, Stored, Value, make_body, read_body
from trimq.drill.verdict import Verdict, _before_blow_ms, judge, percentiles

QUEUE = QueueId("t", "broker-a", 0)
OTHER = QueueId("t", "broker-a", 1)


def history_of(*sequences: int, nodes: tuple[str, ...] = ("n0", "n1")) -> History:
    history = History()
    for offset, sequence in enumerate(sequences):
        value = Value(1, sequence)
        history.begin(value, QUEUE)
        history.end(value, Outcome.OK)
        for node in nodes:
            history.reads[node, QUEUE].append(Stored(offset, value))
    return history


def test_a_clean_history_has_no_violation() -> None:
    verdict = judge(history_of(0, 1, 2))
    assert (verdict.acked, verdict.violations) == (3, 0)


def test_an_acknowledged_message_missing_on_one_node_is_lost() -> None:
    history = history_of(0, 1)
    history.reads["n1", QUEUE].pop()
    assert judge(history).lost == 1


def test_an_acknowledged_queue_that_nobody_could_read_is_lost() -> None:
    history = history_of(0)
    value = Value(1, 7)
    history.begin(value, OTHER)
    history.end(value, Outcome.OK)
    assert judge(history).lost == 1


def test_an_unknown_send_may_appear_or_not() -> None:
    history = history_of(0)
    seen, unseen = Value(2, 0), Value(2, 1)
    history.begin(seen, QUEUE)
    history.begin(unseen, QUEUE)
    for node in ("n0", "n1"):
        history.reads[node, QUEUE].append(Stored(1, seen))
    verdict = judge(history)
    assert (verdict.unknown, verdict.violations) == (2, 0)


def test_one_value_at_two_offsets_is_a_duplicate() -> None:
    history = history_of(0, 1)
    for node in ("n0", "n1"):
        history.reads[node, QUEUE].append(Stored(2, Value(1, 0)))
    assert judge(history).duplicates == 1


def test_sequence_and_offset_order_that_differ_are_reordered() -> None:
    assert judge(history_of(0, 2, 1)).reordered == 1


def test_a_value_nobody_sent_is_a_phantom_and_so_is_a_refused_one() -> None:
    history = history_of(0)
    refused = Value(3, 0)
    history.begin(refused, QUEUE)
    history.end(refused, Outcome.FAILED)
    for node in ("n0", "n1"):
        history.reads[node, QUEUE] += [Stored(1, Value(9, 9)), Stored(2, None), Stored(3, refused)]
    assert judge(history).phantom == 3


def test_two_nodes_that_differ_at_one_offset_disagree() -> None:
    history = history_of(0, 1)
    history.reads["n1", QUEUE][1] = Stored(1, Value(1, 0))
    assert judge(history).disagree == 1


def test_a_told_offset_that_falls_is_counted() -> None:
    history = history_of(0)
    history.told_offsets["g", QUEUE] = [1, 5, 5, 4, 6]
    assert judge(history).offsets_back == 1


def test_bodies_prove_themselves() -> None:
    body = make_body(Value(4, 12))
    assert len(body) == 1024
    assert read_body(body) == Value(4, 12)
    assert read_body(body[:-1] + b"x") is None
    assert read_body(body.replace(b"\x0c", b"\x0d", 1)) is None


def test_percentiles_below_a_hundred_values_name_the_maximum_p99() -> None:
    assert percentiles([1.0, 2.0, 30.0]) == {"p50": 2.0, "p99": 30.0, "max": 30.0}
    assert percentiles([]) == {}


def test_exit_status_names_violation_before_invalidity() -> None:
    assert Verdict(rounds=2, rounds_hit=2).exit_status == 0
    assert Verdict(rounds=2, rounds_hit=1).exit_status == 2
    assert Verdict(rounds=2, rounds_hit=1, lost=1).exit_status == 1


def test_the_loss_window_counts_to_the_blow_that_lost_the_message() -> None:
    history, value, late = History(), Value(1, 0), Value(1, 1)
    history.blows_at = [10.0, 14.0]
    history.acked_at = {value: 9.8, late: 10.02}
    assert _before_blow_ms(history, value) == 200.0
    assert _before_blow_ms(history, late) == 0.0, "the victim's last answer, taken in behind the blow"
    history.acked_at[late] = 10.5
    assert _before_blow_ms(history, late) == 3500.0
