"""Joining and slicing of what waits to be sent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trimq.remoting.outbox import PIECE_BYTES, Outbox


def test_small_frames_leave_as_one_piece() -> None:
    outbox = Outbox()
    for frame in (b"one", b"two", b"three"):
        outbox.put(frame)
    assert outbox.size == 11
    assert outbox.take() == b"onetwothree"
    assert not outbox
    assert outbox.size == 0


@given(st.lists(st.sampled_from([1, 100, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES, 9 * PIECE_BYTES]), max_size=12))
def test_pieces_are_bounded_and_carry_every_byte_in_order(sizes: list[int]) -> None:
    outbox = Outbox()
    frames = [bytes([n + 1]) * size for n, size in enumerate(sizes)]
    for frame in frames:
        outbox.put(frame)
    pieces = []
    while outbox:
        before = outbox.size
        pieces.append(outbox.take())
        assert 0 < len(pieces[-1]) <= 4 * PIECE_BYTES
        assert outbox.size == before - len(pieces[-1])
    assert b"".join(pieces) == b"".join(frames)


def test_clear_drops_everything_and_says_how_much() -> None:
    outbox = Outbox()
    outbox.put(b"abc")
    outbox.put(b"de")
    assert outbox.clear() == 5
    assert not outbox
    assert outbox.size == 0
