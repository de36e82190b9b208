"""Peer frames and messages: what is sent is what arrives, and any bytes decode or raise CodecError."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft.codec import decode_message, encode_message
from raft.core.messages import (
    AppendReply,
    AppendRequest,
    Beat,
    BeatReply,
    CampaignNow,
    Message,
    VoteReply,
    VoteRequest,
)
from raft.core.types import EntryId, EntryLike, Health
from raft.frames import FRAME_MAX_BYTES, CodecError, FrameReader, encode_frame, split_frame

numbers = st.integers(0, (1 << 63) - 1)
ids = st.builds(EntryId, numbers, numbers, numbers, numbers)
healths = st.sampled_from(list(Health))
who = {"sender": st.just("n1"), "to": st.just("n0")}
messages = st.one_of(
    st.builds(
        VoteRequest,
        term=numbers,
        last=ids,
        nonce=numbers,
        pre=st.booleans(),
        transfer=st.booleans(),
        resumes=st.booleans(),
        **who,
    ),
    st.builds(
        VoteReply, term=numbers, nonce=numbers, pre=st.booleans(), granted=st.booleans(), sticky=st.booleans(), **who
    ),
    st.builds(
        AppendReply,
        term=numbers,
        match=numbers,
        rejected=st.integers(-1, 1 << 40),
        hint_index=numbers,
        hint_term=numbers,
        first_index=numbers,
        health=healths,
        incarnation=numbers,
        **who,
    ),
    st.builds(Beat, term=numbers, commit=numbers, round=numbers, echo=numbers, **who),
    st.builds(BeatReply, term=numbers, round=numbers, health=healths, incarnation=numbers, **who),
    st.builds(CampaignNow, term=numbers, **who),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.binary(max_size=9) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


def no_entries(body: memoryview) -> Sequence[EntryLike]:
    raise CodecError("this test has no entries")


def through_frame(message: Message) -> Message:
    (frame,) = FrameReader().feed(encode_frame(encode_message(message)))
    header, body = split_frame(frame)
    return decode_message(header, body, "n1", "n0", no_entries)


@given(messages)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    assert through_frame(message) == message


def test_an_empty_append_request_arrives_as_it_was_sent() -> None:
    at = EntryId(7, 3, 99, 4096)
    request = AppendRequest(term=3, sender="n1", to="n0", prev=at, last=at, commit=7, echo=2)
    assert through_frame(request) == request


def test_an_append_request_without_its_entries_is_refused() -> None:
    request = AppendRequest(
        term=3, sender="n1", to="n0", prev=EntryId(7, 3, 9, 40), last=EntryId(8, 3, 9, 80), commit=7, echo=2
    )
    with pytest.raises(CodecError, match="does not hold the entries"):
        through_frame(request)


@given(st.lists(plain, max_size=13), st.binary(max_size=8))
def test_any_fields_decode_or_raise_the_codec_error(fields: list[Any], body: bytes) -> None:
    try:
        decode_message(fields, memoryview(body), "n1", "n0", no_entries)
    except CodecError:
        pass


@given(messages, st.integers(0, 12), plain)
def test_a_field_of_the_wrong_type_is_refused(message: Message, at: int, value: Any) -> None:
    fields = encode_message(message)
    fields[at % len(fields)] = value
    try:
        decoded = decode_message(fields, memoryview(b""), "n1", "n0", no_entries)
    except CodecError:
        return
    assert encode_message(decoded) == fields


@given(st.binary(max_size=64))
def test_any_bytes_are_a_frame_or_raise_the_codec_error(data: bytes) -> None:
    try:
        for frame in FrameReader().feed(data):
            split_frame(frame)
    except CodecError:
        pass


@given(st.binary(max_size=64))
def test_any_header_is_an_array_or_raises_the_codec_error(header: bytes) -> None:
    frame = (2 << 24 | len(header)).to_bytes(4, "big") + header
    try:
        assert isinstance(split_frame(frame)[0], list)
    except CodecError:
        pass


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 30), max_size=20))
def test_frames_survive_any_cutting_of_the_stream(bodies: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(encode_frame([number, "x"], [body]) for number, body in enumerate(bodies))
    reader = FrameReader()
    frames: list[memoryview] = []
    for cut in cuts:
        frames += reader.feed(stream[:cut])
        stream = stream[cut:]
    frames += reader.feed(stream)
    assert [bytes(split_frame(frame)[1]) for frame in frames] == bodies
    assert reader.buffered == 0


def test_the_first_frame_can_be_taken_out_alone() -> None:
    stream = encode_frame([1]) + encode_frame([2]) + encode_frame([3])
    reader = FrameReader()
    assert reader.feed_one(stream[:3]) is None
    first = reader.feed_one(stream[3:])
    assert first is not None
    assert split_frame(first)[0] == [1]
    assert [split_frame(frame)[0] for frame in reader.feed(b"")] == [[2], [3]]


def test_an_oversized_frame_is_refused_before_its_body_arrives() -> None:
    with pytest.raises(CodecError, match="frame length"):
        FrameReader().feed((FRAME_MAX_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(CodecError, match="frame length 4097"):
        FrameReader(4096).feed((4097).to_bytes(4, "big"))


def test_a_header_of_another_type_is_named() -> None:
    json = b'{"code":0}'
    with pytest.raises(CodecError, match="header type 0 is not 2"):
        split_frame(len(json).to_bytes(4, "big") + json)


def test_deeply_nested_cbor_is_refused() -> None:
    header = b"\x81" * 50_000 + b"\x01"
    with pytest.raises(CodecError):
        split_frame((2 << 24 | len(header)).to_bytes(4, "big") + header)


def test_headers_are_canonical() -> None:
    frame = encode_frame([1, {"b": 1, "a": 2}])
    assert frame[8:] == cbor2.dumps([1, {"a": 2, "b": 1}])
