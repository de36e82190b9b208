"""What goes over the wire for a message, and what is refused before it does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from trimq.client.lane import Request, Slot
from trimq.client.model import Message, Queue
from trimq.client.outgoing import BODY_BYTES_MAX, batch_body, delay_level, prepare, send_fields
from trimq.errors import BadRequest
from trimq.message.batch import iter_batch
from trimq.message.compression import decompress
from trimq.message.properties import parse
from trimq.wire.headers.send import SendHeader


def test_fields_become_properties() -> None:
    message = Message(
        topic="t", body=b"x", tag="paid", keys=("k1", "k2"), order_key="42", properties={"colour": "red"}, id="ID"
    )
    assert parse(prepare(message, 4096).properties) == {
        "UNIQ_KEY": "ID",
        "WAIT": "true",
        "TAGS": "paid",
        "KEYS": "k1 k2",
        "__SHARDINGKEY": "42",
        "colour": "red",
    }


def test_a_single_key_may_be_given_as_text() -> None:
    assert parse(prepare(Message(topic="t", body=b"", keys="k1"), 4096).properties)["KEYS"] == "k1"


@pytest.mark.parametrize(
    ("seconds", "level"), [(0, 0), (-5, 0), (0.5, 1), (1, 1), (2, 2), (10, 3), (31, 5), (7200, 18)]
)
def test_delays_are_rounded_up_to_a_level(seconds: float, level: int) -> None:
    assert delay_level(timedelta(seconds=seconds)) == level


def test_times_become_a_timer_property() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    outgoing = prepare(Message(topic="t", body=b"", at=at), 4096)
    assert parse(outgoing.properties)["TIMER_DELIVER_MS"] == str(round(at.timestamp() * 1000))


def test_large_bodies_are_compressed_when_that_helps() -> None:
    squeezable = prepare(Message(topic="t", body=b"a" * 5000), 4096)
    assert decompress(squeezable.body, squeezable.sys_flag) == b"a" * 5000
    assert len(squeezable.body) < 100
    assert not squeezable.batchable, "brokers expand batches, and have no compressed form of them"
    small = prepare(Message(topic="t", body=b"a" * 100), 4096)
    assert (small.body, small.sys_flag, small.batchable) == (b"a" * 100, 0, True)


def test_delayed_messages_do_not_share_requests() -> None:
    assert not prepare(Message(topic="t", body=b"", delay=timedelta(seconds=5)), 4096).batchable
    assert not prepare(Message(topic="t", body=b"", at=datetime(2030, 1, 1, tzinfo=UTC)), 4096).batchable


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (Message(topic="t", body=bytes(BODY_BYTES_MAX + 1)), "4,194,305 bytes"),
        (Message(topic="t", body="text"), "str, not bytes"),  # type: ignore[arg-type]  # a caller's mistake
        (Message(topic="t", body=b"", tag="a|b"), "separates tags"),
        (Message(topic="t", body=b"", tag="a\x01b"), "tag"),
        (Message(topic="t", body=b"", keys=("a b",)), "space"),
        (Message(topic="t", body=b"", properties={"TAGS": "x"}), "reserved"),
        (Message(topic="t", body=b"", properties={"a": ""}), "empty"),
        (Message(topic="t", body=b"", properties={"a": "\x02"}), "property"),
        (Message(topic="t", body=b"", properties={"a": "é" * 16384}), "32767"),
        (Message(topic="t", body=b"", delay_level=-1), "levels begin at 1"),
        (Message(topic="t", body=b"", delay=timedelta(1), at=datetime.now(UTC)), "either a delay, a time"),
    ],
)
def test_mistakes_are_named_and_refused(message: Message, said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        prepare(message, 1 << 30)
    assert caught.value.advice


def test_the_fields_of_a_request_are_those_of_the_protocol() -> None:
    queue = Queue("t", "broker-a", 3)
    slots = [Slot(prepare(Message(topic="t", body=b"%d" % n, flag=n), 99), queue, print) for n in range(2)]
    single = SendHeader.from_ext(send_fields(Request(queue, slots[1:], 0), "group", 1234))
    assert (single.topic, single.queue_id, single.broker_name, single.born_timestamp) == ("t", 3, "broker-a", 1234)
    assert (single.batch, single.flag, single.producer_group) == (False, 1, "group")
    assert "UNIQ_KEY" in parse(single.properties)
    batch = SendHeader.from_ext(send_fields(Request(queue, slots, 0), "group", 1234))
    assert (batch.batch, parse(batch.properties)) == (True, {"WAIT": "true"})
    elements = iter_batch(batch_body([slot.message for slot in slots]))
    assert [(element.body, element.flag) for element in elements] == [(b"0", 0), (b"1", 1)]
    ids = [parse(element.properties)["UNIQ_KEY"] for element in elements]
    assert ids == [slot.message.message.id for slot in slots]
