"""The JSON header (serialize type 0): decoded by msgspec, leniently; encoded compactly, with string values only.

What real clients send decides how lenient: ext values arrive as strings, numbers, booleans or null; the language as a
name, an ordinal or a word nobody knows; a newline may follow. Hence two decoders: the first expects string values and
costs under a microsecond, the second takes anything and is used only when the first one refuses. Out goes what every
known reader accepts: keys in alphabetical order, no white space, each ext value a string, `extFields` always there.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from trimq.errors import ProtocolError
from trimq.wire.codes import language_name, language_of

__all__ = ["DECODE_ERRORS", "I32", "I64", "decode_header", "encode_header", "ext_text", "json_text"]

I32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
I64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

DECODE_ERRORS: Final = (ValueError, RecursionError)
"""What msgspec raises for bad bytes: its own errors and Unicode's are ValueErrors, deep nesting is a RecursionError."""

HeaderParts = tuple[int, int, int, int, int, str, dict[str, str]]
"""code, opaque, flag, version, language, remark, ext."""


class _Strict(Struct, gc=False):
    code: I32
    extFields: dict[str, str] | None = None
    opaque: I32 = 0
    flag: I32 = 0
    version: I32 = 0
    language: str | int | None = None
    remark: str | None = None


class _Lenient(Struct, gc=False):
    code: I32
    extFields: Any = None  # Any: the whole point is to take whatever came
    opaque: I32 = 0
    flag: I32 = 0
    version: I32 = 0
    language: Any = None
    remark: Any = None


_decode_strict = msgspec.json.Decoder(_Strict).decode
_decode_lenient = msgspec.json.Decoder(_Lenient, strict=False).decode
_json = msgspec.json.Encoder().encode


def decode_header(header: bytes | memoryview) -> HeaderParts:
    """Take a JSON header apart. Raises `ProtocolError` for anything that is not one."""
    try:
        h: _Strict | _Lenient = _decode_strict(header)
        ext: dict[str, str] | None = h.extFields
    except DECODE_ERRORS:
        h = _lenient(header)
        ext = ext_text(h.extFields)
    remark = h.remark
    if remark is None:
        remark = ""
    elif not isinstance(remark, str):
        remark = _value_text(remark)
    language = h.language if isinstance(h.language, str | int) else None
    return h.code, h.opaque, h.flag, h.version, language_of(language), remark, {} if ext is None else ext


def _lenient(header: bytes | memoryview) -> _Lenient:
    try:
        return _decode_lenient(header)
    except DECODE_ERRORS as error:
        raise ProtocolError(f"JSON header: {error}") from None


def ext_text(ext: object) -> dict[str, str]:
    """Ext fields of any JSON types as text: numbers in decimal, booleans `true`/`false`, null left out."""
    if ext is None:
        return {}
    if not isinstance(ext, dict):
        raise ProtocolError(f"JSON header: extFields is a {type(ext).__name__}, not an object")
    return {key: value if type(value) is str else _value_text(value) for key, value in ext.items() if value is not None}


def _value_text(value: object) -> str:
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return str(int(value))
    if isinstance(value, int | float):
        return repr(value)
    try:
        return msgspec.json.encode(value).decode()
    except DECODE_ERRORS as error:
        raise ProtocolError(f"JSON header: {error}") from None


def json_text(text: str) -> bytes:
    """One JSON string, quotes included. Half surrogates, which UTF-8 cannot carry, become `?`."""
    try:
        return _json(text)
    except UnicodeEncodeError:
        return _json(text.encode("utf-8", "replace").decode())


def _ext_json(ext: dict[str, str]) -> bytes:
    try:
        return _json(ext)
    except UnicodeEncodeError:
        return b"{" + b",".join(json_text(k) + b":" + json_text(v) for k, v in ext.items()) + b"}"


def encode_header(
    code: int, opaque: int, flag: int, version: int, language: int, remark: str, ext: dict[str, str]
) -> bytes:
    """Write a JSON header: compact, keys sorted, `remark` only when there is one."""
    return (
        b'{"code":%d,"extFields":%b,"flag":%d,"language":"%b","opaque":%d%b,"serializeTypeCurrentRPC":"JSON","version":%d}'
        % (
            code,
            _ext_json(ext) if ext else b"{}",
            flag,
            language_name(language).encode(),
            opaque,
            b',"remark":' + json_text(remark) if remark else b"",
            version,
        )
    )
