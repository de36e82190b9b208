"""One request or response (Java: RemotingCommand), and the way to and from a frame.

`decode` and `encode` know the three header forms; nothing above them does. Every byte string either decodes or raises
`ProtocolError`. Which form to answer in is decided per frame: the form of the request, since a JSON-only client must
never see a binary header.

Sends and pulls are the bulk of all frames and have a path of their own that skips the dictionary of ext fields:
`trimq.wire.hot`. For everything else a `Command` is quick enough (about 2 µs either way).
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct as Layout
from typing import Final

import msgspec

from trimq.errors import BadRequest, ProtocolError
from trimq.wire import header_binary, header_cbor, header_json
from trimq.wire.codes import VERSION, LanguageCode, SerializeType
from trimq.wire.frame import MAX_FRAME_BYTES

__all__ = [
    "FLAG_ONEWAY",
    "FLAG_RESPONSE",
    "MAX_HEADER_BYTES",
    "MAX_RESPONSE_HEADER_BYTES",
    "Command",
    "decode",
    "encode",
    "encode_response",
    "encode_response_head",
    "response_to",
    "split_frame",
    "with_ext",
]

FLAG_RESPONSE: Final = 1
FLAG_ONEWAY: Final = 2

MAX_HEADER_BYTES: Final = 64 * 1024
"""The largest header a server accepts."""
MAX_RESPONSE_HEADER_BYTES: Final = 4 * 1024 * 1024
"""The largest header a client accepts: Apache's brokers list one id per message of a batch in it."""

_WORDS: Final = Layout(">II")
_PYTHON: Final = int(LanguageCode.PYTHON)
_JSON: Final = SerializeType.JSON
_TYPES: Final = tuple(SerializeType)


class Command(msgspec.Struct, gc=False, kw_only=True):
    """A remoting command. As decoded, all ext values are text and the body is a copy of its own."""

    code: int
    """Request code, or response code when `is_response`."""
    opaque: int = 0
    """Correlation id: a response repeats the request's. Each side of a connection counts for itself."""
    flag: int = 0
    remark: str = ""
    language: int = _PYTHON
    version: int = VERSION
    ext: dict[str, str] = {}
    body: bytes = b""
    serialize: SerializeType = _JSON

    @property
    def is_response(self) -> bool:
        return self.flag & FLAG_RESPONSE != 0

    @property
    def is_oneway(self) -> bool:
        """The sender waits for nothing: never answer."""
        return self.flag & FLAG_ONEWAY != 0


def split_frame(frame: bytes, max_header: int = MAX_HEADER_BYTES) -> tuple[int, int]:
    """Serialize type and the offset at which the body begins (the header begins at 4), both checked."""
    if len(frame) < 4:
        raise ProtocolError(f"frame of {len(frame)} bytes has no header length")
    kind = frame[0]
    header_end = 4 + ((frame[1] << 16) | (frame[2] << 8) | frame[3])
    if header_end > len(frame):
        raise ProtocolError(f"header of {header_end - 4} bytes in a frame of {len(frame)}")
    if header_end - 4 > max_header:
        raise ProtocolError(f"header of {header_end - 4} bytes is over the limit of {max_header}")
    return kind, header_end


def decode(frame: bytes | memoryview, *, max_header: int = MAX_HEADER_BYTES) -> Command:
    """Take a frame (without its length word) apart. Raises `ProtocolError`, and nothing else, for any bad bytes."""
    data = frame if type(frame) is bytes else bytes(frame)
    kind, body_at = split_frame(data, max_header)
    header = data[4:body_at]
    if kind == 0:
        parts = header_json.decode_header(header)
    elif kind == 1:
        parts = header_binary.decode_header(header)
    elif kind == 2:
        parts = header_cbor.decode_header(header)
    else:
        raise ProtocolError(f"unknown serialize type {kind}")
    code, opaque, flag, version, language, remark, ext = parts
    return Command(
        code=code,
        opaque=opaque,
        flag=flag,
        remark=remark,
        language=language,
        version=version,
        ext=ext,
        body=data[body_at:],
        serialize=_TYPES[kind],
    )


def encode(cmd: Command) -> bytes:
    """The whole frame, length word included. Raises `BadRequest` when it would be over 16 MiB."""
    header, kind = _header(
        cmd.serialize, cmd.code, cmd.opaque, cmd.flag, cmd.version, cmd.language, cmd.remark, cmd.ext
    )
    body = cmd.body
    return b"".join((_words(kind, len(header), len(body)), header, body))


def _header(
    serialize: int, code: int, opaque: int, flag: int, version: int, language: int, remark: str, ext: dict[str, str]
) -> tuple[bytes, int]:
    if serialize == 1 and header_binary.fits(code):
        return header_binary.encode_header(code, opaque, flag, version, language, remark, ext), 1
    if serialize == 2:
        return header_cbor.encode_header(code, opaque, flag, version, language, remark, ext), 2
    return header_json.encode_header(code, opaque, flag, version, language, remark, ext), 0


def _words(kind: int, header_bytes: int, body_bytes: int) -> bytes:
    length = 4 + header_bytes + body_bytes
    if length > MAX_FRAME_BYTES - 4 or header_bytes > 0xFFFFFF:
        raise BadRequest(f"a frame of {length + 4} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _WORDS.pack(length, (kind << 24) | header_bytes)


def response_to(
    req: Command, code: int, *, ext: Mapping[str, str] | None = None, remark: str = "", body: bytes = b""
) -> bytes:
    """The frame that answers a request: same opaque, same header form."""
    return encode_response(req.opaque, req.serialize, code, ext or {}, remark, body)


def encode_response(
    opaque: int,
    serialize: int,
    code: int,
    ext: Mapping[str, str],
    remark: str = "",
    body: bytes = b"",
) -> bytes:
    """A response frame of ours, length word included."""
    head = encode_response_head(opaque, serialize, code, ext, remark, len(body))
    return head + body if body else head


# What stands around the varying fields of a response in JSON form; flag 1 = response.
_RESPONSE_TAIL: Final = b',"serializeTypeCurrentRPC":"JSON","version":%d}' % VERSION
_RESPONSE: Final = b'{"code":%d,"extFields":%b,"flag":1,"language":"PYTHON","opaque":%d%b' + _RESPONSE_TAIL
_ext_json: Final = msgspec.json.Encoder().encode


def encode_response_head(
    opaque: int, serialize: int, code: int, ext: Mapping[str, str], remark: str, body_bytes: int
) -> bytes:
    """Everything of a response frame before its body: for bodies that come in parts and are joined only once."""
    if serialize == 0:
        try:
            fields = _ext_json(ext) if ext else b"{}"
            said = b',"remark":' + _ext_json(remark) if remark else b""
        except UnicodeEncodeError:
            header, kind = _header(0, code, opaque, FLAG_RESPONSE, VERSION, _PYTHON, remark, dict(ext))
        else:
            header, kind = _RESPONSE % (code, fields, opaque, said), 0
    else:
        header, kind = _header(serialize, code, opaque, FLAG_RESPONSE, VERSION, _PYTHON, remark, dict(ext))
    return _words(kind, len(header), body_bytes) + header


def with_ext(frame: bytes, extra: Mapping[str, str]) -> bytes:
    """The same request with more ext fields, as a whole frame: what a forwarding replica sends on."""
    cmd = decode(frame)
    cmd.ext.update(extra)
    return encode(cmd)
