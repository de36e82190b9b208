"""Request and reply: how a broker hands a reply to the client that waits for it (326)."""

from __future__ import annotations

from trimq.wire.headers.base import I64
from trimq.wire.headers.send import SendHeader

__all__ = ["PushReplyHeader"]


class PushReplyHeader(SendHeader, frozen=True, kw_only=True):
    """Code 326, broker to client: the header of the reply as it was sent (324, 325), and where it came from."""

    born_host: str = ""
    """`ip:port` of the replier."""
    store_host: str = ""
    """`ip:port` of the broker."""
    store_timestamp: I64 = 0
