"""From the bytes of a pull answer to `Received` messages.

A broker filters tags by hash only, so the exact comparison is here. A message that came back through the retry topic
shows its original topic again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from trimq.client.model import Filter, Queue, Tag
from trimq.client.received import Home, Received
from trimq.errors import BadRequest, RecordError
from trimq.message.compression import decompress
from trimq.message.ids import offset_message_id
from trimq.message.properties import RESERVED, parse
from trimq.message.record import Record, unpack_records
from trimq.message.sysflag import COMPRESSED

__all__ = ["decode_records"]

log = logging.getLogger(__name__)


def decode_records(body: bytes, queue: Queue, wanted: Filter, home: Home) -> list[Received]:
    """The messages in a pull answer that the filter wants, in order. Raises `RecordError` when it is damaged."""
    tags = wanted.names if isinstance(wanted, Tag) else frozenset()
    return list(_matching(unpack_records(body), queue, tags, home))


def _matching(records: Iterable[Record], queue: Queue, tags: frozenset[str], home: Home) -> Iterable[Received]:
    for record in records:
        properties = parse(record.properties)
        tag = properties.get("TAGS")
        if tags and tag not in tags:
            continue
        position = record.position
        keys = properties.get("KEYS")
        offset_id = offset_message_id(record.store_host, position)
        yield Received(
            topic=properties.get("RETRY_TOPIC") or queue.topic or record.topic.decode(errors="replace"),
            body=_body(record, queue),
            tag=tag,
            keys=tuple(keys.split()) if keys else (),
            order_key=properties.get("__SHARDINGKEY"),
            properties=_own(properties),
            id=properties.get("UNIQ_KEY") or offset_id,
            flag=record.flag,
            queue=queue,
            offset=record.queue_offset,
            attempt=record.reconsume_times + 1,
            position=position,
            born_ms=record.born_ms,
            stored_ms=record.store_ms,
            born_host_bytes=record.born_host,
            offset_id=offset_id,
            all_properties=properties,
            _home=home,
        )


def _own(properties: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in properties.items() if name not in RESERVED}


def _body(record: Record, queue: Queue) -> bytes:
    if not record.sys_flag & COMPRESSED:
        return bytes(record.body)
    try:
        return decompress(record.body, record.sys_flag)
    except (RecordError, BadRequest) as error:
        # Dropping it would lose a message silently; refusing it would stop the queue for good.
        log.error(
            "compressed body cannot be expanded, delivered as it is",
            extra={"queue": str(queue), "offset": record.queue_offset, "error": error},
        )
        return bytes(record.body)
