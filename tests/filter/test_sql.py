"""SQL92: errors that say where, bounded cost, and the way from property bytes to an answer."""

from __future__ import annotations

from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.filter.cache import CHARS_MAX, FilterCache
from broker.filter.selection import FilterError, SqlFilter, parse_filter
from broker.filter.sql_lexer import SqlError, tokens
from broker.filter.sql_parser import DEPTH_MAX, LENGTH_MAX, LOOKS_MAX, compile_sql
from tests.wire.bounds import PROPERTY
from trimq.message import properties

WORDS = "NOT|AND|OR|BETWEEN|IN|IS|NULL|TRUE|CONTAINS|a|b|5|3.5|'x'|''|(|)|,|=|<>|<|>=|+|-"


@pytest.mark.parametrize(
    ("expression", "at", "advice"),
    [
        ("", 0, "empty"),
        ("  ", 2, "empty"),
        ("price >", 7, "expected a property, a value"),
        ("price > 10 AND", 14, "expected a property, a value"),
        ("price > 'ten'", 8, "numbers and properties only"),
        ("price != 10", 6, "write <> for not equal"),
        ("price > 10 && a = 1", 11, "write AND"),
        ('colour = "red"', 9, "single quotes"),
        ("colour = 'red", 9, "close it with '"),
        ("colour = NULL", 9, "IS NULL"),
        ("colour IN (1, 2)", 11, "strings only"),
        ("colour IN ('a' 'b')", 15, "',' or ')'"),
        ("5 IN ('5')", 0, "property on its left"),
        ("(price > 10", 11, "')'"),
        ("price BETWEEN 10 AND 1", 14, "must not be above"),
        ("price BETWEEN 10", 16, "AND between"),
        ("price IS 5", 9, "NULL or NOT NULL"),
        ("price * 2 > 10", 6, "no arithmetic"),
        ("5", 0, "not a condition"),
        ("price > 99999999999999999999", 8, "64 bits"),
        ("price > 1e999", 8, "write 0"),
        ("/* a = 5", 0, "close it with */"),
        ("colour LIKE 'r%'", 7, "unexpected"),
    ],
)
def test_an_error_says_where_and_what_to_write(expression: str, at: int, advice: str) -> None:
    with pytest.raises(SqlError) as caught:
        compile_sql(expression)
    assert caught.value.at == at
    assert advice in str(caught.value)
    assert f"line 1, column {at + 1}:" in str(caught.value)


def test_the_place_counts_lines() -> None:
    with pytest.raises(SqlError, match="line 3, column 5"):
        compile_sql("a = 1\n  AND\n    @")


@pytest.mark.parametrize(
    "hostile",
    [
        "(" * (LENGTH_MAX - 1),
        "NOT " * (LENGTH_MAX // 4 - 1) + "a",
        "+" * (LENGTH_MAX - 1) + "a",
        "-" + " -" * (LENGTH_MAX // 2 - 2) + "a",
        "a = " * (LENGTH_MAX // 4 - 1) + "b",
        "a > 1 OR " * (LENGTH_MAX // 9) + "a",
        "a IS NULL AND " * (LENGTH_MAX // 14) + "a",
        "'" * (LENGTH_MAX - 1),
        "/*" * (LENGTH_MAX // 2),
        "x" * (LENGTH_MAX + 1),
        "a" + " OR a" * LOOKS_MAX,
    ],
)
def test_a_hostile_expression_is_refused_in_bounded_time(hostile: str) -> None:
    began = perf_counter()
    with pytest.raises(SqlError):
        compile_sql(hostile)
    assert perf_counter() - began < 0.5, "a few milliseconds on an idle machine"


def test_the_costliest_expressions_that_are_allowed_are_compiled_and_evaluated_quickly() -> None:
    deepest = "NOT (" * (DEPTH_MAX // 2 - 1) + "a = 'x'" + ")" * (DEPTH_MAX // 2 - 1)
    longest = "a IN (" + "'x'," * ((LENGTH_MAX - 10) // 4) + "'y')"
    widest = " OR ".join(["a CONTAINS 'xxxxy'"] * LOOKS_MAX)
    raw = b"a\x01" + b"x" * 32_000 + b"\x02"
    for expression in (deepest, longest, widest):
        began = perf_counter()
        wanted = parse_filter(expression, "SQL92")
        assert isinstance(wanted, SqlFilter)
        wanted(raw)
        assert perf_counter() - began < 1.0


@PROPERTY
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS.split("|")), max_size=14).map(" ".join)))
def test_any_text_compiles_or_is_refused(text: str) -> None:
    try:
        condition = compile_sql(text)
    except SqlError:
        return
    for found in ({}, {"a": "5", "b": "x"}, {"a": "x", "b": "3.5"}):
        assert condition.matches(found.get) in (True, False)


def test_a_filter_reads_property_bytes_as_they_are_stored() -> None:
    raw = properties.format({"TAGS": "T", "price": "12", "colour": "rot é"}).encode()
    few = parse_filter("price > 10 AND colour ENDSWITH 'é'", "SQL92")
    many = parse_filter("price > 10 AND price < 20 AND TAGS = 'T' AND size IS NULL AND colour <> 'x'", "SQL92")
    for wanted in (few, many):
        assert isinstance(wanted, SqlFilter)
        assert wanted(raw)
        assert not wanted(b"price\x015\x02")
        assert not wanted(b"")
    assert (few.codes, few.test) == (None, few)


def test_kinds_of_filters() -> None:
    assert parse_filter("A || B").codes
    assert parse_filter("*").test is None
    with pytest.raises(FilterError, match="TAG and SQL92"):
        parse_filter("a > 1", "XPATH")


def test_tokens_know_their_places() -> None:
    found = tokens("a>=1 -- why\n/* because */ and b='it''s'")
    assert [(token.kind, token.text, token.at) for token in found] == [
        ("name", "a", 0),
        (">=", ">=", 1),
        ("integer", "1", 3),
        ("AND", "and", 26),
        ("name", "b", 30),
        ("=", "=", 31),
        ("string", "it's", 32),
        ("end", "", 39),
    ]


def test_compiled_filters_are_kept_within_a_bound_and_refusals_too() -> None:
    cache = FilterCache()
    assert cache.known("a > 1", "SQL92") is None, "worth a turn of its own"
    compiled = cache.compile("a > 1", "SQL92")
    assert cache.known("a > 1", "SQL92") is compiled
    assert cache.known("A", "TAG") is cache.known("A", "TAG")
    with pytest.raises(FilterError):
        cache.compile("a >", "SQL92")
    with pytest.raises(FilterError, match="column 4"):
        cache.known("a >", "SQL92")
    long = "x" * 8000
    for number in range(CHARS_MAX // 8000 + 10):
        cache.compile(f"a = '{long}{number}'", "SQL92")
    assert cache.known("a > 1", "SQL92") is None, "the least recently used went"
    assert len(cache._found) < CHARS_MAX // 8000 + 5
