"""Typed requests without a detour: from the bytes of a frame to a typed header in one step.

A broker spends more on header decoding than on anything else it does per message, so sends, pulls and offset updates
do not go through a `Command` and its dictionary:

* JSON headers: msgspec decodes the header and its ext fields straight into the typed struct, taking text, numbers and
  booleans alike (about 1 µs for a send);
* binary headers: of the pairs of a send only the born time and the properties differ from one message to the next, so
  the run of pairs before and the run behind are looked up in a bounded cache (about 2 µs).

Whatever the short way does not take goes the long way, `decode` and `from_ext`, which gives the same answer or the
error with the name of the field. `peek_code` tells which decoder a frame wants.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr

from trimq.errors import ProtocolError
from trimq.wire import header_binary
from trimq.wire.codes import RequestCode, language_of
from trimq.wire.command import FLAG_ONEWAY, FLAG_RESPONSE, decode, split_frame
from trimq.wire.header_json import DECODE_ERRORS, I32
from trimq.wire.headers.atomic import AtomicHeader
from trimq.wire.headers.base import Header
from trimq.wire.headers.offset import QueryOffsetHeader, UpdateOffsetHeader
from trimq.wire.headers.pop import AckHeader, ChangeInvisibleHeader, NotificationHeader, PopHeader
from trimq.wire.headers.pull import PullHeader
from trimq.wire.headers.send import SendHeader, SendHeaderV2

__all__ = [
    "PULL_CODES",
    "SEND_CODES",
    "Request",
    "decode_ack",
    "decode_atomic_send",
    "decode_change_invisible",
    "decode_notification",
    "decode_pop",
    "decode_pull",
    "decode_query_offset",
    "decode_send",
    "decode_update_offset",
    "decoder_of",
    "peek_code",
    "peek_opaque",
]

H = TypeVar("H", bound=Header)
H_co = TypeVar("H_co", bound=Header, covariant=True)

SEND_CODES: Final = frozenset(
    {int(RequestCode.SEND_MESSAGE), int(RequestCode.SEND_MESSAGE_V2), int(RequestCode.SEND_BATCH_MESSAGE)}
)
PULL_CODES: Final = frozenset({int(RequestCode.PULL_MESSAGE), int(RequestCode.LITE_PULL_MESSAGE)})


class Request(Struct, Generic[H_co], gc=False, kw_only=True):
    """A request with its typed header. Built once per message on the hot path: treat as immutable."""

    code: I32
    header: H_co = msgspec.field(name="extFields")
    opaque: I32 = 0
    flag: I32 = 0
    version: I32 = 0
    language_text: str | int | None = msgspec.field(name="language", default=None)
    # Never read from JSON: filled in from the frame, whatever the header may say under these names.
    body: bytes = msgspec.field(name="~body", default=b"")
    serialize: int = msgspec.field(name="~serialize", default=0)

    @property
    def is_oneway(self) -> bool:
        return self.flag & FLAG_ONEWAY != 0

    @property
    def language(self) -> int:
        """A `LanguageCode` ordinal."""
        return language_of(self.language_text)


class _Peeked(Struct, gc=False):
    code: I32
    opaque: I32 = 0
    flag: I32 = 0


_peek_json = msgspec.json.Decoder(_Peeked, strict=False).decode


def peek_code(frame: bytes) -> int:
    """The code of a frame (without its length word), or -1 when its header is none.

    Only a hint of which decoder to use. Nothing else is checked, not even whether it is a request: the decoders do.
    Clients write the code first, so for the known codes below 1000 this is one look into a table.
    """
    code = _STARTS.get(frame[4:16])
    if code is not None and frame[0] == 0:
        return code
    if len(frame) >= 6 and frame[0] == 1:
        return int.from_bytes(frame[4:6], "big", signed=True)
    head = _peek(frame)
    return -1 if head is None else head[0]


_STARTS: Final = {(b'{"code":%d,"' % code)[:12]: int(code) for code in RequestCode if code < 1000}


def peek_opaque(frame: bytes) -> int | None:
    """The opaque of a frame, for an answer to a request that is refused unread; None when it cannot be found."""
    head = _peek(frame)
    return None if head is None else head[1]


def _peek(frame: bytes) -> tuple[int, int, int] | None:
    try:
        kind, body_at = split_frame(frame)
        if kind == 0:
            peeked = _peek_json(frame[4:body_at])
            return peeked.code, peeked.opaque, peeked.flag
        command = decode(frame)
    except (ProtocolError, *DECODE_ERRORS):
        return None
    return command.code, command.opaque, command.flag


def decoder_of(header: type[H], codes: frozenset[int] | None = None) -> Callable[[bytes], Request[H]]:
    """A decoder for requests with this header. It raises `ProtocolError`, naming the field, for anything else.

    With `codes`, a frame whose code is not among them is refused as well.
    """
    decode_json = _json_decoder(header)

    def decode_request(frame: bytes) -> Request[H]:
        kind, body_at = split_frame(frame)
        if kind == 0:
            try:
                request = decode_json(frame[4:body_at])
            except DECODE_ERRORS:
                request = _long_way(frame, header)
            else:
                request.body = frame[body_at:]
                request.serialize = 0
        else:
            request = _long_way(frame, header)
        if request.flag & FLAG_RESPONSE or (codes is not None and request.code not in codes):
            raise ProtocolError(f"{header.__name__}: code {request.code}, flag {request.flag} does not carry it")
        return request

    return decode_request


def _json_decoder(header: type[H]) -> Callable[[bytes], Request[H]]:
    # Any: a type that is put together at run time is beyond the checker.
    typed: Any = Request
    return cast("Callable[[bytes], Request[H]]", msgspec.json.Decoder(typed[header], strict=False).decode)


def _long_way(frame: bytes, header: type[H]) -> Request[H]:
    command = decode(frame)
    return Request(
        code=command.code,
        header=header.from_ext(command.ext),
        opaque=command.opaque,
        flag=command.flag,
        version=command.version,
        language_text=command.language,
        body=command.body,
        serialize=int(command.serialize),
    )


decode_pull: Final = decoder_of(PullHeader, PULL_CODES)
"""Codes 11 and 361."""
decode_update_offset: Final = decoder_of(UpdateOffsetHeader, frozenset({int(RequestCode.UPDATE_CONSUMER_OFFSET)}))
decode_pop: Final = decoder_of(PopHeader, frozenset({int(RequestCode.POP_MESSAGE)}))
decode_ack: Final = decoder_of(AckHeader, frozenset({int(RequestCode.ACK_MESSAGE)}))
decode_change_invisible: Final = decoder_of(
    ChangeInvisibleHeader, frozenset({int(RequestCode.CHANGE_MESSAGE_INVISIBLETIME)})
)
decode_notification: Final = decoder_of(NotificationHeader, frozenset({int(RequestCode.NOTIFICATION)}))
decode_query_offset: Final = decoder_of(QueryOffsetHeader, frozenset({int(RequestCode.QUERY_CONSUMER_OFFSET)}))

decode_atomic_send: Final = decoder_of(AtomicHeader, frozenset({int(RequestCode.SEND_ATOMIC)}))
"""Code 9021."""

_send_v1_json = _json_decoder(SendHeader)
_send_v2_json = _json_decoder(SendHeaderV2)
_V1_START: Final = b'{"code":10,'


def decode_send(frame: bytes) -> Request[SendHeader]:
    """Codes 10, 310 and 320, in either spelling of the header. Raises `ProtocolError` naming the field."""
    kind, body_at = split_frame(frame)
    if kind == 0:
        try:
            request = (_send_v1_json if frame.startswith(_V1_START, 4) else _send_v2_json)(frame[4:body_at])
        except DECODE_ERRORS:
            request = _long_way(frame, SendHeader)
        else:
            request.body = frame[body_at:]
            request.serialize = 0
    elif kind == 1:
        request = _send_binary(frame, body_at) or _send_binary_long(frame, body_at)
    else:
        request = _long_way(frame, SendHeader)
    if request.flag & FLAG_RESPONSE or request.code not in SEND_CODES:
        raise ProtocolError(f"SendHeader: code {request.code}, flag {request.flag} is no send")
    return request


# The binary form of a send, in the order in which Java writes it: a b c d e f | g h i | j k l m n and whatever follows.
_PAIRS_AT: Final = 4 + header_binary.FIXED_BYTES + 4
_BORN_MARK: Final = b"\0\x01g\0\0\0"
_FLAG_MARK: Final = b"\0\x01h\0\0\0"
_PROPERTIES_MARK: Final = b"\0\x01i\0\0"
_BEFORE: Final = frozenset("abcdef")
_VARYING: Final = frozenset("ghi")
_CACHE_MAX: Final = 4096
_CACHED_BYTES_MAX: Final = 1024


class _Known:
    """Headers by the bytes of the pairs before and behind the varying ones; forgets everything when it is full."""

    def __init__(self) -> None:
        self.size = 0
        self.headers: dict[bytes, dict[bytes, SendHeader]] = {}

    def put(self, before: bytes, behind: bytes, header: SendHeader) -> None:
        if self.size >= _CACHE_MAX:
            self.headers.clear()
            self.size = 0
        self.headers.setdefault(before, {})[behind] = header
        self.size += 1


_known = _Known()


def _send_binary(frame: bytes, body_at: int) -> Request[SendHeader] | None:
    """The short way: None when anything about the header is not as expected.

    A run of pairs that is known was parsed once from its first byte to its last, so what follows it is the next pair,
    whatever the run may contain.
    """
    born_at = frame.find(_BORN_MARK, _PAIRS_AT, body_at)
    by_tail = _known.headers.get(frame[_PAIRS_AT:born_at])
    if by_tail is None:
        return None
    try:
        flag_at = born_at + 7 + frame[born_at + 6]
        properties_at = flag_at + 7 + frame[flag_at + 6]
        tail_at = properties_at + 7 + ((frame[properties_at + 5] << 8) | frame[properties_at + 6])
    except IndexError:
        return None
    known = by_tail.get(frame[tail_at:body_at])
    born, flag = frame[born_at + 7 : flag_at], frame[flag_at + 7 : properties_at]
    code, language, version, opaque, flags, remark_bytes = header_binary.FIXED.unpack_from(frame, 4)
    if not (
        known is not None
        and tail_at <= body_at
        and frame.startswith(_FLAG_MARK, flag_at)
        and frame.startswith(_PROPERTIES_MARK, properties_at)
        and born.isdigit()
        and len(born) <= 18
        and flag.isdigit()
        and len(flag) <= 9
        and remark_bytes == 0
        and int.from_bytes(frame[21:25], "big") == body_at - _PAIRS_AT
    ):
        return None
    try:
        properties = frame[properties_at + 7 : tail_at].decode()
    except UnicodeDecodeError:
        return None
    header = copy(known)
    force_setattr(header, "born_timestamp", int(born))
    force_setattr(header, "flag", int(flag))
    force_setattr(header, "properties", properties)
    return Request(
        code=code,
        header=header,
        opaque=opaque,
        flag=flags,
        version=version,
        language_text=language,
        body=frame[body_at:],
        serialize=1,
    )


def _send_binary_long(frame: bytes, body_at: int) -> Request[SendHeader]:
    request = _long_way(frame, SendHeader)
    _remember(frame, body_at, request.header)
    return request


def _remember(frame: bytes, body_at: int, header: SendHeader) -> None:
    """Keep a header under the runs of pairs before and behind the varying ones, if it is laid out as expected."""
    start = header_binary.locate_pairs(frame[4:body_at]) + 4
    born_at = frame.find(_BORN_MARK, start, body_at)
    if start != _PAIRS_AT or born_at < 0 or born_at - start > _CACHED_BYTES_MAX:
        return
    try:
        before = header_binary.decode_pairs(frame, start, born_at)
        flag_at = born_at + 7 + frame[born_at + 6]
        properties_at = flag_at + 7 + frame[flag_at + 6]
        tail_at = properties_at + 7 + ((frame[properties_at + 5] << 8) | frame[properties_at + 6])
        varying = header_binary.decode_pairs(frame, born_at, tail_at)
        behind = header_binary.decode_pairs(frame, tail_at, body_at)
    except (ProtocolError, IndexError):
        return
    if before.keys() != _BEFORE or not varying.keys() <= _VARYING or body_at - tail_at > _CACHED_BYTES_MAX:
        return
    if behind.keys() & (_BEFORE | _VARYING) or not isinstance(header, SendHeaderV2):
        return
    _known.put(frame[start:born_at], frame[tail_at:body_at], header)
