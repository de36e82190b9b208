"""The ROCKETMQ header (serialize type 1): fixed fields, a remark, then length-prefixed pairs.

| size | field | | size | field |
|---|---|---|---|---|
| 2 | code, signed | | 4 + n | remark |
| 1 | language | | 4 | length of all pairs together |
| 2 | version | | | per pair: 2 + n key, 4 + n value |
| 4 + 4 | opaque, flag | | | |

There is no pair count. A pair with an empty value equals a missing pair (Java reads it back as null), and the last of
two equal keys wins. The code has 16 bits: `fits` says whether a header can be written in this form at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct, pack
from typing import Final

from trimq.errors import BadRequest, ProtocolError
from trimq.wire.codes import language_of
from trimq.wire.header_json import HeaderParts

__all__ = [
    "FIXED",
    "FIXED_BYTES",
    "decode_header",
    "decode_pairs",
    "encode_header",
    "encode_pairs",
    "fits",
    "locate_pairs",
]

FIXED: Final = Struct(">hBhiii")
"""code, language, version, opaque, flag, remark length."""
FIXED_BYTES: Final = FIXED.size
_MIN_BYTES: Final = FIXED_BYTES + 4
_LENGTH: Final = Struct(">i")


def decode_header(header: bytes) -> HeaderParts:
    """Take a binary header apart. Raises `ProtocolError` for lengths that do not add up or text that is not UTF-8."""
    start = locate_pairs(header)
    code, language, version, opaque, flag, _ = FIXED.unpack_from(header)
    try:
        remark = header[FIXED_BYTES : start - 4].decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"binary header: remark is not UTF-8: {error}") from None
    return code, opaque, flag, version, language_of(language), remark, decode_pairs(header, start)


def locate_pairs(header: bytes) -> int:
    """The offset at which the pairs begin; they run to the end of the header. Checks all lengths before that."""
    size = len(header)
    if size < _MIN_BYTES:
        raise ProtocolError(f"binary header of {size} bytes is shorter than {_MIN_BYTES}")
    remark_bytes: int = _LENGTH.unpack_from(header, FIXED_BYTES - 4)[0]
    start = FIXED_BYTES + remark_bytes + 4
    if remark_bytes < 0 or start > size:
        raise ProtocolError(f"binary header: remark of {remark_bytes} bytes in a header of {size}")
    ext_bytes: int = _LENGTH.unpack_from(header, start - 4)[0]
    if ext_bytes != size - start:
        raise ProtocolError(f"binary header: {ext_bytes} bytes of pairs announced, {size - start} present")
    return start


def decode_pairs(data: bytes, at: int = 0, end: int | None = None) -> dict[str, str]:
    """The pairs in `data[at:end]`, which must be used up exactly. Empty values are left out."""
    ext: dict[str, str] = {}
    if end is None:
        end = len(data)
    from_bytes = int.from_bytes
    try:
        while at < end:
            key_end = at + 2 + ((data[at] << 8) | data[at + 1])
            value_at = key_end + 4
            value_end = value_at + from_bytes(data[key_end:value_at], "big")
            if value_end > end:
                raise ProtocolError(f"binary header: pair at byte {at} runs over the end")
            if value_end > value_at:
                ext[data[at + 2 : key_end].decode()] = data[value_at:value_end].decode()
            at = value_end
    except UnicodeDecodeError as error:
        raise ProtocolError(f"binary header: pair at byte {at} is not UTF-8: {error}") from None
    except IndexError:
        raise ProtocolError(f"binary header: pair at byte {at} is cut short") from None
    return ext


def fits(code: int) -> bool:
    """Whether a code has room in this form; POP's request codes have not and are sent as JSON."""
    return -0x8000 <= code <= 0x7FFF


def encode_header(
    code: int, opaque: int, flag: int, version: int, language: int, remark: str, ext: Mapping[str, str]
) -> bytes:
    """Write a binary header. Raises `BadRequest` for a key longer than 32,767 bytes."""
    said = remark.encode("utf-8", "replace")
    pairs = encode_pairs(ext)
    return b"".join(
        (FIXED.pack(code, language, version, opaque, flag, len(said)), said, _LENGTH.pack(len(pairs)), pairs)
    )


def encode_pairs(ext: Mapping[str, str]) -> bytes:
    """The pairs of a header; empty values are left out, since they would read back as missing anyway."""
    parts: list[bytes] = []
    for key, value in ext.items():
        if not value:
            continue
        k = key.encode("utf-8", "replace")
        v = value.encode("utf-8", "replace")
        if len(k) > 0x7FFF:
            raise BadRequest(f"ext key of {len(k)} bytes; the binary header allows 32767")
        parts += (pack(">H", len(k)), k, pack(">i", len(v)), v)
    return b"".join(parts)
