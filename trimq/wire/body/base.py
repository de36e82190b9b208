"""What all JSON bodies share: typed structs with Java's field names, read leniently, written strictly.

Reading takes what the various clients write: numbers as text, unknown fields, a newline at the end, and Java's own
dialect (`fastjson`) as a second try. Writing gives compact, strictly valid JSON with quoted keys: the one form that
every known reader accepts (Go cuts `brokerAddrs` out of the text and allows no white space).

Field names are those of the wire, camel case, since a body *is* its JSON shape. A field of type `Optional` is left out
of what is written while it is `UNSET`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Self, TypeAlias, TypeVar, cast

import msgspec
from msgspec import UNSET, UnsetType

from trimq.errors import ProtocolError
from trimq.wire.body import fastjson
from trimq.wire.header_json import DECODE_ERRORS, I32, I64

__all__ = ["I32", "I64", "UNSET", "Body", "Optional", "convert_body", "decode_body", "encode_body"]

T = TypeVar("T")

Optional: TypeAlias = T | UnsetType | None
"""A field that Java leaves out when it is null."""

_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=256)
def _decoder(kind: Any) -> Callable[[bytes], Any]:  # Any: types are values here
    return msgspec.json.Decoder(kind, strict=False).decode


def decode_body(data: bytes | memoryview, kind: type[T]) -> T:
    """Read a JSON body as `kind`. Raises `ProtocolError` naming what is wrong and where."""
    raw = bytes(data)
    try:
        return cast(T, _decoder(cast(Any, kind))(raw))
    except DECODE_ERRORS:
        pass
    return convert_body(fastjson.parse(raw), kind)


def convert_body(value: fastjson.Value, kind: type[T]) -> T:
    """The same for a body that has been parsed already."""
    try:
        return msgspec.convert(value, kind, strict=False, str_keys=True)
    except DECODE_ERRORS as error:
        raise ProtocolError(f"{getattr(kind, '__name__', kind)} body: {error}") from None


def encode_body(value: object) -> bytes:
    """Compact JSON. Raises `UnicodeEncodeError` for text with half surrogates, which never comes out of a decoder."""
    return _encode(value)


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """The base of all JSON bodies."""

    @classmethod
    def from_json(cls, data: bytes | memoryview) -> Self:
        """Raises `ProtocolError`."""
        return decode_body(data, cls)

    def to_json(self) -> bytes:
        return _encode(self)
