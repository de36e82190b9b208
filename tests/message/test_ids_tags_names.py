"""Message ids, hosts, tag codes, names."""

from __future__ import annotations

import random
from contextvars import copy_context
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.bounds import PROPERTY
from trimq.errors import BadName, BadRequest, RecordError
from trimq.message import ids
from trimq.message.ids import (
    ID_SOURCE,
    IdSource,
    host_bytes,
    host_text,
    new_message_id,
    offset_message_id,
    parse_offset_message_id,
    unique_id_time_ms,
)
from trimq.message.names import (
    check_group,
    check_topic,
    dlq_topic,
    group_of_retry,
    is_reserved,
    is_system_group,
    is_system_topic,
    retry_topic,
)
from trimq.message.tags import codes_of, java_hash, tags_code, tags_in


class SetClock:
    def __init__(self, now: datetime) -> None:
        self.now = round(now.timestamp() * 1000)

    def wall_ms(self) -> int:
        return self.now


def source(now: datetime, seed: int = 1) -> tuple[IdSource, SetClock]:
    clock = SetClock(now)
    return IdSource(random.Random(seed), clock), clock


def test_ids_are_never_the_same_even_when_the_clock_stands_still_or_goes_back() -> None:
    made, clock = source(datetime(2026, 3, 1, tzinfo=UTC))
    seen = set()
    for step in range(150_000):
        if step % 1000 == 0:
            clock.now -= 7
        seen.add(made.new_id())
    assert len(seen) == 150_000
    assert all(len(one) == 32 for one in seen)


@pytest.mark.parametrize("count", [0, 1, 2, 70_000])
def test_many_ids_are_those_that_would_come_one_by_one(count: int) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    one, many = source(now)[0], source(now)[0]
    assert many.new_ids(count) == [one.new_id() for _ in range(count)]
    assert many.new_id() == one.new_id()


def test_an_id_carries_the_time_since_the_start_of_the_month() -> None:
    now = datetime(2026, 12, 31, 23, 59, 59, 5000, tzinfo=UTC)
    made, clock = source(now)
    first = made.new_id()
    assert unique_id_time_ms(first, clock.now) == clock.now
    assert unique_id_time_ms(first, clock.now + 10_000) == clock.now, "asked in January"
    clock.now += 2000
    second = made.new_id()
    assert int(second[20:28], 16) == 1005
    assert unique_id_time_ms(second, clock.now) == clock.now
    assert first[:20] == second[:20]
    assert unique_id_time_ms("not an id", clock.now) is None
    assert unique_id_time_ms("g" * 32, clock.now) is None


def test_equal_seeds_give_equal_ids_and_other_seeds_others() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert source(now)[0].new_id() == source(now)[0].new_id()
    assert source(now)[0].new_id()[:20] != source(now, 2)[0].new_id()[:20]


def test_the_source_in_force_is_the_contexts_own_else_the_process_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_default", [])
    own, _ = source(datetime(2026, 3, 1, tzinfo=UTC))
    other, _ = source(datetime(2026, 3, 1, tzinfo=UTC), 2)

    def inside() -> str:
        ID_SOURCE.set(own)
        return new_message_id()

    def outside() -> str:
        return new_message_id()

    clean = copy_context()
    with pytest.raises(BadRequest, match="id source"):
        clean.run(outside)
    ids.set_default_source(other)
    assert clean.run(outside)[:20] == other.new_id()[:20]
    assert copy_context().run(inside)[:20] == own.new_id()[:20]


@PROPERTY
@given(st.binary(min_size=8, max_size=8) | st.binary(min_size=20, max_size=20), st.integers(0, 2**63 - 1))
def test_offset_ids_read_back(host: bytes, position: int) -> None:
    text = offset_message_id(host, position)
    assert len(text) in (32, 56)
    assert parse_offset_message_id(text) == (host, position)
    assert parse_offset_message_id(text.lower()) == (host, position)


@pytest.mark.parametrize("text", ["", "7F", "g" * 32, "0" * 33, "00 " * 10 + "00", "0" * 40, "\u0660" * 32])
def test_other_text_is_no_offset_id(text: str) -> None:
    with pytest.raises(RecordError):
        parse_offset_message_id(text)


@pytest.mark.parametrize(
    ("address", "raw", "back"),
    [
        ("127.0.0.1:10911", "7f00000100002a9f", "127.0.0.1:10911"),
        ("[::1]:80", "00000000000000000000000000000001" + "00000050", "[::1]:80"),
        ("::1:80", "00000000000000000000000000000001" + "00000050", "[::1]:80"),
        ("::ffff:10.0.0.1:65535", "0a0000010000ffff", "10.0.0.1:65535"),
        ("fe80::1%eth0:1", "fe800000000000000000000000000001" + "00000001", "[fe80::1]:1"),
    ],
)
def test_hosts(address: str, raw: str, back: str) -> None:
    assert host_bytes(address).hex() == raw
    assert host_text(bytes.fromhex(raw)) == back


@pytest.mark.parametrize(
    "address", ["", "localhost:80", "10.0.0.1", "10.0.0.1:", "10.0.0.1:70000", "1.2.3:4", ":::1:5x"]
)
def test_other_text_is_no_host(address: str) -> None:
    with pytest.raises(BadRequest, match="ip:port"):
        host_bytes(address)
    with pytest.raises(RecordError):
        host_text(b"1234")


@pytest.mark.parametrize(
    ("text", "code"), [("", 0), ("A", 65), ("TagA", 2598919), ("\u00e4\u4e2d", 27081), ("\U0001f600", 1772899)]
)
def test_the_hash_is_javas(text: str, code: int) -> None:
    assert java_hash(text) == code
    assert tags_code(text) == code
    assert tags_code(text.encode()) == code


def test_the_hash_wraps_to_a_negative_number() -> None:
    assert java_hash("polygenelubricants") == -(2**31)


def test_subscription_expressions() -> None:
    assert tags_in("*") == tags_in("") == tags_in("  ") == ()
    assert tags_in("A || B||A|| ") == ("A", "B")
    assert codes_of("*") is None
    assert codes_of("A || TagA") == frozenset({65, 2598919})


@pytest.mark.parametrize(
    "name", ["T", "a-b_c", "%RETRY%g", "x|y", "0" * 127, "%RETRY%" + "g" * 120, "%DLQ%" + "g" * 240]
)
def test_topic_names_that_are_allowed(name: str) -> None:
    assert check_topic(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a/b", "../x", "t\u00f6pic", "a\n", "0" * 128, "%DLQ%" + "g" * 251, "\u0661"]
)
def test_topic_names_that_are_not(name: str) -> None:
    with pytest.raises(BadName):
        check_topic(name)


def test_group_names() -> None:
    assert check_group("g" * 120) == "g" * 120
    with pytest.raises(BadName, match="121 characters"):
        check_group("g" * 121)
    with pytest.raises(BadName, match="'/'"):
        check_group("a/b")


def test_derived_and_reserved_names() -> None:
    assert (retry_topic("g"), dlq_topic("g")) == ("%RETRY%g", "%DLQ%g")
    assert (group_of_retry("%RETRY%g"), group_of_retry("T")) == ("g", None)
    assert is_reserved("SCHEDULE_TOPIC_XXXX")
    assert not is_reserved("TBW102")
    assert is_system_topic("TBW102")
    assert is_system_topic("rmq_sys_x")
    assert not is_system_topic("orders")
    assert is_system_group("CID_RMQ_SYS_TRANS")
    assert not is_system_group("g")
