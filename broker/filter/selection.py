"""What a subscription wants of a topic, whatever language it is written in: TAG or SQL92.

`parse_filter` is the one way from the words of a client to something that reads can use. A tag expression becomes a set
of hashes that the index is asked for; a SQL92 condition a test of the property bytes of each record. Both bound what a
client can make the broker do: see `broker.filter.sql_parser` for expressions, `broker.store.pulls` for one look.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from broker.filter.sql_parser import Condition, Look, compile_sql
from broker.filter.tags import ALL, FilterError, TagFilter, parse_tags
from trimq.message import properties

__all__ = ["ALL", "FilterError", "Selection", "SqlFilter", "parse_filter"]

PARSE_FROM = 4
"""With so many looks at properties, taking the string apart once is cheaper than searching it each time."""


@dataclass(frozen=True, slots=True)
class SqlFilter:
    """A compiled SQL92 condition; a test of property bytes."""

    expression: str
    condition: Condition

    @property
    def codes(self) -> None:
        """Tag hashes say nothing about a condition."""
        return None

    @property
    def test(self) -> SqlFilter:
        return self

    @property
    def cost(self) -> int:
        """Passes over the property bytes that one test may take."""
        return 1 + self.condition.looks

    def __call__(self, raw: bytes) -> bool:
        """Whether a message with these properties is wanted."""
        return self.condition.matches(_look(raw, self.condition.looks))


Selection: TypeAlias = "TagFilter | SqlFilter"
"""`codes` are the tag hashes wanted (None: all), `test` the test of property bytes (None: none)."""


def _look(raw: bytes, looks: int) -> Look:
    if looks < PARSE_FROM:
        return partial(_find, raw)
    return properties.parse(raw).get


def _find(raw: bytes, name: str) -> str | None:
    value = properties.get(raw, name.encode())
    return None if value is None else value.decode("utf-8", "replace")


def parse_filter(expression: str, expression_type: str = "TAG") -> Selection:
    """The filter of a subscription. Raises `FilterError` (with line and column where it is SQL92)."""
    if expression_type == "SQL92":
        return SqlFilter(expression, compile_sql(expression))
    return parse_tags(expression, expression_type)
