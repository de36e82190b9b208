"""Compressed message bodies: zlib, lz4 frames, zstd, as the sysFlag says.

Brokers never look inside; producers compress and consumers expand. A compressed body is a promise about memory that
nobody has checked, so every expansion has a cap and stops there. lz4 and zstd come with `pip install
trimq[compression]`; zlib always works, and old clients read nothing else.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

from trimq.errors import BadRequest, RecordError
from trimq.message.sysflag import (
    COMPRESSED,
    COMPRESSION_LZ4,
    COMPRESSION_MASK,
    COMPRESSION_ZLIB,
    COMPRESSION_ZSTD,
)

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["DEFAULT_LEVEL", "MAX_EXPANDED_BYTES", "compress", "decompress"]

DEFAULT_LEVEL: Final = 5
MAX_EXPANDED_BYTES: Final = 64 * 1024 * 1024
"""Default cap of one expanded body: sixteen times the largest message that a broker takes."""

_METHODS: Final = {"zlib": COMPRESSION_ZLIB, "lz4": COMPRESSION_LZ4, "zstd": COMPRESSION_ZSTD}
_ZSTD_WINDOW: Final = 8 * 1024 * 1024
"""What any zstd decoder has to allow for, whatever the cap."""
_ZSTD_PIECE: Final = 1024
"""Compressed bytes fed at a time: zstd cannot be told where to stop, so the cap is checked between pieces."""


def compress(body: bytes, method: str = "zlib", level: int = DEFAULT_LEVEL) -> tuple[bytes, int]:
    """(compressed body, sysFlag bits to add). `method` is `zlib`, `lz4` or `zstd`.

    Raises `BadRequest` for an unknown method or when its library is missing.
    """
    bits = _METHODS.get(method)
    if bits is None:
        raise BadRequest(f"unknown compression {method!r}; there are {', '.join(_METHODS)}")
    if bits == COMPRESSION_ZLIB:
        data = zlib.compress(body, level)
    elif bits == COMPRESSION_LZ4:
        data = _lz4().compress(body)
    else:
        data = _zstd().ZstdCompressor(level=level).compress(body)
    return data, COMPRESSED | bits


def decompress(body: bytes | memoryview, sys_flag: int, max_bytes: int = MAX_EXPANDED_BYTES) -> bytes:
    """The body as the producer gave it; as it is when the flag says that it is not compressed.

    Raises `RecordError` when it is damaged, cut short or larger than `max_bytes` expanded; `BadRequest` when the
    library is missing.
    """
    if not sys_flag & COMPRESSED:
        return bytes(body)
    kind = sys_flag & COMPRESSION_MASK
    if kind in (0, COMPRESSION_ZLIB):
        return _expand_zlib(body, max_bytes)
    if kind == COMPRESSION_LZ4:
        return _expand_lz4(body, max_bytes)
    if kind == COMPRESSION_ZSTD:
        return _expand_zstd(body, max_bytes)
    raise RecordError(f"unknown compression type 0x{kind:x}")


def _too_large(max_bytes: int) -> RecordError:
    return RecordError(f"compressed body expands to more than {max_bytes} bytes")


def _expand_zlib(body: bytes | memoryview, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RecordError(f"zlib body: {error}") from None
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    if not inflater.eof:
        raise RecordError("zlib body is cut short")
    return data


def _expand_lz4(body: bytes | memoryview, max_bytes: int) -> bytes:
    expander = _lz4().LZ4FrameDecompressor()
    try:
        data: bytes = expander.decompress(bytes(body), max_bytes + 1)
    except (RuntimeError, ValueError, EOFError) as error:
        raise RecordError(f"lz4 body: {error}") from None
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    if not expander.eof:
        raise RecordError("lz4 body is cut short")
    return data


def _expand_zstd(body: bytes | memoryview, max_bytes: int) -> bytes:
    zstd = _zstd()
    expander = zstd.ZstdDecompressor(max_window_size=max(max_bytes, _ZSTD_WINDOW)).decompressobj()
    try:
        parameters = zstd.get_frame_parameters(bytes(body))
        if zstd.CONTENTSIZE_UNKNOWN != parameters.content_size > max_bytes:
            raise _too_large(max_bytes)
        data = _bounded_zstd(expander, body, max_bytes)
    except (zstd.ZstdError, MemoryError, ValueError) as error:
        raise RecordError(f"zstd body: {error}") from None
    if not expander.eof:
        raise RecordError("zstd body is cut short")
    return data


def _bounded_zstd(expander: Any, body: bytes | memoryview, max_bytes: int) -> bytes:  # Any: no stubs for the object
    """Feed small pieces, so that a lying frame is noticed a few megabytes after the cap at the latest."""
    parts: list[bytes] = []
    size = 0
    for at in range(0, len(body), _ZSTD_PIECE):
        part: bytes = expander.decompress(bytes(body[at : at + _ZSTD_PIECE]))
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if expander.eof:
            break
    return b"".join(parts)


def _lz4() -> ModuleType:
    try:
        import lz4.frame
    except ImportError:
        raise _missing("lz4") from None
    module: ModuleType = lz4.frame
    return module


def _zstd() -> ModuleType:
    try:
        import zstandard
    except ImportError:
        raise _missing("zstd") from None
    return zstandard


def _missing(method: str) -> BadRequest:
    return BadRequest(f"{method} is not installed", advice="pip install 'trimq[compression]'")
