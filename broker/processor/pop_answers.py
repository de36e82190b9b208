"""Answers to pops and to questions whether there is something: frames as RocketMQ's clients read them.

A message that comes again lies in the consumer group's retry topic, but is given under the topic that it was sent to:
its record is written anew, with a handle that says where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from broker.metadata.ops import queue_of
from broker.processor.pop_choosing import Part
from broker.service.pop_waits import PopWait
from trimq.env import Clock
from trimq.message import properties
from trimq.message.pop import (
    NORMAL,
    ORDER_REVIVE_QUEUE,
    POP_CK,
    Handle,
    format_counts,
    format_offsets,
    format_starts,
)
from trimq.message.record import Record, pack_record, unpack_record
from trimq.wire.codes import ResponseCode, SerializeType
from trimq.wire.command import encode_response, encode_response_head
from trimq.wire.headers.pop import NotificationResponse, PopResponse

__all__ = ["TYPES", "PopAnswers"]

TYPES = tuple(SerializeType)


class PopAnswers:
    """Makes the answers of one replica."""

    def __init__(self, broker: str, clock: Clock) -> None:
        self._broker = broker
        self._clock = clock

    def found(self, wait: PopWait, parts: Sequence[Part], rest: int, now: int) -> bytes:
        """The answer to a pop that found something, to be sent when what it takes is committed."""
        revive = ORDER_REVIVE_QUEUE if wait.ordered else 0
        ext = PopResponse(
            pop_time=now,
            invisible_time=wait.invisible_ms,
            revive_qid=revive,
            rest_num=rest,
            start_offset_info=format_starts((part.flag, queue_of(part.key), part.start) for part in parts),
            msg_offset_info=format_offsets((part.flag, queue_of(part.key), part.offsets) for part in parts),
            order_count_info=format_counts(_counts(wait, part) for part in parts) if wait.ordered else "",
        ).to_ext()
        body: list[bytes] = []
        for part in parts:
            if part.flag == NORMAL:
                body += part.records
            else:
                body += [self._restored(wait, part, raw, now) for raw in part.records]
        head = encode_response_head(
            wait.opaque, TYPES[wait.serialize], ResponseCode.SUCCESS, ext, "FOUND", sum(map(len, body))
        )
        return b"".join((head, *body))

    def _restored(self, wait: PopWait, part: Part, raw: bytes, now: int) -> bytes:
        """A record of the retry topic under its original topic; its handle goes with it, else nobody knew its place."""
        record: Record = unpack_record(raw)
        handle = Handle(
            part.start,
            now,
            wait.invisible_ms,
            0,
            part.flag,
            self._broker,
            record.queue_id,
            record.queue_offset,
        )
        marked = properties.append(
            properties.without(record.properties, POP_CK.encode()), POP_CK.encode(), str(handle).encode()
        )
        return pack_record(
            topic=wait.topic.encode(),
            queue_id=record.queue_id,
            queue_offset=record.queue_offset,
            position=record.position,
            flag=record.flag,
            sys_flag=record.sys_flag,
            born_ms=record.born_ms,
            born_host=record.born_host,
            store_ms=record.store_ms,
            store_host=record.store_host,
            reconsume_times=record.reconsume_times,
            prepared_offset=record.prepared_offset,
            body=record.body,
            properties=marked if len(marked) <= properties.MAX_BYTES else record.properties,
        )

    def empty(self, wait: PopWait, code: int, remark: str, ext: Mapping[str, str] | None = None) -> bytes:
        """An answer without messages. A question is told in the header, with SUCCESS, that there is nothing."""
        fields: dict[str, str] = dict(ext or {})
        if wait.asks_only:
            full = code == ResponseCode.POLLING_FULL
            if code in (ResponseCode.POLLING_FULL, ResponseCode.POLLING_TIMEOUT):
                fields.update(NotificationResponse(has_msg=False, polling_full=full).to_ext())
                code = ResponseCode.SUCCESS
        else:
            fields.update(PopResponse(invisible_time=wait.invisible_ms, pop_time=self._clock.wall_ms()).to_ext())
        return encode_response(wait.opaque, TYPES[wait.serialize], code, fields, remark)

    @staticmethod
    def something(wait: PopWait) -> bytes:
        """To a question: a pop would find something."""
        ext = NotificationResponse(has_msg=True).to_ext()
        return encode_response(wait.opaque, TYPES[wait.serialize], ResponseCode.SUCCESS, ext, "")


def _counts(wait: PopWait, part: Part) -> tuple[int, int, dict[int, int], int]:
    counts = part.batch.counted(part.offsets, wait.attempt) if part.batch is not None else {}
    least = min(counts.values()) if counts and len(counts) == len(part.offsets) else 0
    return part.flag, queue_of(part.key), counts, least
