"""Tell protocols apart by the first bytes of a connection.

A remoting frame begins with its length, at most 16 MiB: the first byte is 0, or 1 for the very largest frame. All the
other protocols that meet us on this port begin with something larger, so one look decides, and a TLS client gets a
clear log line on our side instead of "frame of 369295616 bytes".
"""

from __future__ import annotations

from enum import Enum

__all__ = ["FirstBytes", "sniff"]


class FirstBytes(Enum):
    """What the other side speaks; the value is the text for the log."""

    REMOTING = "remoting protocol"
    TLS = "TLS"
    HTTP2 = "HTTP/2 (gRPC)"
    PROXY = "PROXY protocol"
    HTTP1 = "HTTP/1.1"
    UNKNOWN = "unknown protocol"


_SIGNATURES: tuple[tuple[bytes, FirstBytes], ...] = (
    (b"\x16\x03", FirstBytes.TLS),
    (b"PRI * HTTP/2.0", FirstBytes.HTTP2),
    (b"PROXY ", FirstBytes.PROXY),
    (b"\r\n\r\n\x00\r\nQUIT\n", FirstBytes.PROXY),
    (b"GET ", FirstBytes.HTTP1),
    (b"PUT ", FirstBytes.HTTP1),
    (b"POST ", FirstBytes.HTTP1),
    (b"HEAD ", FirstBytes.HTTP1),
    (b"OPTIONS ", FirstBytes.HTTP1),
)


def sniff(head: bytes) -> FirstBytes | None:
    """Name the protocol of a connection that began with `head`; None when more bytes are needed to tell."""
    if not head:
        return None
    if head[0] <= 1:
        return FirstBytes.REMOTING
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
        if signature.startswith(head):
            return None
    return FirstBytes.UNKNOWN
