"""Headers of what tools look at: codes 303, 307, 308, 309, 314, 315, 321, 345."""

from __future__ import annotations

from trimq.wire.headers.base import I32, I64, Header

__all__ = [
    "AskConsumerHeader",
    "CloneOffsetHeader",
    "CorrectionOffsetHeader",
    "QueryConsumeQueueHeader",
    "StatsDataHeader",
    "SubscriptionHeader",
    "TimeSpanHeader",
]


class AskConsumerHeader(Header, frozen=True, kw_only=True):
    """Codes 307 and 309: a question that the broker passes on to a consumer."""

    consumer_group: str
    client_id: str = ""
    """Empty: any member."""
    jstack_enable: bool = False
    """307 only."""
    msg_id: str = ""
    """309 only: an offset message id."""


class TimeSpanHeader(Header, frozen=True, kw_only=True):
    """Code 303."""

    topic: str
    group: str


class CorrectionOffsetHeader(Header, frozen=True, kw_only=True):
    """Code 308."""

    topic: str
    compare_group: str
    filter_groups: str = ""
    """Names, joined by commas."""


class CloneOffsetHeader(Header, frozen=True, kw_only=True):
    """Code 314."""

    src_group: str
    dest_group: str
    topic: str = ""
    """Empty: every topic that the source has offsets on."""
    offline: bool = False


class StatsDataHeader(Header, frozen=True, kw_only=True):
    """Code 315."""

    stats_name: str
    stats_key: str


class QueryConsumeQueueHeader(Header, frozen=True, kw_only=True):
    """Code 321."""

    topic: str
    queue_id: I32 = 0
    index: I64 = 0
    count: I32 = 10
    consumer_group: str = ""


class SubscriptionHeader(Header, frozen=True, kw_only=True):
    """Code 345."""

    group: str
    topic: str = ""
