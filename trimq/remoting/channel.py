"""One client connection: many requests in flight, answers in any order, requests from the server.

Everything is a table lookup: `submit` files a callback under the request's opaque and queues the frame, the reader
finds it again. There is no task and no future per request; `invoke` adds one event for callers that want to wait.
Whatever queued while the last `send_all` was in flight goes out together.

Both sides number their requests on their own, so an answer is recognised by its flag, never by its opaque alone.
Written on AnyIO: the same code serves applications under Trio and asyncio, and our own servers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import anyio

from trimq.env import Stream
from trimq.errors import Disconnected, ProtocolError
from trimq.remoting.outbox import Outbox
from trimq.wire.command import MAX_RESPONSE_HEADER_BYTES, Command, decode, encode
from trimq.wire.frame import FrameDecoder

__all__ = ["Channel", "Reply", "ReplyCallback", "RequestHandler"]

log = logging.getLogger(__name__)

Reply: TypeAlias = "Command | Disconnected"
"""What becomes of a request: the server's answer, or the reason why there will be none on this connection."""

ReplyCallback = Callable[[Reply], None]
RequestHandler = Callable[[str, Command], "Command | None"]
"""Handles a request of the server at an address; must not block. None: no answer, or one that follows later."""

READ_BYTES = 256 * 1024
QUEUED_HIGH_BYTES = 8 * 1024 * 1024
"""`room()` waits above this."""

OPAQUE_MAX = 0x7FFF_FFFF


class Channel:
    """A connection to one address. Made by `RemotingClient`, which runs its two tasks.

    All methods but `invoke` and `room` are synchronous and may be called from callbacks.
    """

    def __init__(self, addr: str, stream: Stream, on_request: RequestHandler | None) -> None:
        self.addr = addr
        self.peer: str = getattr(stream, "peer", addr)
        self.local: str = getattr(stream, "local", "?")
        """`ip:port` of our side: the address by which this server knows us."""
        self.closed = False
        self.close_reason = ""
        self._stream = stream
        self._on_request = on_request
        self._decoder = FrameDecoder()
        self._outbox = Outbox()
        self._waiting: dict[int, ReplyCallback] = {}
        self._close_callbacks: list[Callable[[str], None]] = []
        self._opaque = 0
        self._wake = anyio.Event()
        self._room: anyio.Event | None = None
        self._tasks = anyio.CancelScope()

    def __repr__(self) -> str:
        return f"<Channel {self.addr}{' closed' if self.closed else ''}, {len(self._waiting)} in flight>"

    @property
    def queued(self) -> int:
        """Bytes that wait to be sent."""
        return self._outbox.size

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        return len(self._waiting)

    def next_opaque(self) -> int:
        """A number that no unanswered request of this channel has."""
        while True:
            self._opaque = self._opaque + 1 if self._opaque < OPAQUE_MAX else 1
            if self._opaque not in self._waiting:
                return self._opaque

    def submit(self, frame: bytes, opaque: int, callback: ReplyCallback) -> None:
        """Queue an encoded request; `callback` gets its answer, exactly once, unless `forget` comes first.

        On a closed channel the callback is called at once with `Disconnected`: nothing was sent.
        """
        if self.closed:
            callback(Disconnected(self.close_reason))
            return
        self._waiting[opaque] = callback
        self._outbox.put(frame)
        self._wake.set()

    def forget(self, opaque: int) -> None:
        """Nobody waits for this answer any more; it is dropped when it comes. The request is not taken back."""
        self._waiting.pop(opaque, None)

    def send(self, frame: bytes) -> None:
        """Queue a frame that wants no answer: a oneway request, or our answer to the server. No-op when closed."""
        if not self.closed:
            self._outbox.put(frame)
            self._wake.set()

    async def invoke(self, command: Command) -> Command:
        """Send a request (its `opaque` is set here) and wait for the answer, whatever its code.

        The deadline is the caller's cancel scope; a cancelled request may or may not have reached the server.
        Raises `Disconnected` when the connection ends first.
        """
        await self.room()
        opaque = command.opaque = self.next_opaque()
        done = anyio.Event()
        replies: list[Reply] = []

        def settle(reply: Reply) -> None:
            replies.append(reply)
            done.set()

        self.submit(encode(command), opaque, settle)
        try:
            await done.wait()
        finally:
            self.forget(opaque)
        reply = replies[0]
        if isinstance(reply, Disconnected):
            raise reply
        return reply

    async def room(self) -> None:
        """Wait until no more than 8 MiB are queued, or the channel is closed."""
        while self._outbox.size > QUEUED_HIGH_BYTES and not self.closed:
            if self._room is None:
                self._room = anyio.Event()
            await self._room.wait()

    def on_closed(self, callback: Callable[[str], None]) -> None:
        """Call back with the reason when the channel is closed; at once if it is already."""
        if self.closed:
            callback(self.close_reason)
        else:
            self._close_callbacks.append(callback)

    def close(self, reason: str) -> None:
        """End the connection now: every waiting callback gets `Disconnected`, queued frames are dropped."""
        if self.closed:
            return
        self.closed = True
        self.close_reason = reason
        self._outbox.clear()
        self._tasks.cancel()
        if self._room is not None:
            self._room.set()
        waiting, self._waiting = self._waiting, {}
        for reply_callback in waiting.values():
            _guarded(partial(reply_callback, Disconnected(reason)))
        callbacks, self._close_callbacks = self._close_callbacks, []
        for close_callback in callbacks:
            _guarded(partial(close_callback, reason))

    async def run(self) -> None:
        """Move bytes until the connection ends; the stream is closed on the way out. Never raises for a lost link."""
        try:
            with self._tasks:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._write)
                    await self._read()
        finally:
            self.close("client closed")
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()

    async def _read(self) -> None:
        while True:
            try:
                data = await self._stream.receive_some(READ_BYTES)
            except Exception as error:  # whatever the stream says: this link is gone
                self.close(f"{self.addr}: {error}")
                return
            if not data:
                self.close(f"{self.addr} closed the connection")
                return
            try:
                for frame in self._decoder.feed(data):
                    self._handle(decode(frame, max_header=MAX_RESPONSE_HEADER_BYTES))
            except ProtocolError as error:
                log.warning("connection closed: bad frame from the server", extra={"addr": self.addr, "error": error})
                self.close(f"{self.addr} sent a bad frame: {error}")
                return

    def _handle(self, command: Command) -> None:
        if command.is_response:
            callback = self._waiting.pop(command.opaque, None)
            if callback is not None:
                try:
                    callback(command)
                except Exception:
                    log.exception("callback failed", extra={"addr": self.addr})
        elif self._on_request is not None:
            try:
                answer = self._on_request(self.addr, command)
                if answer is not None and not command.is_oneway:
                    self.send(encode(answer))
            except Exception:
                log.exception("handler of a server's request failed", extra={"addr": self.addr, "code": command.code})

    async def _write(self) -> None:
        outbox = self._outbox
        while True:
            if not outbox:
                self._wake = anyio.Event()
                await self._wake.wait()
                continue
            try:
                await self._stream.send_all(outbox.take())
            except Exception as error:  # as above
                self.close(f"{self.addr}: {error}")
                return
            if self._room is not None and outbox.size <= QUEUED_HIGH_BYTES:
                self._room.set()
                self._room = None


def _guarded(call: Callable[[], object]) -> None:
    """One caller's mistake must not end the others' connection."""
    try:
        call()
    except Exception:
        log.exception("callback failed")
