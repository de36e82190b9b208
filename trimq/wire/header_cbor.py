"""The CBOR header (serialize type 2): ours, between peers that announced it in HELLO.

A canonical CBOR array of seven: `[code, opaque, flag, version, language, remark, ext]`, ext a map of text to text.
Only the canonical form is accepted (a decoded header is encoded again and compared), so trailing bytes, duplicate keys,
tags and indefinite lengths are refused, and equal headers are equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import cbor2

from trimq.errors import ProtocolError
from trimq.wire.header_json import HeaderParts

__all__ = ["decode_header", "encode_header"]

_FIELDS: Final = 7
_I32_MIN: Final = -(2**31)
_I32_MAX: Final = 2**31 - 1


def decode_header(header: bytes) -> HeaderParts:
    """Take a CBOR header apart. Raises `ProtocolError` for anything but the one canonical form."""
    try:
        value = cbor2.loads(header)
        canonical = cbor2.dumps(value, canonical=True) == header
    except Exception as error:
        # Everything: the decoder also builds dates, decimals and patterns from tags and lets their errors through.
        raise ProtocolError(f"CBOR header: {error}") from None
    if type(value) is not list or len(value) != _FIELDS or not canonical:
        raise ProtocolError(f"CBOR header: not a canonical array of {_FIELDS}")
    numbers, remark, ext = value[:5], value[5], value[6]
    if not all(type(n) is int and _I32_MIN <= n <= _I32_MAX for n in numbers):
        raise ProtocolError(f"CBOR header: not five 32-bit numbers: {numbers!r:.100}")
    if type(remark) is not str or type(ext) is not dict:
        raise ProtocolError("CBOR header: remark or ext has the wrong type")
    if not all(type(k) is str and type(v) is str for k, v in ext.items()):
        raise ProtocolError("CBOR header: ext is not a map of text to text")
    code, opaque, flag, version, language = numbers
    return code, opaque, flag, version, language, remark, ext


def encode_header(
    code: int, opaque: int, flag: int, version: int, language: int, remark: str, ext: Mapping[str, str]
) -> bytes:
    """Write a CBOR header in canonical form."""
    return cbor2.dumps([code, opaque, flag, version, language, remark, dict(ext)], canonical=True)
