"""Records of the message trace, as RocketMQ's clients write and its tools read them.

A trace message holds several records; fields are separated by 0x01, each record ends with 0x02, null is written `null`.

| record | fields |
|---|---|
| Pub | timestamp, region, group, topic, msgId, tags, keys, storeHost, bodyLength, costMs, msgType, offsetMsgId, |
| | success |
| SubBefore | timestamp, region, group, requestId, msgId, retryTimes, keys |
| SubAfter | requestId, msgId, costMs, success, keys, contextCode, timestamp, group |

Every id and key in it is a key of the trace message, so that a trace is found by QUERY_MESSAGE.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["TRACE_TOPIC", "Kind", "Step", "consumed", "read_steps", "sent"]

TRACE_TOPIC: Final = "RMQ_SYS_TRACE_TOPIC"
REGION: Final = "DefaultRegion"

_FIELD: Final = "\x01"
_RECORD: Final = "\x02"


class Kind(enum.IntEnum):
    """RocketMQ's MessageType."""

    NORMAL = 0
    TRANSACTION_HALF = 1
    TRANSACTION_COMMIT = 2
    DELAY = 3
    ORDER = 4


@dataclass(frozen=True, slots=True)
class Step:
    """One record, as far as it says something."""

    what: str
    """`Pub`, `SubBefore`, `SubAfter`, ..."""
    message_id: str
    group: str = ""
    topic: str = ""
    at_ms: int = 0
    cost_ms: int = 0
    success: bool = True
    keys: str = ""
    host: str = ""
    attempt: int = 0
    request: str = ""
    """Ties SubBefore and SubAfter of one delivery together."""


def sent(
    *,
    at_ms: int,
    group: str,
    topic: str,
    message_id: str,
    tag: str | None,
    keys: Sequence[str],
    store_host: str,
    body_bytes: int,
    cost_ms: int,
    kind: Kind,
    offset_id: str,
    success: bool,
) -> str:
    """The Pub record of one send."""
    return _record(
        "Pub", at_ms, REGION, group, topic, message_id, tag or "", " ".join(keys), store_host, body_bytes, cost_ms,
        int(kind), offset_id, success,
    )  # fmt: skip


def consumed(
    *,
    at_ms: int,
    group: str,
    message_id: str,
    attempt: int,
    keys: Sequence[str],
    request: str,
    cost_ms: int,
    success: bool,
) -> str:
    """The SubBefore and SubAfter records of one delivery that is over."""
    words = " ".join(keys)
    before = _record("SubBefore", at_ms, REGION, group, request, message_id, attempt - 1, words)
    # 0 is ConsumeReturnType.SUCCESS, 4 FAILED
    after = _record("SubAfter", request, message_id, cost_ms, success, words, 0 if success else 4, at_ms, group)
    return before + after


def _record(*fields: object) -> str:
    return _FIELD.join(_text(field) for field in fields) + _RECORD


def _text(field: object) -> str:
    if isinstance(field, bool):
        return "true" if field else "false"
    return str(field).replace(_FIELD, " ").replace(_RECORD, " ")


def read_steps(body: bytes) -> list[Step]:
    """All records of a trace message that can be read; those of other kinds and versions by what is known of them."""
    steps: list[Step] = []
    for record in body.decode("utf-8", "replace").split(_RECORD):
        fields = [("" if field == "null" else field) for field in record.strip("\r\n").split(_FIELD)]
        step = _read(fields)
        if step is not None:
            steps.append(step)
    return steps


def _read(fields: Sequence[str]) -> Step | None:
    match fields:
        case ["Pub", at, _, group, topic, id, _, keys, host, _, cost, _, *rest]:
            success = rest[1] if len(rest) > 1 else (rest[0] if rest else "true")
            return Step("Pub", id, group, topic, _int(at), _int(cost), success.lower() != "false", keys, host)
        case ["SubBefore", at, _, group, request, id, retries, keys, *_]:
            return Step("SubBefore", id, group, "", _int(at), keys=keys, attempt=_int(retries) + 1, request=request)
        case ["SubAfter", request, id, cost, success, keys, *rest]:
            at, group = (rest[1], rest[2]) if len(rest) >= 3 else ("0", "")
            ok = success.lower() != "false"
            return Step("SubAfter", id, group, "", _int(at), _int(cost), ok, keys, request=request)
        case ["EndTransaction", at, _, group, topic, id, _, keys, host, *_]:
            return Step("EndTransaction", id, group, topic, _int(at), keys=keys, host=host)
        case _:
            return None


def _int(text: str) -> int:
    return int(text) if text.isascii() and text.lstrip("-").isdigit() and len(text) < 20 else 0
