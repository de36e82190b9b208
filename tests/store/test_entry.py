"""The entry format: what is sealed parses back, and no byte can change unnoticed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.store.entry import (
    CONTROL,
    HEADER_BYTES,
    MARKER,
    START,
    Entry,
    EntryId,
    EntryKind,
    fits,
    lineage_tag,
    parse_entries,
    parse_entry,
    seal_entry,
    seal_filler,
)
from broker.store.errors import EntryDamaged
from tests.store.support import blob, chain

PREV = EntryId(6, 3, 0xAABBCCDD, 1000)


def sample() -> Entry:
    return seal_entry(
        kind=EntryKind.MESSAGES, prev=PREV, term=4, lineage=9, commit_hint=5,
        records=[blob(100, 1), blob(50, 2)], control=b"control", record_count=2,
    )  # fmt: skip


def test_the_header_has_the_documented_layout() -> None:
    entry = sample()
    fields = struct.unpack(">IIBBHIQQQQIIII", entry.data[:64])
    assert fields[:6] == (64, 0x54514501, 1, CONTROL, 2, 157)
    assert fields[6:12] == (7, 4, 1000, 5, 9, 0xAABBCCDD)
    assert entry.data.startswith(MARKER)
    assert entry.size == 64 + 157 == len(entry.data)
    assert entry.id == EntryId(7, 4, entry.crc, 1221)


def test_records_and_control_are_told_apart_after_parsing() -> None:
    sealed = sample()
    parsed = parse_entry(b"xx" + sealed.data + b"yy", 2)
    assert parsed == sealed
    assert bytes(parsed.records) == blob(100, 1) + blob(50, 2) == bytes(sealed.records)
    assert parsed.control == sealed.control == b"control"


def test_an_entry_of_control_alone() -> None:
    entry = seal_entry(kind=EntryKind.METADATA, prev=START, term=1, lineage=9, commit_hint=0, control=b"abc")
    assert bytes(entry.records) == b""
    assert parse_entry(entry.data).control == b"abc"
    noop = seal_entry(kind=EntryKind.NOOP, prev=START, term=1, lineage=9, commit_hint=0)
    assert (noop.control, bytes(noop.records), noop.size) == (b"", b"", 64)


def test_records_that_do_not_add_up_are_damage() -> None:
    entry = seal_entry(
        kind=EntryKind.MESSAGES, prev=START, term=1, lineage=9, commit_hint=0,
        records=[b"\0\0\xff\xff"], control=b"c", record_count=1,
    )  # fmt: skip
    with pytest.raises(EntryDamaged, match="past the body"):
        _ = parse_entry(entry.data).records


def test_a_filler_takes_the_rest_and_travels_as_a_header() -> None:
    filler = seal_filler(prev=PREV, term=4, lineage=9, commit_hint=5, segment_bytes=4096)
    assert (filler.position, filler.end, len(filler.data)) == (1000, 4096, HEADER_BYTES)
    follower = chain(filler.id, 1)[0]
    assert parse_entries(filler.data + follower.data) == [filler, follower]
    assert bytes(filler.records) == b""
    smallest = seal_filler(prev=EntryId(1, 1, 1, 4096 - 64), term=4, lineage=9, commit_hint=5, segment_bytes=4096)
    assert smallest.size == 64


@pytest.mark.parametrize(
    ("end", "size", "expected"),
    [(0, 4096, True), (0, 4032, True), (0, 4033, False), (0, 4095, False), (4032, 64, True), (4096, 100, True)],
)
def test_an_entry_ends_at_the_segment_end_or_leaves_room_for_a_filler(end: int, size: int, expected: bool) -> None:
    assert fits(end, size, 4096) is expected


def test_every_flipped_bit_is_noticed() -> None:
    data = sample().data
    for at in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            rotten = bytearray(data)
            rotten[at] ^= mask
            with pytest.raises(EntryDamaged):
                parse_entry(rotten)


def test_every_length_short_of_the_whole_is_noticed() -> None:
    data = sample().data
    for size in range(len(data)):
        with pytest.raises(EntryDamaged):
            parse_entry(data[:size])


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_raise_damage(data: bytes) -> None:
    try:
        parse_entries(data)
    except EntryDamaged:
        pass


def test_the_lineage_tag_is_32_bits_of_the_lineage() -> None:
    assert lineage_tag(1) != lineage_tag(2)
    assert 0 <= lineage_tag((1 << 64) - 1) < 1 << 32
