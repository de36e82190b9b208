"""Moving consumers: reset (222, 220) and how far they are (223, 221)."""

from __future__ import annotations

from trimq.wire.headers.base import I32, I64, Header

__all__ = ["ConsumerStatusHeader", "ResetClientHeader", "ResetOffsetHeader"]


class ResetOffsetHeader(Header, frozen=True, kw_only=True):
    """Code 222, tool to broker; the answer is a table of the offsets set."""

    topic: str
    group: str
    timestamp: I64 = -1
    """Negative: the end of each queue."""
    is_force: bool = True
    """False: only queues where it goes back."""
    queue_id: I32 = -1
    """Negative: every queue."""
    offset: I64 | None = None
    """Instead of a time."""


class ResetClientHeader(Header, frozen=True, kw_only=True):
    """Code 220, broker to client, oneway."""

    topic: str
    group: str
    timestamp: I64 = -1
    is_force: bool = True


class ConsumerStatusHeader(Header, frozen=True, kw_only=True):
    """Codes 223 (tool to broker) and 221 (broker to client)."""

    topic: str
    group: str
    client_addr: str = ""
    """223: the client id of one member; empty: all."""
