"""Stored records: round trips, damage, the dispatch walk."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.bounds import PROPERTY, i32, i64
from trimq.errors import BadRequest, RecordError
from trimq.message.record import (
    MAGIC_V1,
    MAGIC_V2,
    MIN_RECORD_BYTES,
    body_crc,
    iter_records,
    pack_record,
    record_size,
    unpack_record,
    unpack_records,
    with_store_host,
)
from trimq.message.sysflag import BORN_HOST_V6, STORE_HOST_V6, with_hosts

hosts = st.binary(min_size=8, max_size=8) | st.binary(min_size=20, max_size=20)

record_fields = st.fixed_dictionaries(
    {
        "topic": st.binary(max_size=300),
        "queue_id": i32,
        "queue_offset": i64,
        "position": i64,
        "flag": i32,
        "sys_flag": i32,
        "born_ms": i64,
        "born_host": hosts,
        "store_ms": i64,
        "store_host": hosts,
        "reconsume_times": i32,
        "prepared_offset": i64,
        "body": st.binary(max_size=100),
        "properties": st.binary(max_size=60),
    }
)


def packed(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "topic": b"T1",
        "queue_id": 1,
        "queue_offset": 5,
        "position": 1000,
        "flag": 0,
        "sys_flag": 0,
        "born_ms": 1700000000000,
        "born_host": bytes.fromhex("7f0000010000c350"),
        "store_ms": 1700000000001,
        "store_host": bytes.fromhex("7f00000100002a9f"),
        "reconsume_times": 0,
        "prepared_offset": 0,
        "body": b"hello",
        "properties": b"TAGS\x01A\x02",
    }
    return pack_record(**fields | changes)


@PROPERTY
@given(record_fields)
def test_what_is_packed_unpacks_to_the_same(fields: dict[str, Any]) -> None:
    data = pack_record(**fields)
    record = unpack_record(data)
    sys_flag = with_hosts(fields["sys_flag"], fields["born_host"], fields["store_host"])
    for name, value in fields.items():
        assert getattr(record, name) == (sys_flag if name == "sys_flag" else value)
    assert record.size == len(data)
    assert record_size(len(fields["topic"]), len(fields["body"]), len(fields["properties"]), sys_flag) == len(data)
    assert record.body_crc == body_crc(fields["body"]) >= 0


@PROPERTY
@given(st.lists(record_fields, max_size=5), st.booleans())
def test_the_walk_finds_every_record(several: list[dict[str, Any]], view: bool) -> None:
    data = b"".join(pack_record(**fields) for fields in several)
    heads = list(iter_records(memoryview(data) if view else data))
    records = unpack_records(data)
    assert len(heads) == len(records) == len(several)
    at = 0
    for head, record in zip(heads, records, strict=True):
        assert (head.at, head.size) == (at, record.size)
        for name in ("queue_id", "queue_offset", "position", "sys_flag", "store_ms", "reconsume_times"):
            assert getattr(head, name) == getattr(record, name)
        assert (head.topic, head.properties) == (record.topic, record.properties)
        assert isinstance(head.topic, bytes)
        at += record.size


@PROPERTY
@given(record_fields, st.data())
def test_a_changed_byte_is_noticed_or_stays_within_its_field(fields: dict[str, Any], data: st.DataObject) -> None:
    raw = bytearray(pack_record(**fields))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        record = unpack_record(bytes(raw))
    except RecordError:
        return
    assert record.size == len(raw)
    assert body_crc(record.body) == record.body_crc


@PROPERTY
@given(st.binary(max_size=250))
def test_any_bytes_are_records_or_raise_a_record_error(data: bytes) -> None:
    for read in (unpack_record, unpack_records, lambda raw: list(iter_records(raw))):
        try:
            read(data)
        except RecordError:
            pass


@PROPERTY
@given(st.binary(min_size=100, max_size=250), st.sampled_from([MAGIC_V1, MAGIC_V2]), st.integers(0, 260))
def test_any_bytes_with_a_magic_are_records_or_raise_a_record_error(data: bytes, magic: int, size: int) -> None:
    raw = size.to_bytes(4, "big") + magic.to_bytes(4, "big") + data
    for read in (unpack_record, unpack_records, lambda raw: list(iter_records(raw))):
        try:
            read(raw)
        except RecordError:
            pass


@pytest.mark.parametrize("cut", range(1, len(packed())))
def test_a_record_cut_short_anywhere_is_refused(cut: int) -> None:
    short = packed()[:-cut]
    with pytest.raises(RecordError):
        unpack_record(short)
    with pytest.raises(RecordError):
        list(iter_records(packed() + short))


def test_damage_of_the_body_is_found_unless_nobody_looks() -> None:
    raw = bytearray(packed())
    raw[raw.index(b"hello")] ^= 1
    with pytest.raises(RecordError, match="checksum"):
        unpack_record(raw)
    assert bytes(unpack_record(raw, check_body=False).body) == b"iello"
    assert len(list(iter_records(bytes(raw)))) == 1


def test_the_smallest_record() -> None:
    raw = packed(topic=b"", body=b"", properties=b"")
    assert len(raw) == MIN_RECORD_BYTES
    assert unpack_record(raw).topic == b""


@pytest.mark.parametrize(("length", "magic"), [(127, MAGIC_V1), (128, MAGIC_V2), (255, MAGIC_V2)])
def test_long_topics_take_the_second_version(length: int, magic: int) -> None:
    raw = packed(topic=b"t" * length)
    assert int.from_bytes(raw[4:8], "big") == magic
    assert unpack_record(raw).topic == b"t" * length
    assert next(iter_records(raw)).topic == b"t" * length


def test_a_size_below_the_layout_is_refused() -> None:
    for size in (0, 4, 90, 91, 93):
        raw = size.to_bytes(4, "big") + packed()[4:]
        with pytest.raises(RecordError):
            unpack_record(raw)
        with pytest.raises(RecordError):
            list(iter_records(raw))


def test_host_bits_follow_the_addresses() -> None:
    v6 = bytes(16) + bytes(4)
    assert unpack_record(packed(sys_flag=BORN_HOST_V6 | STORE_HOST_V6)).sys_flag == 0
    record = unpack_record(packed(sys_flag=0x301, born_host=v6))
    assert (record.sys_flag, record.born_host) == (0x301 | BORN_HOST_V6, v6)
    assert unpack_record(packed(store_host=v6)).sys_flag == STORE_HOST_V6


@pytest.mark.parametrize("born_host", [bytes(8), bytes(20)])
@pytest.mark.parametrize("size", [8, 20])
def test_another_store_host_changes_nothing_else(born_host: bytes, size: int) -> None:
    raw = packed(born_host=born_host, store_host=bytes(size))
    other = bytes(range(1, size + 1))
    assert with_store_host(raw, other) == packed(born_host=born_host, store_host=other)
    assert with_store_host(raw, bytes(28 - size)) == raw, "there is no room for one of another size"


def test_what_a_record_cannot_hold_is_refused_before_packing() -> None:
    with pytest.raises(BadRequest, match="32767"):
        packed(properties=b"x" * 32768)
    with pytest.raises(BadRequest, match="hosts"):
        packed(born_host=b"1234")
    assert unpack_record(packed(properties=b"x" * 32767)).properties == b"x" * 32767


def test_a_record_is_read_in_the_middle_of_a_buffer() -> None:
    raw = b"before" + packed() + b"behind"
    assert bytes(unpack_record(raw, 6).body) == b"hello"
    assert unpack_record(memoryview(raw), 6).topic == b"T1"
