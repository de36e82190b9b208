"""Remoting frames in WebSocket messages, as a `Stream`: one binary message is one frame.

What stands above sees the same bytes as on a TCP connection, so there is one code path for both: the server's limits,
passes and back-pressure, the client's channels. The codec passes a message's bytes on as they arrive instead of
collecting it; so what is held for a client is held, counted and timed in one place, `FrameDecoder`.

The protocol is wsproto's (sans-I/O, RFC 6455); the streams below and the tasks above are whoever's: the broker's under
Trio, an application's under Trio or asyncio. No extension is agreed on: bodies are compressed by their producers, and a
compressed message could be any size. Why not trio-websocket: docs/decisions/0006.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

import anyio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from trimq.env import Stream
from trimq.errors import FrameTooLarge, ProtocolError
from trimq.remoting.broken import BROKEN
from trimq.wire.frame import MAX_FRAME_BYTES

__all__ = ["PORT_OFFSET", "SCHEME", "Codec", "WebSocketStream", "open_websocket"]

log = logging.getLogger(__name__)

PORT_OFFSET: Final = 4
"""A WebSocket gateway listens so far above the port it stands for: name servers and brokers alike."""

SCHEME: Final = "ws://"

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
NOT_BINARY: Final = 1003
NOT_A_FRAME: Final = 1007
TOO_BIG: Final = 1009

BYE_S: Final = 0.5
"""How long an orderly goodbye may take."""
LINGER_S: Final = 1.0
"""Bytes that a refused peer has already sent are read for so long: closing at once would reset the connection and the
reason would never arrive."""
REFUSAL_MAX_BYTES: Final = 4096


class Codec:
    """Between the bytes of an open WebSocket connection and those of the remoting frames in its messages. No I/O.

    After `failure` or `ended` nothing more comes; `reply()` still has to be sent.
    """

    def __init__(self, ws: WSConnection, frame_max_bytes: int = MAX_FRAME_BYTES) -> None:
        self.failure: ProtocolError | None = None
        """What the other side did wrong; the close frame that says so is in `reply()`."""
        self.ended = False
        """The other side closed."""
        self._ws = ws
        self._max = frame_max_bytes
        self._reply = bytearray()
        self._head = b""
        self._got = 0
        self._out_left = 0
        self._out_head = b""

    def receive(self, data: bytes) -> bytes:
        """Take received bytes; returns the frame bytes among them, in order, frames not necessarily whole."""
        pieces: list[bytes] = []
        try:
            self._ws.receive_data(data)
            for event in self._ws.events():
                match event:
                    case BytesMessage():
                        piece = bytes(event.data)
                        self._check(piece, event.message_finished)
                        pieces.append(piece)
                    case Ping():
                        self._reply += self._ws.send(event.response())
                    case CloseConnection():
                        self.ended = True
                        with suppress(LocalProtocolError):  # we closed first: this is the answer
                            self._reply += self._ws.send(event.response())
                    case TextMessage():
                        raise _Violation(NOT_BINARY, "binary messages only: one message is one remoting frame")
                    case Pong():
                        pass
        except _Violation as error:
            self._fail(error.code, error.reason, too_large=error.code == TOO_BIG)
        except RemoteProtocolError as error:
            self._fail(error.event_hint.code if isinstance(error.event_hint, CloseConnection) else 1002, str(error))
        return b"".join(pieces)

    def reply(self) -> bytes:
        """Control frames that must be sent now, each once."""
        reply = bytes(self._reply)
        self._reply.clear()
        return reply

    def send(self, data: bytes) -> bytes:
        """Frame bytes, cut anywhere, as WebSocket bytes. Raises `ConnectionError` once either side has closed."""
        out: list[bytes] = []
        data = self._out_head + data
        self._out_head = b""
        at, end = 0, len(data)
        try:
            while at < end:
                if not self._out_left:
                    if end - at < 4:
                        self._out_head = data[at:]
                        break
                    self._out_left = 4 + int.from_bytes(data[at : at + 4])
                piece = data[at : at + self._out_left]
                at += len(piece)
                self._out_left -= len(piece)
                out.append(self._ws.send(BytesMessage(data=piece, message_finished=not self._out_left)))
        except LocalProtocolError as error:
            raise ConnectionError("the WebSocket connection is closing") from error
        return b"".join(out)

    def ping(self) -> bytes:
        """A ping; empty when the connection is closing."""
        try:
            return self._ws.send(Ping())
        except LocalProtocolError:
            return b""

    def close(self, code: int, reason: str = "") -> bytes:
        """The close frame; empty when one was sent already."""
        try:
            return self._ws.send(CloseConnection(code=code, reason=_shortened(reason)))
        except LocalProtocolError:
            return b""

    def _check(self, piece: bytes, finished: bool) -> None:
        """One message, one frame; too long a frame is refused by its length word, before its body comes."""
        if len(self._head) < 4:
            self._head += piece[: 4 - len(self._head)]
        self._got += len(piece)
        size = 4 + int.from_bytes(self._head) if len(self._head) == 4 else self._max
        if size > self._max:
            raise _Violation(TOO_BIG, f"a frame of {size} bytes is over the limit of {self._max}")
        if self._got > size or (finished and self._got != size):
            raise _Violation(NOT_A_FRAME, "one message must be exactly one remoting frame")
        if finished:
            self._head = b""
            self._got = 0

    def _fail(self, code: int, reason: str, *, too_large: bool = False) -> None:
        self._reply += self.close(code, reason)
        kind = FrameTooLarge if too_large else ProtocolError
        self.failure = kind(f"WebSocket: {reason}")


class _Violation(Exception):
    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(reason)


class WebSocketStream:
    """A `Stream` whose bytes travel as WebSocket messages over another `Stream`. Made when the handshake is done."""

    def __init__(self, stream: Stream, codec: Codec, *, close_code: int = NORMAL) -> None:
        self.peer: str = getattr(stream, "peer", "?")
        self.local: str = getattr(stream, "local", "?")
        self.received = 0
        """Bytes that came, of whatever kind: whoever sends is alive."""
        self.reading = False
        """Somebody waits for bytes. While nobody does, a pong would not be seen either."""
        self._stream = stream
        self._codec = codec
        self._close_code = close_code
        # Replies to pings come from the reader's task, data from the writer's. Not re-entered, so it need not yield.
        self._lock = anyio.Lock(fast_acquire=True)
        self._torn = False
        """A send was cut off: nothing can follow."""
        self._early = codec.receive(b"")
        """What came in one read with the handshake's answer."""

    @property
    def sending(self) -> bool:
        """A send is under way: the other side has not read what went before."""
        return self._lock.locked()

    async def receive_some(self, max_bytes: int) -> bytes:
        codec = self._codec
        if self._early:
            early, self._early = self._early[:max_bytes], self._early[max_bytes:]
            return early
        while not codec.ended:
            self.reading = True
            try:
                data = await self._stream.receive_some(max_bytes)
            finally:
                self.reading = False
            if not data:
                break
            self.received += len(data)
            payload = codec.receive(data)
            if reply := codec.reply():
                await self._send(reply)
            if codec.failure is not None:
                await self._linger()
                raise codec.failure
            if payload:
                return payload
        return b""

    async def send_all(self, data: bytes) -> None:
        if encoded := self._codec.send(data):
            await self._send(encoded)

    async def ping(self) -> None:
        """Ask for a sign of life, unless something is being sent anyway. Raises as `send_all` does."""
        if not self.sending and (ping := self._codec.ping()):
            await self._send(ping)

    async def aclose(self) -> None:
        # With a send under way, or cut off, a goodbye would come in the middle of a message.
        if not self.sending and not self._torn and (bye := self._codec.close(self._close_code)):
            with anyio.move_on_after(BYE_S, shield=True), suppress(*BROKEN):
                await self._stream.send_all(bye)
        await self._stream.aclose()

    async def _send(self, data: bytes) -> None:
        async with self._lock:
            self._torn = True
            await self._stream.send_all(data)
            self._torn = False

    async def _linger(self) -> None:
        with anyio.move_on_after(LINGER_S), suppress(*BROKEN):
            while await self._stream.receive_some(65536):
                pass


async def open_websocket(stream: Stream, host: str, port: int, *, frame_max_bytes: int = MAX_FRAME_BYTES) -> Stream:
    """The client's handshake on a fresh connection to `host:port`. Cancelled or failed, the stream is closed.

    Raises `ConnectionError` with the server's own words when it refuses.
    """
    ws = WSConnection(ConnectionType.CLIENT)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        await stream.send_all(ws.send(Request(host=where, target="/")))
        await _accepted(stream, ws, where)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await stream.aclose()
        raise
    return WebSocketStream(stream, Codec(ws, frame_max_bytes))


async def _accepted(stream: Stream, ws: WSConnection, where: str) -> None:
    status, said = 0, b""
    while True:
        data = await stream.receive_some(65536)
        try:
            ws.receive_data(data or None)
        except RemoteProtocolError as error:
            raise ConnectionError(f"{where} is no WebSocket gateway: {error}") from error
        for event in ws.events():
            match event:
                case AcceptConnection():
                    return
                case RejectConnection():
                    status = event.status_code
                case RejectData():
                    said += bytes(event.data)
        refused = status and (len(said) >= REFUSAL_MAX_BYTES or ws.state.name == "CLOSED")
        if refused or not data:
            text = said[:REFUSAL_MAX_BYTES].decode("utf-8", "replace").strip()
            why = f"answered {status}{': ' + text if text else ''}" if status else "closed the connection"
            raise ConnectionError(f"{where} is no WebSocket gateway for us: it {why}")


def _shortened(reason: str) -> str:
    """A close frame has room for 123 bytes of text."""
    return reason.encode()[:120].decode("utf-8", "ignore")
