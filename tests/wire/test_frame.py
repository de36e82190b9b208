"""Frames out of a byte stream: any split, limits, garbage."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.bounds import PROPERTY
from trimq.errors import FrameTooLarge, ProtocolError
from trimq.wire.frame import MAX_FRAME_BYTES, FrameDecoder


def framed(payload: bytes) -> bytes:
    return pack(">I", len(payload)) + payload


@PROPERTY
@given(st.lists(st.binary(min_size=4, max_size=40), max_size=8), st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_any_split_gives_the_same_frames(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(framed, payloads))
    decoder = FrameDecoder()
    frames: list[bytes] = []
    at = 0
    while at < len(stream):
        step = cuts[at % len(cuts)]
        frames += decoder.feed(stream[at : at + step])
        at += step
    assert frames == payloads
    assert decoder.pending_bytes == 0


@PROPERTY
@given(st.lists(st.binary(max_size=30), max_size=6))
def test_any_bytes_give_frames_or_a_protocol_error(pieces: list[bytes]) -> None:
    decoder = FrameDecoder(max_bytes=1000)
    try:
        for piece in pieces:
            for frame in decoder.feed(piece):
                assert 4 <= len(frame) <= 996
    except ProtocolError:
        pass


def test_the_largest_frame_passes_and_one_byte_more_does_not() -> None:
    decoder = FrameDecoder(max_bytes=100)
    assert decoder.feed(framed(b"x" * 96)) == [b"x" * 96]
    with pytest.raises(FrameTooLarge):
        decoder.feed(framed(b"x" * 97))


def test_the_default_limit_is_what_a_java_peer_accepts() -> None:
    assert FrameDecoder().feed(pack(">I", MAX_FRAME_BYTES - 4)) == []
    with pytest.raises(FrameTooLarge):
        FrameDecoder().feed(pack(">I", MAX_FRAME_BYTES - 3))


def test_nothing_is_kept_of_a_frame_that_is_too_large() -> None:
    decoder = FrameDecoder()
    with pytest.raises(FrameTooLarge, match="remoting client"):
        decoder.feed(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
    assert decoder.pending_bytes == 0


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_frame_without_a_second_word_is_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"frame length {length}"):
        FrameDecoder().feed(pack(">I", length) + b"xyz")


def test_a_frame_in_many_small_pieces_is_looked_at_only_when_it_may_be_complete() -> None:
    decoder = FrameDecoder()
    whole = framed(bytes(range(256)) * 40)
    for i in range(len(whole) - 1):
        assert decoder.feed(whole[i : i + 1]) == []
    assert decoder.feed(whole[-1:]) == [whole[4:]]
