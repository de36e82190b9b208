"""Trace records: RocketMQ's layout, byte for byte, and lenient reading."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.wire.bounds import FEW
from trimq.message.trace import Kind, Step, consumed, read_steps, sent


def test_a_send_has_rocketmqs_fields_in_rocketmqs_order() -> None:
    record = sent(
        at_ms=1_700_000_000_000, group="p", topic="T", message_id="ID", tag="A", keys=["k1", "k2"],
        store_host="10.0.0.1:10911", body_bytes=5, cost_ms=3, kind=Kind.ORDER, offset_id="OFF", success=True,
    )  # fmt: skip
    fields = ["Pub", "1700000000000", "DefaultRegion", "p", "T", "ID", "A", "k1 k2", "10.0.0.1:10911", "5", "3", "4"]
    assert record == "\x01".join([*fields, "OFF", "true"]) + "\x02"
    (step,) = read_steps(record.encode())
    assert step == Step("Pub", "ID", "p", "T", 1_700_000_000_000, 3, True, "k1 k2", "10.0.0.1:10911")


def test_a_delivery_has_two_records_tied_by_a_number() -> None:
    text = consumed(
        at_ms=1_700_000_000_000, group="g", message_id="ID", attempt=3, keys=["k"], request="R", cost_ms=7,
        success=False,
    )  # fmt: skip
    before, after, end = text.split("\x02")
    assert before.split("\x01") == ["SubBefore", "1700000000000", "DefaultRegion", "g", "R", "ID", "2", "k"]
    assert after.split("\x01") == ["SubAfter", "R", "ID", "7", "false", "k", "4", "1700000000000", "g"]
    assert end == ""
    one, two = read_steps(text.encode())
    assert (one.attempt, one.request, two.request, two.success, two.cost_ms) == (3, "R", "R", False, 7)


def test_records_of_older_and_other_clients_are_read_as_far_as_they_go() -> None:
    java_4 = "\x01".join(["Pub", "1", "null", "p", "T", "ID", "A", "k", "h", "5", "3", "0", "true"]) + "\x02"
    go = "\x01".join(["SubAfter", "R", "ID", "7", "true", "k", "0"]) + "\x02"
    odd = "Recall\x01x\x02\x02Pub\x01short\x02"
    steps = read_steps((java_4 + go + odd).encode())
    assert [(step.what, step.message_id, step.success) for step in steps] == [
        ("Pub", "ID", True),
        ("SubAfter", "ID", True),
    ]


@FEW
@given(st.binary(max_size=200))
def test_any_bytes_are_read(body: bytes) -> None:
    read_steps(body)
