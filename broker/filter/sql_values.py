"""Values of SQL92 conditions and how RocketMQ compares them: Java's types, Java's conversions, Java's refusals.

A property is always text. Compared with a literal it is converted to the literal's type, and text that does not convert
makes the *whole* condition no match (`NoMatch`), whatever else it says: `a > 3 OR b = 'x'` matches no message whose `a`
is `3.5`, since 3 is an Integer. That is surprising, and it is what a consumer that moves between brokers relies on.
`tests/compat` holds these rules to the answers of RocketMQ's own module.

Absent properties are null (None) and comparisons with them are null, in the order in which Java looks: a missing left
side is null, a missing right side is unequal.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

__all__ = ["Long", "NoMatch", "Value", "compare", "equal", "order", "to_boolean", "to_double", "to_integer", "to_long"]


class NoMatch(Exception):
    """The condition cannot be evaluated for this message: it does not match."""


class Long(int):
    """An integer literal beyond 32 bits: text is compared with it as a 64-bit number."""


Value: TypeAlias = "str | int | float | bool | None"
"""Text, Integer (`int`), `Long`, Double (`float`), boolean or null."""

_DOUBLE: Final = re.compile(
    r"[+-]?(?:NaN|Infinity|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fFdD]?)", re.ASCII
)
_HEX_DOUBLE: Final = re.compile(
    r"([+-]?0[xX](?:[0-9a-fA-F]+(?:\.[0-9a-fA-F]*)?|\.[0-9a-fA-F]+)[pP][+-]?[0-9]+)[fFdD]?", re.ASCII
)
_DIGITS_MAX: Final = 19
_BLANKS: Final = "".join(map(chr, range(33)))
"""What Java trims: everything up to the space."""


def _whole(text: str, bits: int) -> int:
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not digits.isdecimal() or max(digits) > "\uffff":  # decimal digits of any script, of those that Java sees as one
        raise NoMatch
    digits = digits.lstrip("0") or "0"
    if len(digits) > _DIGITS_MAX:
        raise NoMatch
    value = -int(digits) if text[0] == "-" else int(digits)
    if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        raise NoMatch
    return value


def to_integer(text: str) -> int:
    """`Integer.valueOf`. Raises `NoMatch`."""
    return _whole(text, 32)


def to_long(text: str) -> int:
    """`Long.valueOf`. Raises `NoMatch`."""
    return _whole(text, 64)


def to_double(text: str) -> float:
    """`Double.valueOf`: decimal, hexadecimal, NaN and Infinity, with blanks around. Raises `NoMatch`."""
    stripped = text.strip(_BLANKS)
    if _DOUBLE.fullmatch(stripped) is not None:
        return float(stripped.rstrip("fFdD") if stripped[-1] in "fFdD" else stripped)
    hexadecimal = _HEX_DOUBLE.fullmatch(stripped)
    if hexadecimal is None:
        raise NoMatch
    try:
        return float.fromhex(hexadecimal[1])
    except OverflowError:
        return float("-inf") if stripped[0] == "-" else float("inf")


def to_boolean(text: str) -> bool:
    """`Boolean.valueOf`: anything but `true` (in any case) is false."""
    return text.lower() == "true"


def _of_double(left: float, right: float) -> int:
    """`Double.compare`: NaN equals itself and is above all, -0.0 is below 0.0."""
    if left < right:
        return -1
    if left > right:
        return 1
    if left == right:
        if left != 0.0:
            return 0
        return (str(right)[0] == "-") - (str(left)[0] == "-")
    return (left != left) - (right != right)


def _of_int(left: int, right: int) -> int:
    return (left > right) - (left < right)


def order(left: Value, right: Value) -> int | None:
    """The sign of left − right for `<`, `<=`, `>`, `>=`; None when one is null. Raises `NoMatch`.

    Two texts are compared as doubles; text that is no number has no order.
    """
    if left is None or right is None:
        return None
    if isinstance(left, str) and isinstance(right, str):
        return _of_double(to_double(left), to_double(right))
    return compare(left, right)


def compare(left: str | float | bool, right: str | float | bool) -> int:
    """The sign of left − right after conversion to one type, -1 for types that have none in common. `NoMatch`."""
    if isinstance(left, bool):
        if isinstance(right, bool):
            return _of_int(left, right)
        if isinstance(right, str):
            raise NoMatch  # a class cast that fails there
        return -1
    if isinstance(left, str):
        if isinstance(right, bool):
            return _of_int(to_boolean(left), right)
        if isinstance(right, str):
            return (left > right) - (left < right)
        return _of_text(left, right)
    if isinstance(right, bool):
        return -1
    if isinstance(right, str):
        return -_of_text(right, left)
    if isinstance(left, float) or isinstance(right, float):
        return _of_double(float(left), float(right))
    return _of_int(left, right)


def _of_text(text: str, number: float) -> int:
    if isinstance(number, float):
        return _of_double(to_double(text), number)
    return _of_int(to_long(text) if isinstance(number, Long) else to_integer(text), number)


def equal(left: Value, right: Value) -> bool | None:
    """`left = right`. Two nulls are equal, a null on the left is null, one on the right unequal. Raises `NoMatch`."""
    if left is None:
        return True if right is None else None
    if right is None:
        return False
    return compare(left, right) == 0
