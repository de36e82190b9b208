"""Pop: codes 200050 to 200055 and their answers."""

from __future__ import annotations

from trimq.wire.headers.base import I32, I64, Header

__all__ = [
    "INIT_MAX",
    "INIT_MIN",
    "AckHeader",
    "ChangeInvisibleHeader",
    "ChangeInvisibleResponse",
    "NotificationHeader",
    "NotificationResponse",
    "PeekHeader",
    "PollingInfoHeader",
    "PollingInfoResponse",
    "PopHeader",
    "PopResponse",
]

INIT_MIN = 0
INIT_MAX = 1


class PopHeader(Header, frozen=True, kw_only=True):
    """200050."""

    consumer_group: str
    topic: str
    queue_id: I32
    """-1: any queue."""
    max_msg_nums: I32
    invisible_time: I64
    poll_time: I64
    """Milliseconds that the request may be held."""
    born_time: I64 = 0
    init_mode: I32 = INIT_MAX
    """Where a group begins that has never read the queue."""
    exp_type: str = "TAG"
    exp: str = ""
    order: bool = False
    attempt_id: str = ""
    bname: str = ""


class PopResponse(Header, frozen=True, kw_only=True):
    """Clients read the first four on every answer; also the answer to a peek."""

    pop_time: I64 = 0
    invisible_time: I64 = 0
    revive_qid: I32 = 0
    rest_num: I64 = 0
    start_offset_info: str = ""
    msg_offset_info: str = ""
    order_count_info: str = ""


class AckHeader(Header, frozen=True, kw_only=True):
    """200051."""

    consumer_group: str
    topic: str
    """The topic in which the message lies, a retry topic perhaps."""
    queue_id: I32
    extra_info: str
    offset: I64
    bname: str = ""


class ChangeInvisibleHeader(Header, frozen=True, kw_only=True):
    """200053."""

    consumer_group: str
    topic: str
    queue_id: I32
    extra_info: str
    offset: I64
    invisible_time: I64
    bname: str = ""


class ChangeInvisibleResponse(Header, frozen=True, kw_only=True):
    pop_time: I64
    invisible_time: I64
    revive_qid: I32


class NotificationHeader(Header, frozen=True, kw_only=True):
    """200054: is there something to pop?"""

    consumer_group: str
    topic: str
    queue_id: I32
    poll_time: I64
    born_time: I64 = 0
    order: bool = False
    attempt_id: str = ""
    bname: str = ""


class NotificationResponse(Header, frozen=True, kw_only=True):
    has_msg: bool
    polling_full: bool = False


class PeekHeader(Header, frozen=True, kw_only=True):
    """200052: what a pop would give."""

    topic: str
    queue_id: I32
    max_msg_nums: I32
    consumer_group: str
    bname: str = ""


class PollingInfoHeader(Header, frozen=True, kw_only=True):
    """200055: how many pops are held."""

    consumer_group: str
    topic: str
    queue_id: I32
    bname: str = ""


class PollingInfoResponse(Header, frozen=True, kw_only=True):
    polling_num: I32
