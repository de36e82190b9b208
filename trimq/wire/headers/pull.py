"""Pulling: codes 11 and 361, and their answer."""

from __future__ import annotations

from enum import IntFlag

from trimq.wire.headers.base import I32, I64, Header

__all__ = ["PullFlag", "PullHeader", "PullResponse"]


class PullFlag(IntFlag):
    """Bits of a pull's `sysFlag`."""

    COMMIT_OFFSET = 1
    """`commitOffset` is meant."""
    SUSPEND = 2
    """May be held until a message comes (long poll)."""
    SUBSCRIPTION = 4
    """`subscription` and `expressionType` of this very request count, not those of the last heartbeat."""
    CLASS_FILTER = 8
    """Obsolete."""
    LITE_PULL = 16


class PullHeader(Header, frozen=True, kw_only=True):
    consumer_group: str
    topic: str
    queue_id: I32
    queue_offset: I64
    max_msg_nums: I32
    sys_flag: I32
    commit_offset: I64 = -1
    suspend_timeout_millis: I64 = 0
    subscription: str = ""
    sub_version: I64 = 0
    expression_type: str = "TAG"
    max_msg_bytes: I32 | None = None
    request_source: I32 | None = None
    bname: str = ""


class PullResponse(Header, frozen=True, kw_only=True):
    """Clients read the first four fields on codes 0, 19, 20 and 21 alike."""

    suggest_which_broker_id: I64 = 0
    next_begin_offset: I64
    min_offset: I64
    max_offset: I64
    """Exclusive."""
    offset_delta: I64 | None = None
    topic_sys_flag: I32 | None = None
    group_sys_flag: I32 | None = None
    forbidden_type: I32 | None = None
