"""Tag expressions: `A || B`, or `*` for everything.

A filter is the set of tag hashes that a consume queue unit may carry. The hashes are computed here from the text: what
clients send in `codeSet` lies (C++ sends zeros, Go hashes other bytes). It is a filter by hash only; clients compare
the exact tags again, so a collision costs a message on the wire and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from trimq.message.tags import tags_code

__all__ = ["ALL", "FilterError", "TagFilter", "parse_tags"]


class FilterError(ValueError):
    """A subscription that cannot be evaluated; the text says why."""


@dataclass(frozen=True, slots=True)
class TagFilter:
    """What a consumer wants of a topic. `codes` is None when it wants everything."""

    expression: str
    tags: tuple[str, ...]
    codes: frozenset[int] | None

    @property
    def test(self) -> None:
        """Properties are not looked at (`broker.filter.selection` has a filter that does)."""
        return None


ALL = TagFilter("*", (), None)


def parse_tags(expression: str, expression_type: str = "TAG") -> TagFilter:
    """The filter of a subscription text. Raises `FilterError` for what is not a tag expression."""
    if expression_type not in ("", "TAG"):
        raise FilterError(f"expression type {expression_type} is not supported; TAG and SQL92 are")
    stripped = expression.strip()
    if stripped in ("", "*"):
        return ALL
    tags = tuple(dict.fromkeys(tag for part in stripped.split("||") if (tag := part.strip())))
    if not tags:
        raise FilterError(f"{expression!r} names no tag; write A || B, or * for everything")
    if "*" in tags:
        return ALL
    return TagFilter(expression, tags, frozenset(tags_code(tag) for tag in tags))
