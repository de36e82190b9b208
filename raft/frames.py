"""Peer frames: how bytes are cut and joined between two replicas.

    u32 length of everything behind it
    u32 (2 << 24 | header length)          2 = CBOR header, as in the remoting frame's serialize type
    header: canonical CBOR array
    body: raw bytes (log entries, forwarded client frames, file chunks)

Promise: any bytes decode or raise `CodecError`; the size of a frame is refused before its body is buffered. The header
is an array of plain values; what it means is checked by `raft.codec` and by the receiving part, field by field.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import cbor2

__all__ = ["FRAME_MAX_BYTES", "HEADER_MAX_BYTES", "CodecError", "FrameReader", "encode_frame", "split_frame"]

FRAME_MAX_BYTES = 20 << 20
"""An 8 MiB entry, or client frames of 16 MiB, with room for the header."""
HEADER_MAX_BYTES = 1 << 20
CBOR_HEADER = 2
_WORDS = struct.Struct(">II")
_WORD = struct.Struct(">I")


class CodecError(Exception):
    """The peer's bytes are not what this protocol says."""


def encode_frame(header: Sequence[Any], body: Sequence[bytes | memoryview] = ()) -> bytes:
    """One whole frame, length word included."""
    head = cbor2.dumps(header, canonical=True)
    assert len(head) <= HEADER_MAX_BYTES, "peer header too long"
    size = 4 + len(head) + sum(map(len, body))
    assert size <= FRAME_MAX_BYTES, "peer frame too long"
    return b"".join((_WORDS.pack(size, CBOR_HEADER << 24 | len(head)), head, *body))


def split_frame(frame: bytes | memoryview) -> tuple[list[Any], memoryview]:
    """Header and body of a frame without its length word. Raises CodecError."""
    view = memoryview(frame)
    if len(view) < 4:
        raise CodecError(f"frame of {len(view)} bytes has no header word")
    (word,) = _WORD.unpack_from(view)
    length = word & 0xFFFFFF
    if word >> 24 != CBOR_HEADER:
        raise CodecError(f"header type {word >> 24} is not {CBOR_HEADER} (CBOR): not a replica's frame")
    if length > HEADER_MAX_BYTES or 4 + length > len(view):
        raise CodecError(f"header length {length} does not fit a frame of {len(view)} bytes")
    try:
        header = cbor2.loads(view[4 : 4 + length])
    except Exception as error:  # the decoder meets arbitrary bytes: whatever it raises, the bytes are at fault
        raise CodecError(f"header is not CBOR: {type(error).__name__}") from error
    if not isinstance(header, list) or not header:
        raise CodecError("header is not an array")
    return header, view[4 + length :]


class FrameReader:
    """Cut a byte stream into frames (without their length words).

    Frames are views of what was received: a large one is put together once, a small one not at all.
    """

    __slots__ = ("_needed", "_parts", "_size", "limit_bytes")

    def __init__(self, limit_bytes: int = FRAME_MAX_BYTES) -> None:
        self.limit_bytes = limit_bytes
        """Largest frame taken; a connection that has not introduced itself gets less."""
        self._parts: list[bytes] = []
        self._size = 0
        self._needed = 4
        """Nothing can be complete before so many bytes are here."""

    @property
    def buffered(self) -> int:
        """Bytes of a frame that has not arrived in full."""
        return self._size

    def feed(self, data: bytes) -> list[memoryview]:
        """Take what was received, return the frames that are complete now. Raises CodecError."""
        whole = self._gather(data)
        if whole is None:
            return []
        frames: list[memoryview] = []
        view = memoryview(whole)
        at, end = 0, len(whole)
        needed = 4
        while end - at >= 4:
            (size,) = _WORD.unpack_from(whole, at)
            self._check(size)
            if end - at - 4 < size:
                needed = 4 + size
                break
            frames.append(view[at + 4 : at + 4 + size])
            at += 4 + size
        self._keep(whole[at:] if at else whole, needed)
        return frames

    def feed_one(self, data: bytes) -> memoryview | None:
        """Like `feed`, but takes out the first frame only; the rest comes with the next `feed`. Raises CodecError."""
        whole = self._gather(data)
        if whole is None:
            return None
        (size,) = _WORD.unpack_from(whole)
        self._check(size)
        if len(whole) < 4 + size:
            self._keep(whole, 4 + size)
            return None
        self._keep(whole[4 + size :], 4)
        return memoryview(whole)[4 : 4 + size]

    def _gather(self, data: bytes) -> bytes | None:
        """Everything that is here, once there may be a whole frame in it."""
        if data:
            self._parts.append(data)
            self._size += len(data)
        if self._size < self._needed:
            return None
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _keep(self, rest: bytes, needed: int) -> None:
        self._parts = [rest] if rest else []
        self._size = len(rest)
        self._needed = needed

    def _check(self, size: int) -> None:
        if size > self.limit_bytes or size < 4:
            raise CodecError(f"frame length {size} is outside 4..{self.limit_bytes}: not a replica's frame")
