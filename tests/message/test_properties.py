"""The property string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.bounds import PROPERTY
from trimq.errors import BadRequest
from trimq.message import properties
from trimq.message.properties import append, get, keys_of, parse, without

names = st.text(st.characters(codec="utf-8", exclude_characters="\x01\x02"), min_size=1, max_size=8)
raw_strings = st.lists(
    st.sampled_from([b"\x01", b"\x02", b"A", b"TAGS", b"KEYS", b"x", b"\xff", b""]), max_size=14
).map(b"".join)


@PROPERTY
@given(st.dictionaries(names, names, max_size=6))
def test_what_is_formatted_parses_to_the_same(pairs: dict[str, str]) -> None:
    text = properties.format(pairs)
    assert parse(text) == pairs
    assert parse(text.encode()) == pairs
    assert parse(text.rstrip("\x02")) == pairs
    for name, value in pairs.items():
        assert get(text.encode(), name.encode()) == value.encode()


@PROPERTY
@given(raw_strings, st.sampled_from([b"A", b"TAGS", b"KEYS", b"x"]))
def test_getting_one_property_agrees_with_parsing_all(raw: bytes, name: bytes) -> None:
    expected = parse(raw).get(name.decode())
    found = get(raw, name)
    assert (None if found is None else found.decode("utf-8", "replace")) == expected


@PROPERTY
@given(raw_strings, st.sampled_from([b"A", b"TAGS"]))
def test_appending_and_taking_away(raw: bytes, name: bytes) -> None:
    longer = append(raw, name, b"value")
    assert parse(longer) == parse(raw) | {name.decode(): "value"}
    shorter = parse(without(longer, name))
    assert shorter == {key: value for key, value in parse(raw).items() if key != name.decode()}


def test_pairs_that_are_none() -> None:
    assert parse("") == {}
    assert parse("a\x02\x01b\x02c\x01\x02d\x01e") == {"d": "e"}
    assert parse("a\x01b\x01c\x02") == {"a": "b\x01c"}
    assert parse("a\x011\x02a\x012") == {"a": "2"}
    assert properties.format({"": "x", "y": ""}) == ""


def test_a_name_inside_a_value_is_not_found() -> None:
    assert get(b"x\x01TAGS\x02MYTAGS\x01no\x02", b"TAGS") is None
    assert get(b"x\x01yTAGS\x01no", b"TAGS") is None
    assert get(b"TAGS\x01", b"TAGS") is None
    assert get(b"TAGS\x01A\x02TAGS\x01", b"TAGS") == b"A"


@pytest.mark.parametrize("pair", [{"a\x01": "b"}, {"a": "b\x02"}, {"a\x02": "b"}, {"a": "b\x01"}])
def test_separators_in_names_and_values_are_refused(pair: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        properties.format(pair)


def test_keys_are_words() -> None:
    assert keys_of(b"KEYS\x01k1 k2  k3\x02") == [b"k1", b"k2", b"k3"]
    assert keys_of(b"TAGS\x01A\x02") == []


def test_nothing_changes_when_there_is_nothing_to_take_away() -> None:
    raw = b"A\x01b\x02"
    assert without(raw, b"X", b"Y") is raw
    assert without(raw, b"A") == b""


def test_reserved_names_are_known() -> None:
    assert {"TAGS", "KEYS", "UNIQ_KEY", "__CRC32#"} <= properties.RESERVED
