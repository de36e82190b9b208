"""RocketMQ's remoting protocol for the thin client: the same bytes go to trimq and to Apache's brokers.

Sends are SEND_MESSAGE_V2 with a JSON header, as Java clients write them; batches and pulls likewise.
`unique` adds a UNIQ_KEY of its own to every message, as every real client does: trimq looks it up in its duplicate
window. The goals are measured without, since the peers' thin clients send no deduplication ids either.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from itertools import cycle
from struct import Struct

from bench.thin import Refused
from trimq.message.batch import BatchElement, encode_batch
from trimq.wire.codes import RequestCode, ResponseCode

__all__ = ["Pulls", "Sends"]

_FIRST = 1_000_000_000
"""Opaques have ten digits, so that a request is built by one join."""
_WORD = Struct(">I")
_WORDS = Struct(">II")
_OK = b'{"code":0,'
_IDLE = tuple(b'{"code":%d,' % code for code in (ResponseCode.PULL_NOT_FOUND, ResponseCode.PULL_RETRY_IMMEDIATELY))
_TAIL = b',"serializeTypeCurrentRPC":"JSON","version":453}'


class _Frames:
    """Cuts what is received into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def hello(self, link: socket.socket) -> None:
        """Nothing: the first request may come at once."""

    def cut(self, data: bytes) -> list[tuple[bytes, int, int]]:
        """(buffer, begin, end) of every whole frame, length word left out."""
        buffer = self._rest + data if self._rest else data
        at, size = 0, len(buffer)
        found = []
        while size - at >= 4:
            end = at + 4 + _WORD.unpack_from(buffer, at)[0]
            if end > size:
                break
            found.append((buffer, at + 4, end))
            at = end
        self._rest = buffer[at:]
        return found


class Sends(_Frames):
    """Sends of one body size to a run of queues in turn."""

    def __init__(
        self, queues: Sequence[tuple[str, int]], body_bytes: int, *, batch: int = 1, unique: bool = False
    ) -> None:
        super().__init__()
        self._batch = batch
        self._unique = unique
        self._next = _FIRST
        body = bytes(body_bytes)
        if batch > 1:
            body = encode_batch([BatchElement(body, b"WAIT\x01true\x02")] * batch)
        self._behind = _TAIL + body
        self._before = cycle([self._head(topic, queue, len(body)) for topic, queue in queues])

    def _head(self, topic: str, queue: int, body_bytes: int) -> bytes:
        """What stands before the opaque."""
        code = RequestCode.SEND_BATCH_MESSAGE if self._batch > 1 else RequestCode.SEND_MESSAGE_V2
        unique = rb"UNIQ_KEY\u00017F0000010A2B0000%010d\u0002" if self._unique and self._batch == 1 else b""
        header = (
            b'{"code":%d,"extFields":{"a":"bench","b":"%b","c":"TBW102","d":"4","e":"%d","f":"0","g":"1700000000000",'
            b'"h":"0","i":"%bWAIT\\u0001true\\u0002","j":"0","k":"false","m":"%b"},"flag":0,"language":"JAVA","opaque":'
        ) % (code, topic.encode(), queue, unique, b"true" if self._batch > 1 else b"false")
        size = len(header) + 10 + len(_TAIL) + (5 if unique else 0)  # the placeholder %010d has 5 characters, a key 10
        return _WORDS.pack(4 + size + body_bytes, size) + header

    def requests(self, count: int) -> bytes:
        opaque = self._next
        self._next += count
        heads, behind = self._before, self._behind
        made: list[bytes] = []
        for number in range(opaque, opaque + count):
            before = next(heads)
            made += (before.replace(b"%010d", b"%d" % number) if self._unique else before, b"%d" % number, behind)
        return b"".join(made)

    def settled(self, data: bytes) -> tuple[int, int]:
        frames = self.cut(data)
        for buffer, begin, end in frames:
            if not buffer.startswith(_OK, begin + 4):
                raise Refused(buffer[begin + 4 : min(end, begin + 400)].decode(errors="replace"))
        return len(frames), len(frames) * self._batch


class Pulls(_Frames):
    """Pulls of one queue from offset 0 on, a fixed number of messages each; starts over at the end."""

    def __init__(self, topic: str, queue: int, *, batch: int, messages: int) -> None:
        super().__init__()
        self._batch = batch
        self._end = messages // batch * batch
        self._offset = 0
        self._next = _FIRST
        self._before = (
            b'{"code":%d,"extFields":{"commitOffset":"0","consumerGroup":"bench-pull","expressionType":"TAG",'
            b'"maxMsgNums":"%d","queueId":"%d","queueOffset":"%%d","subVersion":"0","subscription":"*",'
            b'"suspendTimeoutMillis":"0","sysFlag":"4","topic":"%b"},"flag":0,"language":"JAVA","opaque":%%d'
        ) % (RequestCode.PULL_MESSAGE, batch, queue, topic.encode())

    def requests(self, count: int) -> bytes:
        made = []
        for _ in range(count):
            header = self._before % (self._offset, self._next) + _TAIL
            made.append(_WORDS.pack(4 + len(header), len(header)) + header)
            self._next += 1
            self._offset = (self._offset + self._batch) % self._end
        return b"".join(made)

    def settled(self, data: bytes) -> tuple[int, int]:
        frames = self.cut(data)
        messages = 0
        for buffer, begin, end in frames:
            at = begin + 4 + (_WORD.unpack_from(buffer, begin)[0] & 0xFFFFFF)
            if not buffer.startswith(_OK, begin + 4) and not buffer.startswith(_IDLE, begin + 4):
                raise Refused(buffer[begin + 4 : min(at, begin + 400)].decode(errors="replace"))
            while at < end:
                at += _WORD.unpack_from(buffer, at)[0]
                messages += 1
        return len(frames), messages
