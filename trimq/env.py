"""What is passed in: clock, network, streams.

Nothing of ours reads the wall clock, opens a socket or draws a random number by itself. Servers and clients receive
these protocols, so the simulator can own time and network, and a test needs neither sockets nor sleeping. The real
adapters live in `trimq.remoting.system`; `raft` declares the same shapes for itself (structural typing).

Waiting is not here: drivers wait with Trio's (or AnyIO's) own clock and cancel scopes, which a test clock drives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, runtime_checkable

__all__ = ["Addressed", "Clock", "Network", "Prompt", "Stream", "StreamHandler", "TaskStatus"]


class Clock(Protocol):
    """Wall time. It is data (timestamps in records), never proof of order: it may jump both ways."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""
        ...


class Stream(Protocol):
    """A byte stream in both directions: a TCP socket, TLS, WebSocket, or a simulated link.

    One task may receive while another one sends; two tasks must not send at the same time. A broken link raises
    `OSError`, `trio.BrokenResourceError` or `anyio.BrokenResourceError`: `trimq.remoting.broken.BROKEN` names them all.
    """

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return at least one byte and at most `max_bytes`; `b""` at the end of the stream."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Send everything. After a cancelled or failed call it is unknown how much went out: close the stream."""
        ...

    async def aclose(self) -> None:
        """Close at once, also under cancellation. Closing twice is harmless."""
        ...


@runtime_checkable
class Prompt(Protocol):
    """A stream that can also send from where nothing may wait."""

    def send_now(self, data: bytes) -> int:
        """Send what goes out at once; returns how many bytes that was, perhaps none. Never fails.

        Not while a `send_all` is under way.
        """
        ...


@runtime_checkable
class Addressed(Protocol):
    """A stream that knows its two ends; a `Stream` without these attributes is labelled by the server."""

    peer: str
    """`ip:port` of the other side."""

    local: str
    """`ip:port` of this side: the address that the peer reached us by."""


class TaskStatus(Protocol):
    """What Trio's and AnyIO's `start()` hand over; `started(value)` says that the service really is ready."""

    def started(self, value: Any, /) -> None: ...  # Any: the value's type is the starter's business


StreamHandler = Callable[[Stream], Awaitable[None]]
"""Serves one connection and returns when it is over; the network closes the stream afterwards."""


class Network(Protocol):
    """Where streams come from."""

    async def connect(self, host: str, port: int) -> Stream:
        """Open a stream. Raises `OSError` when nothing answers there."""
        ...

    async def serve(self, handler: StreamHandler, host: str, port: int, *, task_status: TaskStatus) -> None:
        """Accept connections until cancelled, one task per connection; `started(bound port)` once listening.

        Raises `OSError` before `started` when the address cannot be bound. Port 0 picks a free one.
        """
        ...
