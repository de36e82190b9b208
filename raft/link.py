"""A link to one peer address, and the connection it has at the moment.

Sending never blocks: three queues, strictly in this order: *control* (everything queued goes out as one frame), *data*,
*bulk*. One `send_all` per wake-up, with at most `PASS_BYTES` of data and bulk, so that a beat never waits behind more
than that. What a producer waits for (entries, and the word that they are durable) is sent *promptly*: from the pass
that made it, as far as the connection takes it, which saves two passes of the scheduler on each hop. Without a
connection everything is dropped: Raft repeats what matters, and whoever cannot lose a message looks at the return
value.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from raft.env import BROKEN, Prompt, Stream
from raft.frames import CodecError, FrameReader, encode_frame
from raft.signals import Signal

__all__ = ["APP", "BUNDLE", "GROUP", "HELLO", "MESSAGE", "REFUSED", "Address", "PeerLink", "Session"]

log = logging.getLogger(__name__)

HELLO = 1
GROUP = 2
REFUSED = 3
BUNDLE = 4
MESSAGE = 5
APP = 6

RECEIVE_BYTES = 512 << 10
PASS_BYTES = 256 << 10
CONTROL_QUEUE_MAX = 10_000
DATA_QUEUE_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a node listens for its peers."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """`host:port`. Raises ValueError."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdigit():
            raise ValueError(f"{text!r} is not host:port")
        return cls(host, int(port))


class PeerLink:
    """The way to one peer address. Sending never blocks; False means dropped."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.groups: set[str] = set()  # groups in agreement in the present session; membership only, never iterated
        self.session: Session | None = None
        self.wanted_by: dict[str, None] = {}
        self.sent_frames = 0
        self.received_frames = 0
        self.dropped = 0

    def agreed(self, group: str) -> bool:
        """Is there a session in which both sides accepted the group?"""
        return self.session is not None and group in self.groups

    def send_control(self, group: str, fields: Sequence[Any], *, prompt: bool = False) -> bool:
        """Queue a small message without a body; everything queued goes as one frame, before all data.

        `prompt`: now, if possible. Otherwise it leaves together with what others queue in this pass.
        """
        session = self.session
        if session is None or group not in self.groups or len(session.control) >= CONTROL_QUEUE_MAX:
            self.dropped += 1
            return False
        session.control.append([group, *fields])
        if prompt:
            session.send_now()
        else:
            session.wake.set()
        return True

    def send_data(
        self,
        group: str,
        fields: Sequence[Any],
        body: Sequence[bytes | memoryview],
        *,
        app: bool = False,
        prompt: bool = False,
    ) -> bool:
        """Queue a message with a body, behind all control messages. `prompt`: now, if possible."""
        session = self.session
        if session is None or group not in self.groups or session.data_bytes >= DATA_QUEUE_MAX_BYTES:
            self.dropped += 1
            return False
        frame = encode_frame([APP if app else MESSAGE, group, *fields], body)
        session.data.append(frame)
        session.data_bytes += len(frame)
        if prompt:
            session.send_now()
        else:
            session.wake.set()
        return True

    def send_bulk(self, group: str, fields: Sequence[Any], body: Sequence[bytes | memoryview]) -> bool:
        """Queue a message that may wait for everything else (installation, repair)."""
        session = self.session
        if session is None or group not in self.groups or session.data_bytes >= DATA_QUEUE_MAX_BYTES:
            self.dropped += 1
            return False
        frame = encode_frame([MESSAGE, group, *fields], body)
        session.bulk.append(frame)
        session.data_bytes += len(frame)
        session.wake.set()
        return True


class Session:
    """One connection of a link, after both hellos."""

    def __init__(
        self,
        link: PeerLink,
        stream: Stream,
        reader: FrameReader,
        now: Callable[[], float],
        deliver: Callable[[Session, Sequence[memoryview]], None],
    ) -> None:
        """`now` is the links' own time; `deliver` gets all frames of a read and may raise CodecError."""
        self.control: deque[list[Any]] = deque()
        self.data: deque[bytes] = deque()
        self.bulk: deque[bytes] = deque()
        self.urgent: deque[bytes] = deque()
        self.data_bytes = 0
        self.wake = Signal()
        self.scope = trio.CancelScope()
        self.last_sent = self.last_received = now()
        self.broken = False
        self.all_refused = False
        self.closing = False
        self.hellos: dict[str, dict[str, Any]] = {}  # what the peer's groups said, also of groups we do not have yet
        self.refused_groups: set[str] = set()  # membership only
        self._now = now
        self._deliver = deliver
        self._link = link
        self._stream = stream
        self._prompt = stream if isinstance(stream, Prompt) else None
        self._reader = reader
        self._sending = False
        """The sender is at it."""
        self._rest = b""
        """What did not go out promptly: first in line."""

    async def run(self) -> None:
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send)
                await self._receive()
                nursery.cancel_scope.cancel()

    def next_parts(self) -> list[bytes]:
        """What goes out in one `send_all`: urgent, control, then data, then bulk, up to PASS_BYTES of the latter."""
        parts: list[bytes] = []
        if self.urgent:
            parts.extend(self.urgent)
            self.urgent.clear()
        if self.control:
            parts.append(encode_frame([BUNDLE, list(self.control)]))
            self.control.clear()
        size = 0
        while self.data and size < PASS_BYTES:
            frame = self.data.popleft()
            size += len(frame)
            parts.append(frame)
        while self.bulk and size < PASS_BYTES:
            frame = self.bulk.popleft()
            size += len(frame)
            parts.append(frame)
        self.data_bytes -= size
        return parts

    def send_now(self) -> None:
        """Send what is queued, as far as it goes without waiting; the sender does the rest."""
        if self._prompt is None or self._sending or self._rest:
            self.wake.set()
            return
        piece = self._next_piece()
        self._rest = piece[self._prompt.send_now(piece) :]
        if self._rest or self.data or self.bulk:
            self.wake.set()

    def _next_piece(self) -> bytes:
        """What goes out in one call; empty when nothing is queued."""
        if self._rest:
            piece, self._rest = self._rest, b""
            return piece
        parts = self.next_parts()
        if parts:
            self._link.sent_frames += len(parts)
            self.last_sent = self._now()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _send(self) -> None:
        try:
            while True:
                await self.wake.wait()
                while piece := self._next_piece():
                    self._sending = True
                    await self._stream.send_all(piece)
                    self._sending = False
                if self.closing:
                    self.scope.cancel()
        except BROKEN:
            self.broken = True
            self.scope.cancel()

    async def _receive(self) -> None:
        try:
            # Frames that came together with the hello.
            self._deliver(self, self._reader.feed(b""))
            while True:
                data = await self._stream.receive_some(RECEIVE_BYTES)
                if not data:
                    self.broken = True
                    return
                self.last_received = self._now()
                self._deliver(self, self._reader.feed(data))
        except BROKEN:
            self.broken = True
        except CodecError as error:
            log.warning(
                "peer sent garbage; connection closed", extra={"peer": str(self._link.address), "reason": str(error)}
            )
