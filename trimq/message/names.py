"""Names of topics and groups: what is allowed, what is reserved, and the names derived from them.

A name is 1 to 127 bytes (groups 120; retry and dead-letter topics 255) of ASCII letters, digits, `-`, `_`, `%` and `|`:
RocketMQ's rule. So a name never needs escaping in a URL, a file or a log line; file names here are numbers anyway.
"""

from __future__ import annotations

import re
from typing import Final

from trimq.errors import BadName

__all__ = [
    "DEFAULT_TOPIC",
    "DLQ_PREFIX",
    "MAX_GROUP_BYTES",
    "MAX_TOPIC_BYTES",
    "RESERVED_TOPICS",
    "RETRY_PREFIX",
    "BadName",
    "check_group",
    "check_topic",
    "dlq_topic",
    "group_of_retry",
    "is_derived",
    "is_reserved",
    "is_system_group",
    "is_system_topic",
    "reply_topic",
    "retry_topic",
]

RETRY_PREFIX: Final = "%RETRY%"
DLQ_PREFIX: Final = "%DLQ%"
DEFAULT_TOPIC: Final = "TBW102"
"""The template from which topics are created by a first send."""

MAX_TOPIC_BYTES: Final = 127
MAX_DERIVED_BYTES: Final = 255
MAX_GROUP_BYTES: Final = 120

RESERVED_TOPICS: Final[frozenset[str]] = frozenset(
    {
        "SCHEDULE_TOPIC_XXXX",
        "RMQ_SYS_TRANS_HALF_TOPIC",
        "RMQ_SYS_TRANS_OP_HALF_TOPIC",
        "TRANS_CHECK_MAX_TIME_TOPIC",
        "SELF_TEST_TOPIC",
        "OFFSET_MOVED_EVENT",
        "rmq_sys_wheel_timer",
    }
)
"""Topics that only the broker writes."""

_SYSTEM_TOPICS: Final[frozenset[str]] = RESERVED_TOPICS | {DEFAULT_TOPIC, "BenchmarkTest", "RMQ_SYS_TRACE_TOPIC"}

_SYSTEM_GROUPS: Final[frozenset[str]] = frozenset(
    {
        "TOOLS_CONSUMER",
        "FILTERSRV_CONSUMER",
        "SELF_TEST_C_GROUP",
        "SELF_TEST_P_GROUP",
        "CID_ONS-HTTP-PROXY",
        "CID_ONSAPI_PULL",
        "CID_ONSAPI_PERMISSION",
        "CID_ONSAPI_OWNER",
    }
)

_LEGAL: Final = re.compile(r"[%|a-zA-Z0-9_-]+", re.ASCII)


def check_topic(name: str) -> str:
    """Return the name if a topic may have it, else raise `BadName` saying what is wrong."""
    limit = MAX_DERIVED_BYTES if is_derived(name) else MAX_TOPIC_BYTES
    return _check(name, "topic", limit)


def check_group(name: str) -> str:
    """Return the name if a consumer or producer group may have it, else raise `BadName`."""
    return _check(name, "group", MAX_GROUP_BYTES)


def _check(name: str, what: str, limit: int) -> str:
    if not name.strip():
        raise BadName(f"the {what} name is empty")
    if len(name) > limit:
        raise BadName(f"the {what} name {name[:40]!r}... has {len(name)} characters, at most {limit} are allowed")
    if _LEGAL.fullmatch(name) is None:
        bad = next(ch for ch in name if _LEGAL.fullmatch(ch) is None)
        raise BadName(f"the {what} name {name!r} contains {bad!r}")
    return name


def is_derived(topic: str) -> bool:
    """Whether this is a retry or dead-letter topic: it belongs to a consumer group."""
    return topic.startswith((RETRY_PREFIX, DLQ_PREFIX))


def is_reserved(topic: str) -> bool:
    """Whether clients must not send to this topic."""
    return topic in RESERVED_TOPICS


def is_system_topic(topic: str) -> bool:
    """Whether the broker itself owns this topic, so that tools hide it and nobody may change it."""
    return topic in _SYSTEM_TOPICS or topic.startswith("rmq_sys_")


def is_system_group(group: str) -> bool:
    return group in _SYSTEM_GROUPS or group.startswith("CID_RMQ_SYS_")


def retry_topic(group: str) -> str:
    """Where messages that a consumer group could not process come back."""
    return RETRY_PREFIX + group


def reply_topic(cluster: str) -> str:
    """Where replies to requests of a cluster go."""
    return f"{cluster}_REPLY_TOPIC"


def dlq_topic(group: str) -> str:
    """Where messages end that a consumer group gave up on."""
    return DLQ_PREFIX + group


def group_of_retry(topic: str) -> str | None:
    """The consumer group of a retry topic, or None for any other topic."""
    return topic[len(RETRY_PREFIX) :] if topic.startswith(RETRY_PREFIX) else None
