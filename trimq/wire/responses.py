"""Answers of the hot path from byte templates: an OK to a send, the head of a pull answer.

In JSON form only numbers and ids of hex digits vary, so one `%` builds the header (0.3 to 0.5 µs). In the other forms
the general encoder does it. Values are always text, which is all that some clients read.
"""

from __future__ import annotations

import re
from functools import lru_cache
from struct import Struct as Layout
from typing import Final

from trimq.wire.codes import VERSION
from trimq.wire.command import encode_response, encode_response_head
from trimq.wire.header_json import json_text
from trimq.wire.headers.pull import PullResponse
from trimq.wire.headers.send import SendResponse

__all__ = [
    "DEFAULT_REGION",
    "MAX_LISTED_IDS",
    "encode_pull_head",
    "encode_send_response",
    "joined_ids",
    "send_response_parts",
]

DEFAULT_REGION: Final = "DefaultRegion"

MAX_LISTED_IDS: Final = 900
"""Offset ids listed in the answer to a batch. More would not fit a header of 64 KiB; clients use only the first."""

_WORDS: Final = Layout(">II")
_TAIL: Final = b',"serializeTypeCurrentRPC":"JSON","version":%d}' % VERSION
_SEND: Final = (
    b'{"code":%d,"extFields":{%b"msgId":"%b","queueId":"%d","queueOffset":"%d"%b},"flag":1,'
    b'"language":"PYTHON","opaque":%d' + _TAIL
)
_BETWEEN: Final = re.compile(rb"%[bd]")
_PULL: Final = (
    b'{"code":%d,"extFields":{"maxOffset":"%d","minOffset":"%d","nextBeginOffset":"%d","suggestWhichBrokerId":"%d"},'
    b'"flag":1,"language":"PYTHON","opaque":%d%b' + _TAIL
)


def joined_ids(ids: list[str]) -> str:
    """The `msgId` of a batch's answer: the ids joined by commas, as many as a header has room for."""
    return ",".join(ids[:MAX_LISTED_IDS])


@lru_cache(maxsize=64)
def _region(region: str, trace_on: bool) -> bytes:
    return b'"MSG_REGION":%b,"TRACE_ON":"%b",' % (json_text(region), b"true" if trace_on else b"false")


def encode_send_response(
    opaque: int,
    serialize: int,
    msg_id: str,
    queue_id: int,
    queue_offset: int,
    *,
    code: int = 0,
    transaction_id: str = "",
    region: str = DEFAULT_REGION,
    trace_on: bool = True,
    dup: bool = False,
    recall_handle: str = "",
) -> bytes:
    """The frame that answers a send; `msg_id` is an offset id or several joined by commas."""
    if serialize != 0:
        ext = SendResponse(
            msg_id=msg_id,
            queue_id=queue_id,
            queue_offset=queue_offset,
            transaction_id=transaction_id,
            dup=dup,
            recall_handle=recall_handle,
            region=region,
            trace_on=trace_on,
        ).to_ext()
        return encode_response(opaque, serialize, code, ext)
    more = b""
    if transaction_id:
        more = b',"transactionId":' + json_text(transaction_id)
    if recall_handle:
        more += b',"recallHandle":' + json_text(recall_handle)
    if dup:
        more += b',"dup":"1"'
    header = _SEND % (code, _region(region, trace_on), msg_id.encode(), queue_id, queue_offset, more, opaque)
    return _WORDS.pack(len(header) + 4, len(header)) + header


def send_response_parts(id_prefix: str, region: str, *, trace_on: bool) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """What stands in the JSON header of `encode_send_response` before, between and after the four values of a plain
    answer: the last 16 digits of the id (which begins with `id_prefix`), queue id, queue offset, opaque."""
    begin, to_region, to_id, to_queue, to_offset, to_more, to_opaque, end = _BETWEEN.split(_SEND)
    before_id = b"".join((begin, b"0", to_region, _region(region, trace_on), to_id, id_prefix.encode()))
    return before_id, to_queue, to_offset, to_more + to_opaque, end


def encode_pull_head(
    opaque: int,
    serialize: int,
    code: int,
    next_offset: int,
    min_offset: int,
    max_offset: int,
    body_bytes: int,
    *,
    suggest: int = 0,
    remark: str = "",
) -> bytes:
    """The head of a pull answer; `body_bytes` of records follow it on the wire. All four offsets on every code."""
    if serialize != 0 or body_bytes > 0xFFFFFF:
        ext = PullResponse(
            suggest_which_broker_id=suggest,
            next_begin_offset=next_offset,
            min_offset=min_offset,
            max_offset=max_offset,
        ).to_ext()
        return encode_response_head(opaque, serialize, code, ext, remark, body_bytes)
    said = b',"remark":' + json_text(remark) if remark else b""
    header = _PULL % (code, max_offset, min_offset, next_offset, suggest, opaque, said)
    return _WORDS.pack(len(header) + 4 + body_bytes, len(header)) + header
