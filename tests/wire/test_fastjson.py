"""Java's dialect of JSON."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.bounds import PROPERTY, json_values
from trimq.errors import ProtocolError
from trimq.wire.body.fastjson import object_key, parse


def standard(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@PROPERTY
@given(json_values)
def test_plain_json_reads_as_everywhere(value: object) -> None:
    assert standard(parse(standard(value))) == standard(_as_read(value))


def _as_read(value: object) -> object:
    """Integers of more than 19 digits are read as floats; names that hold an object's JSON are rewritten."""
    if isinstance(value, dict):
        return {key: _as_read(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_read(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and len(str(abs(value))) > 19:
        return float(value)
    return value


@PROPERTY
@given(st.binary(max_size=60) | st.text('{}[]":,0123456789.eE+-tfnul\\ $refab', max_size=40).map(str.encode))
def test_any_bytes_are_read_or_raise_a_protocol_error(data: bytes) -> None:
    try:
        parse(data)
    except ProtocolError:
        pass


def test_integer_keys_without_quotes() -> None:
    assert parse(b'{0:"a", 12 : "b","2":"c",-1:1}') == {"0": "a", "12": "b", "2": "c", "-1": 1}


def test_names_without_quotes() -> None:
    assert parse(b'{clientId:"c", _a1 : [{$b:null}]}') == {"clientId": "c", "_a1": [{"$b": None}]}


def test_object_keys_raw_and_as_strings_are_the_same() -> None:
    raw = b'{"t":{{"topic":"T","queueId":3}:5}}'
    text = b'{"t":{"{\\"queueId\\":3, \\"topic\\":\\"T\\"}":5}}'
    assert parse(raw) == parse(text) == {"t": {'{"queueId":3,"topic":"T"}': 5}}
    assert object_key({"b": 1, "a": 2}) == '{"a":2,"b":1}'


def test_references_are_filled_in() -> None:
    data = b'{"a":{"x":[{"n":1},{"n":2}]},"b":{"$ref":"$.a.x[1]"},"c":[{"$ref":"$.a"}]}'
    assert parse(data) == {
        "a": {"x": [{"n": 1}, {"n": 2}]},
        "b": {"n": 2},
        "c": [{"x": [{"n": 1}, {"n": 2}]}],
    }


@pytest.mark.parametrize("path", ["$", "$.b", "$.nothing", "$.a[7]", "..", "@", "$.a x", "$x", "$.a.x"])
def test_references_in_a_circle_or_to_nowhere_stay(path: str) -> None:
    data = msgspec.json.encode({"a": [{"$ref": "$.a"}], "b": {"$ref": path}})
    assert parse(data) == {"a": [{"$ref": "$.a"}], "b": {"$ref": path}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b'{"a"}',
        b'{"a":}',
        b'{"a":1,}',
        b"[1,]",
        b"[1 2]",
        b"{1.5:2}",
        b"{a-b:1}",
        b"{a b:1}",
        b"{a}",
        b"1e999",
        b"-1e999",
        b"NaN",
        b"Infinity",
        b'"\\ud800"',
        b'"\\x"',
        b'"abc',
        b"{}{}",
        b"\xff\xfe",
        b"[" * 200,
        b"{" * 200,
        b'{"a":' * 200 + b"1" + b"}" * 200,
    ],
    ids=range(24),
)
def test_what_nobody_writes_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(data)


def test_numbers() -> None:
    assert parse(b"[0,-5,1.5,1e3,9223372036854775807,-9223372036854775808]") == [
        0,
        -5,
        1.5,
        1000.0,
        2**63 - 1,
        -(2**63),
    ]
    assert parse(b"1" * 30) == float("1" * 30)
