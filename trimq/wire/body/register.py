"""What a broker tells a name server about its topics: the body of REGISTER_BROKER (103), plain or compressed.

The compressed form is a zlib stream of length-prefixed pieces: the data version as JSON, a count and one line of text
per topic (`name readQueues writeQueues perm filterType`, from 5.x on also the attributes as JSON), the filter server
list as JSON, and from 5.0.0 on a count of queue mappings, which we do not use. The checksum covers the bytes as sent.
"""

# ruff: noqa: RUF012  (msgspec gives each value a default list or dict of its own)
from __future__ import annotations

import zlib
from struct import Struct as Layout
from typing import Final, Self

import msgspec

from trimq.errors import ProtocolError
from trimq.wire.body.base import Body, decode_body, encode_body
from trimq.wire.body.route import DataVersion
from trimq.wire.body.topic_config import TopicConfig, TopicConfigTable
from trimq.wire.header_json import DECODE_ERRORS

__all__ = ["MAX_EXPANDED_BYTES", "RegisterBrokerBody", "body_crc32"]

MAX_EXPANDED_BYTES: Final = 64 * 1024 * 1024
"""More than half a million topics."""

_V5: Final = 413
_WORD: Final = Layout(">i")
_I32_MAX: Final = 2**31 - 1


def body_crc32(data: bytes) -> int:
    """The `bodyCrc32` of a registration: CRC32 without its sign bit. 0 in a header means "not checked"."""
    return zlib.crc32(data) & 0x7FFFFFFF


class RegisterBrokerBody(Body, frozen=True, kw_only=True):
    filterServerList: list[str] = []
    topicConfigSerializeWrapper: TopicConfigTable = msgspec.field(default_factory=TopicConfigTable)

    @classmethod
    def read(cls, data: bytes, *, compressed: bool, crc32: int = 0) -> Self:
        """Read either form. Raises `ProtocolError` when the checksum (unless 0) or anything inside does not fit."""
        if crc32 and body_crc32(data) != crc32:
            raise ProtocolError("crc32 not match")
        if not compressed:
            return cls.from_json(data) if data.strip() else cls()
        pieces = _Pieces(_expand(data))
        version = decode_body(pieces.take(), DataVersion)
        topics: dict[str, TopicConfig] = {}
        for _ in range(pieces.number()):
            topic = _read_topic(pieces.take())
            topics[topic.topicName] = topic
        filters = decode_body(pieces.take(), list[str])
        return cls(
            filterServerList=filters,
            topicConfigSerializeWrapper=TopicConfigTable(dataVersion=version, topicConfigTable=topics),
        )

    def compress(self, version: int) -> bytes:
        """The compressed form, for a receiver that takes `version` as ours."""
        table = self.topicConfigSerializeWrapper
        parts = [_piece(table.dataVersion.to_json()), _WORD.pack(len(table.topicConfigTable))]
        for topic in table.topicConfigTable.values():
            parts.append(_piece(_write_topic(topic, with_attributes=version >= _V5)))
        parts.append(_piece(encode_body(self.filterServerList)))
        if version >= _V5:
            parts.append(_WORD.pack(0))
        return zlib.compress(b"".join(parts), zlib.Z_BEST_COMPRESSION)


class _Pieces:
    """Takes length-prefixed pieces off a buffer."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self) -> int:
        if len(self._data) - self._at < 4:
            raise ProtocolError(f"registration: cut short at byte {self._at}")
        value: int = _WORD.unpack_from(self._data, self._at)[0]
        if value < 0:
            raise ProtocolError(f"registration: length {value} at byte {self._at}")
        self._at += 4
        return value

    def take(self) -> bytes:
        size = self.number()
        if size > len(self._data) - self._at:
            raise ProtocolError(f"registration: a piece of {size} bytes at {self._at} runs over the end")
        self._at += size
        return self._data[self._at - size : self._at]


def _expand(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        expanded = inflater.decompress(data, MAX_EXPANDED_BYTES)
    except zlib.error as error:
        raise ProtocolError(f"registration: {error}") from None
    if not inflater.eof:
        raise ProtocolError(f"registration: cut short, or more than {MAX_EXPANDED_BYTES} bytes")
    return expanded


def _piece(data: bytes) -> bytes:
    return _WORD.pack(len(data)) + data


def _write_topic(topic: TopicConfig, *, with_attributes: bool) -> bytes:
    line = (
        f"{topic.topicName} {topic.readQueueNums} {topic.writeQueueNums} {topic.perm} {topic.topicFilterType}".encode()
    )
    if with_attributes and topic.attributes:
        line += b" " + encode_body(topic.attributes)
    return line


def _read_topic(line: bytes) -> TopicConfig:
    try:
        fields = line.decode().split(" ", 5)
        name, reads, writes, perm, kind = fields[:5]
        numbers = [int(reads), int(writes), int(perm)]
        attributes = msgspec.json.decode(fields[5].encode(), type=dict[str, str]) if fields[5:] and fields[5] else {}
    except DECODE_ERRORS as error:
        raise ProtocolError(f"registration: topic line {line[:80]!r}: {error}") from None
    if not all(0 <= n <= _I32_MAX for n in numbers):
        raise ProtocolError(f"registration: topic line {line[:80]!r}: number out of range")
    return TopicConfig(
        topicName=name,
        readQueueNums=numbers[0],
        writeQueueNums=numbers[1],
        perm=numbers[2],
        topicFilterType=kind,
        attributes=attributes,
    )
