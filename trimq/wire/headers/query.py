"""Finding messages: by key (12) and by position (33)."""

from __future__ import annotations

import msgspec

from trimq.wire.headers.base import I32, I64, Header

__all__ = ["QueryMessageHeader", "QueryMessageResponse", "ViewMessageHeader"]


class QueryMessageHeader(Header, frozen=True, kw_only=True):
    """Code 12. The body of the answer is the stored messages; none found is code 22."""

    topic: str
    key: str
    max_num: I32
    begin_timestamp: I64
    end_timestamp: I64
    unique_key: bool = msgspec.field(name="_UNIQUE_KEY_QUERY", default=False)
    """The key is a unique id, not one of KEYS; `maxNum` then counts as 32."""
    index_type: str = ""
    last_key: str = ""
    bname: str = ""


class QueryMessageResponse(Header, frozen=True, kw_only=True):
    index_last_update_timestamp: I64 = 0
    index_last_update_phyoffset: I64 = 0


class ViewMessageHeader(Header, frozen=True, kw_only=True):
    """Code 33. The body of the answer is one stored message."""

    offset: I64
    """Position in the log, from an offset message id."""
    topic: str = ""
    bname: str = ""
