"""One stored message, byte for byte as RocketMQ stores and delivers it.

The same bytes lie in the log, travel to the followers and reach the consumer: packed once by the leader, never again.
All integers are big-endian:

| at (IPv4) | size | field | | at | size | field |
|---|---|---|---|---|---|---|
| 0 | 4 | size of the record | | 56 | 8 | store time, ms |
| 4 | 4 | magic: V1 or V2 | | 64 | 8 or 20 | store host |
| 8 | 4 | CRC32 of the body & 0x7FFFFFFF | | 72 | 4 | reconsume times |
| 12 | 4 | queue id | | 76 | 8 | position of the half message, else 0 |
| 16 | 4 | the producer's flag | | 84 | 4 + n | body |
| 20 | 8 | offset in the queue | | | 1 + n | topic (V2: 2 + n) |
| 28 | 8 | position in the log | | | 2 + n | properties |
| 36 | 4 | sysFlag | | | | |
| 40 | 8 | born time, ms | | | | |
| 48 | 8 or 20 | born host: address, port as 4 bytes | | | | |

A host has 20 bytes when its bit in sysFlag says IPv6. V2 is written only for topics over 127 bytes, which only derived
names reach. Every function here checks sizes against each other before it believes one, and raises `RecordError`.
Hot: `pack_record` is one struct, one CRC and one join; `iter_records` reads just what dispatch needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct as Layout
from typing import Final
from zlib import crc32

import msgspec

from trimq.errors import BadRequest, RecordError
from trimq.message.sysflag import BORN_HOST_V6, HOST_MASK, STORE_HOST_V6

__all__ = [
    "MAGIC_V1",
    "MAGIC_V2",
    "MAX_TOPIC_V1",
    "MIN_RECORD_BYTES",
    "Buffer",
    "Record",
    "RecordHead",
    "body_crc",
    "iter_records",
    "pack_record",
    "properties_of",
    "record_size",
    "unpack_record",
    "unpack_records",
    "with_store_host",
]

Buffer = bytes | bytearray | memoryview

MAGIC_V1: Final = 0xDAA320A7
MAGIC_V2: Final = 0xDAA320AB
MAX_TOPIC_V1: Final = 127
MIN_RECORD_BYTES: Final = 91
"""IPv4 hosts, empty body, topic and properties."""
_FIXED_BYTES: Final = 88
"""Up to and including the body length, with IPv4 hosts."""
_STORE_HOST_AT: Final = 64
"""With an IPv4 birth host."""
_CRC_MASK: Final = 0x7FFFFFFF
_MAX_PROPERTIES: Final = 32767

_V4: Final = Layout(">IIIiiqqiq8sq8siqI")
_ANY_HOSTS: Final = {
    0: _V4,
    BORN_HOST_V6: Layout(">IIIiiqqiq20sq8siqI"),
    STORE_HOST_V6: Layout(">IIIiiqqiq8sq20siqI"),
    HOST_MASK: Layout(">IIIiiqqiq20sq20siqI"),
}
_HEAD: Final = Layout(">II4xi4xqqi8x8xq8xi8xI")
"""For dispatch: size, magic, queue id, queue offset, position, sysFlag, store time, reconsume times, body size."""
_U16: Final = Layout(">H")
_I32: Final = Layout(">i")
_BYTE: Final = tuple(bytes((n,)) for n in range(128))


class Record(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """All of a stored message; texts as bytes, the body as a view into the buffer that it was read from."""

    size: int
    body_crc: int
    queue_id: int
    flag: int
    queue_offset: int
    position: int
    sys_flag: int
    born_ms: int
    born_host: bytes
    store_ms: int
    store_host: bytes
    reconsume_times: int
    prepared_offset: int
    body: memoryview
    topic: bytes
    properties: bytes


class RecordHead(msgspec.Struct, gc=False):
    """What dispatch needs of a stored message, and where it lies in the walked buffer: `[at, at + size)`."""

    at: int
    size: int
    queue_id: int
    queue_offset: int
    position: int
    sys_flag: int
    store_ms: int
    reconsume_times: int
    topic: bytes
    properties: bytes


def body_crc(body: Buffer) -> int:
    """The checksum that a record carries for its body: CRC32 without the sign bit."""
    return crc32(body) & _CRC_MASK


def record_size(topic_len: int, body_len: int, props_len: int, sys_flag: int) -> int:
    """Bytes that a record will take. `sys_flag` must have its host bits right: `sysflag.with_hosts`."""
    size = _FIXED_BYTES + body_len + topic_len + props_len + (3 if topic_len <= MAX_TOPIC_V1 else 4)
    if sys_flag & HOST_MASK:
        size += (12 if sys_flag & BORN_HOST_V6 else 0) + (12 if sys_flag & STORE_HOST_V6 else 0)
    return size


def pack_record(
    *,
    topic: bytes,
    queue_id: int,
    queue_offset: int,
    position: int,
    flag: int,
    sys_flag: int,
    born_ms: int,
    born_host: bytes,
    store_ms: int,
    store_host: bytes,
    reconsume_times: int,
    prepared_offset: int,
    body: Buffer,
    properties: bytes,
) -> bytes:
    """Build a record. The host bits of `sys_flag` are set from the hosts given (8 or 20 bytes), whatever it says.

    Raises `BadRequest` for properties over 32,767 bytes and hosts of another size; check client input before.
    """
    topic_len = len(topic)
    props_len = len(properties)
    hosts = 0
    layout = _V4
    if len(born_host) != 8 or len(store_host) != 8:
        hosts, layout = _hosts(born_host, store_host)
    size = layout.size + len(body) + topic_len + props_len + 3
    if topic_len <= MAX_TOPIC_V1:
        magic = MAGIC_V1
        topic_word = _BYTE[topic_len]
    else:
        size += 1
        magic = MAGIC_V2
        topic_word = _U16.pack(topic_len)
    if props_len > _MAX_PROPERTIES:
        raise BadRequest(f"properties of {props_len} bytes; a record holds {_MAX_PROPERTIES}")
    return b"".join(
        (
            layout.pack(
                size,
                magic,
                crc32(body) & _CRC_MASK,
                queue_id,
                flag,
                queue_offset,
                position,
                sys_flag & ~HOST_MASK | hosts,
                born_ms,
                born_host,
                store_ms,
                store_host,
                reconsume_times,
                prepared_offset,
                len(body),
            ),
            body,
            topic_word,
            topic,
            _U16.pack(props_len),
            properties,
        )
    )


def _hosts(born_host: bytes, store_host: bytes) -> tuple[int, Layout]:
    if len(born_host) not in (8, 20) or len(store_host) not in (8, 20):
        raise BadRequest(f"hosts of {len(born_host)} and {len(store_host)} bytes; 8 or 20 wanted")
    bits = (BORN_HOST_V6 if len(born_host) == 20 else 0) | (STORE_HOST_V6 if len(store_host) == 20 else 0)
    return bits, _ANY_HOSTS[bits]


def unpack_record(buf: Buffer, at: int = 0, *, check_body: bool = True) -> Record:
    """Read the record that begins at `at`. Raises `RecordError` when it is damaged, cut short or fails its checksum."""
    left = len(buf) - at
    if left < MIN_RECORD_BYTES:
        raise RecordError(f"{left} bytes at {at} are too few for a record")
    (sys_flag,) = _I32.unpack_from(buf, at + 36)
    layout = _ANY_HOSTS[sys_flag & HOST_MASK]
    if left < layout.size:
        raise RecordError(f"{left} bytes at {at} are too few for a record with IPv6 hosts")
    (
        size,
        magic,
        crc,
        queue_id,
        flag,
        queue_offset,
        position,
        _,
        born_ms,
        born_host,
        store_ms,
        store_host,
        reconsume_times,
        prepared_offset,
        body_len,
    ) = layout.unpack_from(buf, at)
    if size > left:
        raise RecordError(f"record of {size} bytes at {at}, but only {left} are there")
    body_at = at + layout.size
    topic_at, props_at = _tail(buf, at, size, magic, body_at + body_len)
    view = memoryview(buf)
    body = view[body_at : body_at + body_len]
    if check_body and crc32(body) & _CRC_MASK != crc:
        raise RecordError(f"record at {at} (position {position}): the body does not match its checksum")
    return Record(
        size=size,
        body_crc=crc,
        queue_id=queue_id,
        flag=flag,
        queue_offset=queue_offset,
        position=position,
        sys_flag=sys_flag,
        born_ms=born_ms,
        born_host=born_host,
        store_ms=store_ms,
        store_host=store_host,
        reconsume_times=reconsume_times,
        prepared_offset=prepared_offset,
        body=body,
        topic=bytes(view[topic_at : props_at - 2]),
        properties=bytes(view[props_at : at + size]),
    )


def _tail(buf: Buffer, at: int, size: int, magic: int, topic_word_at: int) -> tuple[int, int]:
    """Where topic and properties begin, once magic and all lengths have been found to agree with the size."""
    end = at + size
    if magic == MAGIC_V1:
        topic_at = topic_word_at + 1
    elif magic == MAGIC_V2:
        topic_at = topic_word_at + 2
    else:
        raise RecordError(f"magic 0x{magic:08x} at {at} is not a record's")
    if topic_at + 2 > end:
        raise RecordError(f"record at {at}: its body runs over its {size} bytes")
    topic_len = buf[topic_word_at] if magic == MAGIC_V1 else (buf[topic_word_at] << 8) | buf[topic_word_at + 1]
    props_at = topic_at + topic_len + 2
    if props_at > end:
        raise RecordError(f"record at {at}: its topic runs over its {size} bytes")
    props_len = (buf[props_at - 2] << 8) | buf[props_at - 1]
    if props_at + props_len != end:
        raise RecordError(f"record at {at}: lengths add up to {props_at + props_len - at}, not to its {size} bytes")
    return topic_at, props_at


def properties_of(buf: Buffer, at: int = 0) -> bytes:
    """The property string of the record that begins at `at`, and nothing else of it. Raises `RecordError`."""
    if len(buf) - at < MIN_RECORD_BYTES:
        raise RecordError(f"{len(buf) - at} bytes at {at} are too few for a record")
    size, magic, *_, sys_flag, _store_ms, _reconsume, body_len = _HEAD.unpack_from(buf, at)
    topic_word_at = at + _FIXED_BYTES + body_len
    if sys_flag & HOST_MASK:
        body_len_at = _ANY_HOSTS[sys_flag & HOST_MASK].size - 4
        if len(buf) - at < body_len_at + 4:
            raise RecordError(f"{len(buf) - at} bytes at {at} are too few for a record with IPv6 hosts")
        topic_word_at = at + body_len_at + 4 + int.from_bytes(buf[at + body_len_at : at + body_len_at + 4], "big")
    if size > len(buf) - at or topic_word_at + 2 > len(buf):
        raise RecordError(f"record of {size} bytes at {at}, but only {len(buf) - at} are there")
    _, props_at = _tail(buf, at, size, magic, topic_word_at)
    return bytes(buf[props_at : at + size])


def with_store_host(raw: bytes, host: bytes) -> bytes:
    """A stored record with another store host, 8 or 20 bytes; as it is when its own has another size."""
    sys_flag = _HEAD.unpack_from(raw)[5]
    host_at = _STORE_HOST_AT + (12 if sys_flag & BORN_HOST_V6 else 0)
    if len(host) != (20 if sys_flag & STORE_HOST_V6 else 8):
        return raw
    return raw[:host_at] + host + raw[host_at + len(host) :]


def unpack_records(buf: Buffer, *, check_body: bool = True) -> list[Record]:
    """All records of a pull answer, back to back."""
    records: list[Record] = []
    at = 0
    while at < len(buf):
        record = unpack_record(buf, at, check_body=check_body)
        records.append(record)
        at += record.size
    return records


def iter_records(buf: Buffer) -> Iterator[RecordHead]:
    """Walk records that lie back to back, for dispatch: layout checked, bodies neither read nor checked.

    Raises `RecordError` at the first one that does not add up; those before it have been handed out.
    """
    data = buf if type(buf) is bytes else memoryview(buf)
    head = _HEAD.unpack_from
    total = len(buf)
    at = 0
    while at < total:
        if total - at < MIN_RECORD_BYTES:
            raise RecordError(f"{total - at} bytes at {at} are too few for a record")
        size, magic, queue_id, queue_offset, position, sys_flag, store_ms, reconsume, body_len = head(data, at)
        topic_at = at + 89 + body_len
        end = at + size
        if magic != MAGIC_V1 or sys_flag & 0x30:
            yield _unusual_head(data, at)
            at = end
            continue
        if end > total or topic_at + 2 > end:
            raise RecordError(f"record of {size} bytes at {at} with a body of {body_len}: {total - at} bytes are there")
        props_at = topic_at + data[topic_at - 1] + 2
        if props_at > end or props_at + ((data[props_at - 2] << 8) | data[props_at - 1]) != end:
            raise RecordError(f"record at {at}: its lengths do not add up to its {size} bytes")
        yield RecordHead(
            at,
            size,
            queue_id,
            queue_offset,
            position,
            sys_flag,
            store_ms,
            reconsume,
            bytes(data[topic_at : props_at - 2]),
            bytes(data[props_at:end]),
        )
        at = end


def _unusual_head(data: bytes | memoryview, at: int) -> RecordHead:
    record = unpack_record(data, at, check_body=False)
    return RecordHead(
        at,
        record.size,
        record.queue_id,
        record.queue_offset,
        record.position,
        record.sys_flag,
        record.store_ms,
        record.reconsume_times,
        record.topic,
        record.properties,
    )
