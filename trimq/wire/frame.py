"""Cut a byte stream into remoting frames.

A frame is a 4-byte length word, which does not count itself, and that many bytes: a second word (serialize type in the
high byte, header length in the low three), the header, the body. This decoder looks at the length word only, keeps at
most one unfinished frame, and refuses a length over the limit before it stores anything of that frame: whoever sends
`GET / HTTP/1.1` is recognised by its first four bytes.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from trimq.errors import FrameTooLarge, ProtocolError

__all__ = ["MAX_FRAME_BYTES", "FrameDecoder"]

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""The largest frame, length word included: what a Java peer accepts by default."""

_WORD: Final = Struct(">I")
_MIN_LENGTH: Final = 4
"""A frame holds at least its second word."""


class FrameDecoder:
    """Collects received bytes and hands out whole frames, without their length word.

    After an error the stream has no frame boundary any more: the connection must be closed.
    """

    __slots__ = ("_buffer", "_max_length", "_wanted")

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_length = max_bytes - 4
        self._buffer = bytearray()
        self._wanted = 0
        """Bytes that must be in the buffer before another look at it is worth while."""

    @property
    def pending_bytes(self) -> int:
        """Bytes kept of a frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Add received bytes and return the frames that they complete, oldest first.

        Raises `FrameTooLarge` for a length word over the limit and `ProtocolError` for one below 4. Frames that the
        same call completed before the bad one are dropped with the connection.
        """
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._wanted:
                return []
            data = bytes(buffer)
            buffer.clear()
        frames: list[bytes] = []
        total = len(data)
        unpack = _WORD.unpack_from
        max_length = self._max_length
        at = 0
        while total - at >= 4:
            length: int = unpack(data, at)[0]
            if not _MIN_LENGTH <= length <= max_length:
                raise self._bad(length, data[at : at + 8])
            end = at + 4 + length
            if end > total:
                self._wanted = 4 + length
                break
            frames.append(data[at + 4 : end])
            at = end
        else:
            self._wanted = 4
        if at < total:
            buffer += data[at:] if at else data
        return frames

    def _bad(self, length: int, head: bytes) -> ProtocolError:
        if length < _MIN_LENGTH:
            return ProtocolError(f"frame length {length} is below {_MIN_LENGTH}")
        return FrameTooLarge(
            f"frame length {length} is over the limit of {self._max_length} bytes (first bytes {head.hex(' ')})",
            advice="is this a remoting client? A message may have at most 4 MiB",
        )
