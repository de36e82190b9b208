"""The server's side of WebSocket connections: handshake, origin, signs of life. What follows is a `Stream` like any.

A browser sends the cookies and reaches the networks of whoever sits before it, so the page that asks must be one that
the operator named, or belong to this very address (RFC 6455, 10.2). Programs outside of browsers send no Origin, and
there is nothing to check. *This very address* means an IP address or `localhost`: a name in the Host header is whatever
a page's owner lets it resolve to (DNS rebinding), so names have to be allowed by their full origin.

Signs of life: the server pings who said nothing for `PING_S`, as HTTP proxies drop connections on which nothing moves,
and as a proxy's kernel answers for a browser that is long gone. Who answers nothing for another `PING_S` is closed,
unless we are the ones who do not read (a client that must first read its answers, see `Limits`).
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request
from wsproto.utilities import RemoteProtocolError

from trimq.env import Network, Stream, StreamHandler, TaskStatus
from trimq.remoting.broken import BROKEN
from trimq.remoting.listening import serve_streams
from trimq.remoting.local import BY_WEBSOCKET
from trimq.remoting.websocket import GOING_AWAY, Codec, WebSocketStream
from trimq.wire.frame import MAX_FRAME_BYTES

__all__ = ["Gateway", "GatewayStatistics", "origin_allowed"]

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
HANDSHAKES_MAX = 256
"""Connections that have not finished their handshake; further ones are closed at once."""
PING_S = 20.0
"""Below the 60 s after which HTTP proxies like to drop a silent connection."""


def origin_allowed(origin: str | None, host: str, allowed: Sequence[str]) -> bool:
    """Whether a page of `origin` may connect to us under `host` (the Host header). `*` allows every page."""
    if origin is None or "*" in allowed:
        return True
    if origin.lower() in (each.lower().rstrip("/") for each in allowed):
        return True
    try:
        parts = urlsplit(origin)
        hostname = parts.hostname
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() and _is_address(hostname)


def _is_address(hostname: str | None) -> bool:
    if hostname == "localhost":
        return True
    try:
        ipaddress.ip_address(hostname or "")
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class GatewayStatistics:
    """A gateway at one moment."""

    connections: int
    refused: int
    """Handshakes that were refused: another origin, or no WebSocket at all."""


@dataclass(slots=True)
class _Watch:
    """What was seen of a stream at the last look."""

    received: int = 0
    pinged: bool = False


class Gateway:
    """Accepts WebSocket connections and hands them to `handle` (`RemotingServer.handle`), which owns the limits."""

    def __init__(
        self,
        handle: StreamHandler,
        *,
        allowed_origins: Sequence[str] = (),
        origins_key: str = "webSocketAllowedOrigins",
        frame_max_bytes: int = MAX_FRAME_BYTES,
    ) -> None:
        self._handle = handle
        self._allowed = tuple(allowed_origins)
        self._origins_key = origins_key
        self._frame_max = frame_max_bytes
        self._streams: dict[WebSocketStream, _Watch] = {}
        self._handshakes = 0
        self._refused = 0

    def statistics(self) -> GatewayStatistics:
        return GatewayStatistics(len(self._streams), self._refused)

    async def serve(
        self, network: Network, host: str, port: int, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled; `started(bound port)`. Raises `OSError` when the address cannot be bound."""
        await serve_streams(network, host, port, self.accept, look_after=self._keep_alive, task_status=task_status)

    async def accept(self, stream: Stream) -> None:
        """Serve one connection from its handshake on; never raises for what its client did."""
        if self._handshakes >= HANDSHAKES_MAX:
            await stream.aclose()
            return
        self._handshakes += 1
        opened: WebSocketStream | None = None
        try:
            with trio.move_on_after(HANDSHAKE_S):
                opened = await self._handshake(stream)
        except BROKEN as error:
            log.debug("WebSocket handshake failed", extra={"error": str(error)})
        finally:
            self._handshakes -= 1
            if opened is None:
                await stream.aclose()
        if opened is None:
            return
        opened.local = BY_WEBSOCKET + opened.local
        self._streams[opened] = _Watch()
        try:
            await self._handle(opened)
        finally:
            del self._streams[opened]

    async def _handshake(self, stream: Stream) -> WebSocketStream | None:
        """Read the request and answer it; None when it was refused."""
        ws = WSConnection(ConnectionType.SERVER)
        request = None
        while request is None:
            data = await stream.receive_some(16384)
            if not data:
                return None
            try:
                ws.receive_data(data)
                request = next((event for event in ws.events() if isinstance(event, Request)), None)
            except RemoteProtocolError as error:
                hint = error.event_hint if isinstance(error.event_hint, RejectConnection) else RejectConnection()
                text = f"{error}: this port takes WebSocket connections that carry RocketMQ's remoting frames"
                await self._refuse(stream, ws, hint.status_code, text, hint.headers)
                return None
            except ValueError as error:  # a Host that is no host, a target that is not ASCII
                await self._refuse(stream, ws, 400, f"bad request: {error}")
                return None
        origin = next((value.decode("latin-1") for name, value in request.extra_headers if name == b"origin"), None)
        if not origin_allowed(origin, request.host, self._allowed):
            text = f"the origin {origin} is not allowed here: add it to {self._origins_key}"
            await self._refuse(stream, ws, 403, text)
            return None
        await stream.send_all(ws.send(AcceptConnection()))
        return WebSocketStream(stream, Codec(ws, self._frame_max), close_code=GOING_AWAY)

    async def _refuse(
        self, stream: Stream, ws: WSConnection, status: int, text: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        self._refused += 1
        peer = getattr(stream, "peer", "?")
        log.warning("WebSocket connection refused", extra={"peer": peer, "status": status, "reason": text})
        body = f"{text}\n".encode("utf-8", "replace")
        more = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        rejection = RejectConnection(status_code=status, headers=[*headers, *more], has_body=True)
        await stream.send_all(ws.send(rejection) + ws.send(RejectData(data=body)))

    async def _keep_alive(self) -> None:
        """Ping the silent and close the dead: one task for all connections."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(PING_S)
                for stream, watch in list(self._streams.items()):
                    silent = stream.received == watch.received and stream.reading and not stream.sending
                    watch.received = stream.received
                    if not silent:
                        # Alive; or busy with what was sent, which has limits of its own.
                        watch.pinged = False
                    elif watch.pinged:
                        log.info("WebSocket connection closed: no answer to a ping", extra={"peer": stream.peer})
                        nursery.start_soon(stream.aclose)
                    else:
                        watch.pinged = True
                        nursery.start_soon(self._ping, stream)

    @staticmethod
    async def _ping(stream: WebSocketStream) -> None:
        with suppress(*BROKEN):
            await stream.ping()
