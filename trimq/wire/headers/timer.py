"""Timed messages: cancel one (370, RocketMQ 5.3.2), list what waits (9020, ours)."""

from __future__ import annotations

from trimq.wire.headers.base import I32, Header

__all__ = ["ListTimersHeader", "ListTimersResponse", "RecallHeader", "RecallResponse"]


class RecallHeader(Header, frozen=True, kw_only=True):
    """Code 370: do not deliver a timed message. The handle came with the answer to its send."""

    producer_group: str = ""
    topic: str
    recall_handle: str
    bname: str = ""


class RecallResponse(Header, frozen=True, kw_only=True):
    msg_id: str = ""
    """The unique id of the message that was recalled."""


class ListTimersHeader(Header, frozen=True, kw_only=True):
    """Code 9020 (ours): timed messages that wait, slot by slot of the wheel, the far ones last."""

    topic: str = ""
    """Only messages of this topic; empty: of all."""
    max_num: I32 = 256
    after: str = ""
    """`next` of the answer before; empty: from the beginning."""
    bname: str = ""


class ListTimersResponse(Header, frozen=True, kw_only=True):
    next: str = ""
    """Ask again with this; empty: that was all."""
