"""Bytes that wait to be sent on one stream.

Both ends use it: frames pile up while the last `send_all` is in flight, then go out together. So under load one system
call carries many answers, and on a quiet connection nothing waits. A piece is limited, so that a slow reader still
shows progress (deadlines are about progress) and joining never copies more than a piece.
"""

from __future__ import annotations

from collections import deque

__all__ = ["PIECE_BYTES", "Outbox"]

PIECE_BYTES = 256 * 1024
"""Small frames are joined up to here; a frame above four pieces is sent in slices."""

SLICE_BYTES = 4 * PIECE_BYTES


class Outbox:
    """A FIFO of frames; `size` counts the bytes that are queued and not yet taken."""

    __slots__ = ("_parts", "size")

    def __init__(self) -> None:
        self._parts: deque[bytes] = deque()
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def put(self, frame: bytes) -> None:
        self._parts.append(frame)
        self.size += len(frame)

    def take(self) -> bytes:
        """Remove and return the next piece to send. The outbox must not be empty."""
        parts = self._parts
        if self.size <= SLICE_BYTES:
            piece = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
        elif len(parts[0]) > SLICE_BYTES:
            piece = parts[0][:SLICE_BYTES]
            parts[0] = parts[0][SLICE_BYTES:]
        else:
            chosen = [parts.popleft()]
            size = len(chosen[0])
            while size + len(parts[0]) <= PIECE_BYTES:
                size += len(parts[0])
                chosen.append(parts.popleft())
            piece = b"".join(chosen)
        self.size -= len(piece)
        return piece

    def put_back(self, rest: bytes) -> None:
        """What was taken last did not all go out."""
        self._parts.appendleft(rest)
        self.size += len(rest)

    def clear(self) -> int:
        """Drop everything; return how many bytes that was."""
        size, self.size = self.size, 0
        self._parts.clear()
        return size
