"""What all typed headers share: declared once as a struct, read leniently, written as text.

A header is a frozen struct whose fields carry snake-case names here and Java's names on the wire. Reading takes text,
numbers and booleans ("4", 4; "true", "1", true) because clients send all of these, treats an empty value as a missing
one, ignores unknown fields, and checks that numbers fit the width that Java declares for them, so that nothing further
in can overflow. Writing makes text of everything and leaves out what is None or empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import msgspec

from trimq.errors import ProtocolError
from trimq.wire.header_json import DECODE_ERRORS, I32, I64

__all__ = ["I32", "I64", "Header"]


class Header(msgspec.Struct, frozen=True, gc=False, kw_only=True, rename="camel"):
    """The base of all typed headers."""

    quiet: ClassVar[frozenset[str]] = frozenset()
    """Fields (Python names) left out while they hold False or -1, else numbers (True is 1): additions of ours."""

    @classmethod
    def from_ext(cls, ext: Mapping[str, object]) -> Self:
        """Read from ext fields. Raises `ProtocolError` naming the field that is missing or wrong."""
        try:
            return msgspec.convert(ext, cls, strict=False)
        except DECODE_ERRORS:
            pass
        try:
            return msgspec.convert({k: v for k, v in ext.items() if v not in ("", None)}, cls, strict=False)
        except DECODE_ERRORS as error:
            raise ProtocolError(f"{cls.__name__}: {error}") from None

    def to_ext(self) -> dict[str, str]:
        """The fields as text, under their names on the wire; None and empty text are left out."""
        ext: dict[str, str] = {}
        for name, key in zip(self.__struct_fields__, self.__struct_encode_fields__, strict=True):
            value = getattr(self, name)
            if name in self.quiet:
                if value is True:
                    ext[key] = "1"
                elif value is not False and value != -1:
                    ext[key] = str(value)
            elif value is True:
                ext[key] = "true"
            elif value is False:
                ext[key] = "false"
            elif value is not None and value != "":
                ext[key] = str(value)
        return ext
