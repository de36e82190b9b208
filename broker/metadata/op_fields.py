"""How the fields of ops are read: what CBOR gave, checked.

Each function returns its argument or raises `ValueError`; the payload's decoder says which op it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

__all__ = ["I64_MAX", "ID_MAX", "QUEUE_MAX", "Raw", "Scalar", "boolean", "integer", "scalar", "text", "texts"]

ID_MAX = (1 << 31) - 1
QUEUE_MAX = 0xFFFF
I64_MAX = (1 << 63) - 1

Scalar: TypeAlias = int | str | bytes
Raw: TypeAlias = Any  # what CBOR decodes to, before it is checked


def integer(value: Raw, low: int = 0, high: int = I64_MAX) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is not an integer of {low}..{high}")
    return value


def text(value: Raw) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r:.40} is not a text")
    return value


def boolean(value: Raw) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r:.40} is not a boolean")
    return value


def scalar(value: Raw) -> Scalar:
    if type(value) is int or type(value) is str or type(value) is bytes:
        return value
    raise ValueError(f"{value!r:.40} is neither integer nor text nor bytes")


def texts(value: Raw) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r:.40} is not a map")
    return {text(name): text(each) for name, each in value.items()}
