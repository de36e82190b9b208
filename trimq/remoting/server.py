"""The server's side of remoting connections, on Trio.

Per connection there are two tasks. The *reader* takes what has arrived, cuts it into frames and hands all frames of
one read to the service in one synchronous call, whose answers it sends; the *writer* sends what did not go out at once.
A request is never a task and never waits for another connection: what has to wait (a commit, a long poll) becomes an
entry in some table of the service, whose owner calls `Connection.send` later.

What a client can do to us is bounded by `Limits`: unread answers stop us reading from that client, half a frame and
silence end its connection, garbage ends its connection with one log line, other protocols are named in that line.
Sources: RocketMQ's NettyRemotingServer for the facts (16 MiB frames, 120 s idle); the one-pass design is measured in
`bench/`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from trimq.env import Network, Prompt, Stream, TaskStatus
from trimq.errors import ProtocolError
from trimq.remoting.broken import BROKEN
from trimq.remoting.limits import Limits
from trimq.remoting.listening import serve_streams
from trimq.remoting.outbox import Outbox
from trimq.remoting.sniff import FirstBytes, sniff
from trimq.wire.frame import FrameDecoder

__all__ = ["Connection", "Limits", "RemotingServer", "ServerStatistics", "Service", "serve_remoting"]

log = logging.getLogger(__name__)

DEFAULT_LIMITS = Limits()


class Service(Protocol):
    """What is served. Both methods are called by the connection's reader task and must not block."""

    def on_frames(self, conn: Connection, frames: Sequence[bytes]) -> None:
        """Handle all frames of one read pass, in order (each without its length word).

        A `ProtocolError` closes this connection; any other exception does too, and is logged as our mistake.
        """
        ...

    def on_closed(self, conn: Connection) -> None:
        """The connection is over. Called exactly once for every connection; `conn.send` does nothing any more."""
        ...


class Connection:
    """One client's connection at a server."""

    __slots__ = (
        "_close_reason",
        "_outbox",
        "_passing",
        "_prompt",
        "_read_scope",
        "_room",
        "_scope",
        "_sending",
        "_server",
        "_wake",
        "closed",
        "data",
        "decoder",
        "frames_read",
        "half_frame_bytes",
        "half_frame_since",
        "id",
        "last_activity",
        "local",
        "peer",
        "stream",
    )

    def __init__(self, server: RemotingServer, conn_id: int, stream: Stream) -> None:
        self.id = conn_id
        """Counts up from 1 in this server; never reused."""
        self.peer: str = getattr(stream, "peer", "?")
        """`ip:port` of the client."""
        self.local: str = getattr(stream, "local", "?")
        """`ip:port` that the client used to reach us."""
        self.closed = False
        self.data: Any = None
        """For the service: whatever it wants to remember about this client."""
        self.frames_read = 0
        self.stream = stream
        self.decoder = FrameDecoder(server.limits.frame_max_bytes)
        self.last_activity = trio.current_time()
        self.half_frame_since = math.inf
        self.half_frame_bytes = 0
        self._server = server
        self._outbox = Outbox()
        self._prompt = stream if isinstance(stream, Prompt) else None
        self._passing = False
        """The service handles frames: its answers go out together behind them."""
        self._sending = False
        """The writer is at it."""
        self._wake = trio.Event()
        self._room: trio.Event | None = None
        self._scope = trio.CancelScope()
        self._read_scope = trio.CancelScope()
        self._close_reason = ""

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.peer}>"

    @property
    def queued(self) -> int:
        """Bytes that wait to be sent."""
        return self._outbox.size

    @property
    def close_reason(self) -> str:
        """Why the connection ends; empty while it is open."""
        return self._close_reason

    @property
    def reading_paused(self) -> bool:
        """True while the client must read its answers before we read more of its requests."""
        return self._room is not None

    def send(self, frame: bytes) -> None:
        """Send a whole frame, or queue it. Never blocks; does nothing once the connection is closed."""
        if self.closed:
            return
        self._outbox.put(frame)
        self._server.held(self, len(frame))
        if not self._passing:
            self._send_now()

    def _send_now(self) -> None:
        """Send what goes out without waiting; the writer gets the rest. Saves a pass of the scheduler per answer."""
        outbox = self._outbox
        if self._prompt is not None and not self._sending and not self.closed:
            while outbox:
                piece = outbox.take()
                sent = self._prompt.send_now(piece)
                self._server.released(sent)
                if sent < len(piece):
                    outbox.put_back(piece[sent:])
                    break
                self.last_activity = trio.current_time()
        if outbox:
            self._wake.set()

    def close(self, reason: str) -> None:
        """Stop reading, send what is queued (for at most `goodbye_s`), then close. Later reasons are ignored."""
        if self._close_reason:
            return
        self._close_reason = reason
        self.closed = True
        self._read_scope.cancel()
        self._wake.set()

    def abort(self, reason: str) -> None:
        """Close without sending what is queued."""
        self.close(reason)
        self._server.released(self._outbox.clear())
        self._scope.cancel()

    async def _read(self, service: Service) -> None:
        """Feed the service until the connection is closed, by whom ever."""
        if not await self._begin(service):
            return
        limits = self._server.limits
        receive = self.stream.receive_some
        while not self.closed:
            data = await receive(limits.read_bytes)
            if not data:
                self.close("closed by the client")
                return
            await self._pass(service, data)

    async def _begin(self, service: Service) -> bool:
        """Look at the first bytes; False when they are no remoting frames (the connection is closed then)."""
        head = b""
        while (kind := sniff(head)) is None:
            data = await self.stream.receive_some(self._server.limits.read_bytes)
            if not data:
                self.close("closed by the client")
                return False
            head += data
            self.last_activity = trio.current_time()
            self.half_frame_since = min(self.half_frame_since, self.last_activity)
        if kind is not FirstBytes.REMOTING:
            log.warning(
                "connection refused: this port speaks RocketMQ's remoting protocol only",
                extra={"peer": self.peer, "local": self.local, "client_speaks": kind.value},
            )
            self.close(f"client speaks {kind.value}")
            return False
        await self._pass(service, head)
        return not self.closed

    async def _pass(self, service: Service, data: bytes) -> None:
        """Handle everything that one read brought."""
        decoder = self.decoder
        before = decoder.pending_bytes
        frames = decoder.feed(data)
        self._note_progress(len(data), frames)
        self._server.held(self, decoder.pending_bytes - before)
        if frames:
            limit = self._server.limits.frames_per_pass_max
            if len(frames) <= limit:
                self._serve(service, frames)
            else:
                for at in range(0, len(frames), limit):
                    if self.closed:
                        return
                    self._serve(service, frames[at : at + limit])
                    await trio.lowlevel.checkpoint()
        if self._outbox.size > self._server.limits.queued_high_bytes and not self.closed:
            await self._wait_for_room()

    def _serve(self, service: Service, frames: list[bytes]) -> None:
        self.frames_read += len(frames)
        self._passing = True
        try:
            service.on_frames(self, frames)
        finally:
            self._passing = False
            if self._outbox:
                self._send_now()

    def _note_progress(self, received: int, frames: list[bytes]) -> None:
        self.last_activity = now = trio.current_time()
        if not self.decoder.pending_bytes:
            self.half_frame_since = math.inf
            return
        self.half_frame_bytes += received
        progress = self.half_frame_bytes >= self._server.limits.half_frame_progress_bytes
        if frames or progress or self.half_frame_since == math.inf:
            self.half_frame_since = now
            self.half_frame_bytes = 0

    async def _wait_for_room(self) -> None:
        self._room = trio.Event()
        try:
            await self._room.wait()
        finally:
            self._room = None
            if self.half_frame_since != math.inf:
                self.half_frame_since = trio.current_time()

    async def _write(self) -> None:
        """Send what is queued until the connection is closed and the queue is empty."""
        outbox = self._outbox
        low = self._server.limits.queued_low_bytes
        while True:
            if not outbox:
                if self.closed:
                    return
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            piece = outbox.take()
            self._sending = True
            try:
                await self.stream.send_all(piece)
            except BROKEN as error:
                self.abort(f"connection lost: {error}")
                return
            finally:
                self._sending = False
                self._server.released(len(piece))
            self.last_activity = trio.current_time()
            if self._room is not None and outbox.size <= low:
                self._room.set()


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """A listener at one moment."""

    connections: int
    held_bytes: int
    """Half frames and queued answers of all connections."""
    accepted: int
    refused: int
    """Connections that were closed at once since `connections_max` were open."""


class RemotingServer:
    """Serves connections until cancelled; `serve_remoting` is the short form.

    The object exists for those who need more than that: `statistics()`, or `handle(stream)` for a stream that some
    other listener accepted.
    """

    def __init__(self, service: Service, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._service = service
        self._connections: dict[int, Connection] = {}
        self._accepted = 0
        self._refused = 0
        self._held_bytes = 0
        self._full_logged = False
        self._draining = False
        self._empty = trio.Event()

    def statistics(self) -> ServerStatistics:
        return ServerStatistics(len(self._connections), self._held_bytes, self._accepted, self._refused)

    async def serve(
        self, network: Network, host: str, port: int, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled; `started(bound port)`. Raises `OSError` when the address cannot be bound."""
        await serve_streams(network, host, port, self.handle, look_after=self._sweep, task_status=task_status)

    async def drain(self) -> None:
        """Say goodbye: take no more connections, send what is queued, close all. Returns after `goodbye_s` at most."""
        self._draining = True
        for conn in list(self._connections.values()):
            conn.close("server stops")
        if self._connections:
            await self._empty.wait()

    async def handle(self, stream: Stream) -> None:
        """Serve one connection; returns when it is closed, never raises for what its client did."""
        if self._draining:
            await stream.aclose()
            return
        if len(self._connections) >= self.limits.connections_max:
            self._refused += 1
            if not self._full_logged:
                self._full_logged = True
                log.warning("connections refused: limit reached", extra={"limit": self.limits.connections_max})
            await stream.aclose()
            return
        self._accepted += 1
        conn = Connection(self, self._accepted, stream)
        self._connections[conn.id] = conn
        try:
            with conn._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(conn._write)
                    await self._read(conn)
                    conn._scope.deadline = trio.current_time() + self.limits.goodbye_s
        finally:
            conn.close("server stops")
            del self._connections[conn.id]
            self.released(conn._outbox.clear() + conn.decoder.pending_bytes)
            self._full_logged = self._full_logged and len(self._connections) > self.limits.connections_max * 9 // 10
            log.debug("connection closed", extra={"peer": conn.peer, "reason": conn.close_reason})
            self._tell_closed(conn)
            if self._draining and not self._connections:
                self._empty.set()
            await stream.aclose()

    async def _read(self, conn: Connection) -> None:
        """Run the connection's reader and give every way in which it can end its reason and its log line."""
        try:
            with conn._read_scope:
                await conn._read(self._service)
        except BROKEN as error:
            conn.abort(f"connection lost: {error}")
        except ProtocolError as error:
            log.warning("connection closed: bad frame", extra={"peer": conn.peer, "error": str(error)})
            conn.close(f"bad frame: {error}")
        except Exception:
            log.exception("connection closed: request handler failed", extra={"peer": conn.peer})
            conn.close("request handler failed")

    def _tell_closed(self, conn: Connection) -> None:
        try:
            self._service.on_closed(conn)
        except Exception:
            log.exception("close handler failed", extra={"peer": conn.peer})

    def held(self, conn: Connection, size: int) -> None:
        """Account for bytes that we keep for a client; closes who goes too far."""
        self._held_bytes += size
        if conn.queued > self.limits.queued_max_bytes:
            self._evict(conn, "the client does not read its answers")
        elif self._held_bytes > self.limits.held_max_bytes:
            heaviest = max(self._connections.values(), key=lambda c: (c.queued + c.decoder.pending_bytes, c.id))
            self._evict(heaviest, "all connections together hold too much")

    def released(self, size: int) -> None:
        """The opposite of `held`."""
        self._held_bytes -= size

    def _evict(self, conn: Connection, reason: str) -> None:
        extra = {"peer": conn.peer, "reason": reason, "queued": conn.queued, "half_frame": conn.decoder.pending_bytes}
        log.warning("connection closed: too many bytes held for it", extra=extra)
        conn.abort(reason)

    async def _sweep(self) -> None:
        """Close who is silent, or stuck in the middle of a frame."""
        limits = self.limits
        while True:
            await trio.sleep(limits.sweep_s)
            now = trio.current_time()
            for conn in list(self._connections.values()):
                if conn.half_frame_since + limits.half_frame_s <= now and not conn.reading_paused:
                    extra = {"peer": conn.peer, "bytes": conn.decoder.pending_bytes, "seconds": limits.half_frame_s}
                    log.warning("connection closed: a frame was begun and not finished", extra=extra)
                    conn.abort("unfinished frame")
                elif conn.last_activity + limits.idle_s <= now:
                    log.info("connection closed: idle", extra={"peer": conn.peer, "seconds": limits.idle_s})
                    conn.abort("idle")


async def serve_remoting(
    network: Network,
    host: str,
    port: int,
    service: Service,
    *,
    limits: Limits = DEFAULT_LIMITS,
    task_status: TaskStatus = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `service` at `host:port` until cancelled; `started(bound port)` once connections are accepted.

    Raises `OSError` when the address cannot be bound. Cancelling closes every connection at once.
    """
    await RemotingServer(service, limits=limits).serve(network, host, port, task_status=task_status)
