"""Batch bodies: several messages in one send (code 320, or the batch flag).

Elements lie back to back: size (4, itself included), magic 0 (4), CRC 0 (4), flag (4), body length (4) and body,
properties length (2) and properties. Topic, queue, sysFlag and born time come from the request for all of them. The
broker stores each element as a message of its own with consecutive queue offsets, all or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct as Layout
from typing import Final

import msgspec

from trimq.errors import BadRequest, RecordError
from trimq.message.record import pack_record

__all__ = [
    "ELEMENT_OVERHEAD",
    "BatchElement",
    "RunHead",
    "encode_batch",
    "iter_batch",
    "pack_run",
]

ELEMENT_OVERHEAD: Final = 22
"""Bytes of an element beside its body and its properties."""

_HEAD: Final = Layout(">I4x4xiI")
_FIXED: Final = _HEAD.size
_PACK: Final = Layout(">IIIiI")
_U16: Final = Layout(">H")
_MAX_PROPERTIES: Final = 32767


class BatchElement(msgspec.Struct, frozen=True, gc=False):
    body: bytes
    properties: bytes = b""
    """Property string; holds the element's own UNIQ_KEY."""
    flag: int = 0


def iter_batch(body: bytes) -> list[BatchElement]:
    """The elements of a batch body, all checked before any is handed out. Raises `RecordError`; never empty."""
    elements: list[BatchElement] = []
    at = 0
    total = len(body)
    head = _HEAD.unpack_from
    while at < total:
        if total - at < ELEMENT_OVERHEAD:
            raise RecordError(f"batch: {total - at} bytes at {at} are too few for an element")
        size, flag, body_len = head(body, at)
        end = at + size
        props_at = at + _FIXED + body_len + 2
        if end > total or props_at > end:
            raise RecordError(f"batch: element of {size} bytes at {at} with a body of {body_len} does not fit")
        props_len = (body[props_at - 2] << 8) | body[props_at - 1]
        if props_at + props_len != end or props_len > _MAX_PROPERTIES:
            raise RecordError(f"batch: lengths of the element at {at} do not add up to its {size} bytes")
        elements.append(BatchElement(body[at + _FIXED : props_at - 2], body[props_at:end], flag))
        at = end
    if not elements:
        raise RecordError("batch: no element")
    return elements


class RunHead(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What the records of one batch have in common, and where the first of them lies."""

    topic: bytes
    queue_id: int
    queue_offset: int
    position: int
    sys_flag: int
    born_ms: int
    born_host: bytes
    store_ms: int
    store_host: bytes
    reconsume_times: int
    prepared_offset: int


def pack_run(head: RunHead, elements: Sequence[BatchElement]) -> list[bytes]:
    """The stored records of elements that follow one another in one queue and in the log.

    Raises as `pack_record` does: `BadRequest`, and `struct.error` for a number that fits no record.
    """
    records: list[bytes] = []
    at = head.position
    for number, element in enumerate(elements):
        record = pack_record(
            topic=head.topic,
            queue_id=head.queue_id,
            queue_offset=head.queue_offset + number,
            position=at,
            flag=element.flag,
            sys_flag=head.sys_flag,
            born_ms=head.born_ms,
            born_host=head.born_host,
            store_ms=head.store_ms,
            store_host=head.store_host,
            reconsume_times=head.reconsume_times,
            prepared_offset=head.prepared_offset,
            body=element.body,
            properties=element.properties,
        )
        records.append(record)
        at += len(record)
    return records


def encode_batch(elements: Iterable[BatchElement]) -> bytes:
    """A batch body. Raises `BadRequest` when an element's properties are too long."""
    parts: list[bytes] = []
    for element in elements:
        props_len = len(element.properties)
        if props_len > _MAX_PROPERTIES:
            raise BadRequest(f"properties of {props_len} bytes; a message holds {_MAX_PROPERTIES}")
        size = ELEMENT_OVERHEAD + len(element.body) + props_len
        parts += (
            _PACK.pack(size, 0, 0, element.flag, len(element.body)),
            element.body,
            _U16.pack(props_len),
            element.properties,
        )
    return b"".join(parts)
