"""Commands to frames and back, in all three header forms; whatever comes in."""

from __future__ import annotations

from struct import pack

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.wire.bounds import PROPERTY, i32, json_values, some_text, text
from trimq.errors import BadRequest, ProtocolError
from trimq.wire import header_binary
from trimq.wire.codes import LanguageCode, SerializeType
from trimq.wire.command import (
    FLAG_ONEWAY,
    FLAG_RESPONSE,
    Command,
    decode,
    encode,
    encode_response,
    encode_response_head,
    response_to,
    with_ext,
)
from trimq.wire.frame import FrameDecoder
from trimq.wire.header_json import encode_header, json_text

commands = st.builds(
    Command,
    code=st.integers(-(2**15), 2**15 - 1),
    opaque=i32,
    flag=st.integers(0, 3),
    remark=text,
    language=st.sampled_from([int(code) for code in LanguageCode]),
    version=st.integers(0, 2**15 - 1),
    ext=st.dictionaries(some_text, some_text, max_size=6),
    body=st.binary(max_size=50),
    serialize=st.sampled_from(SerializeType),
)


def decoded(frame: bytes) -> Command:
    (inner,) = FrameDecoder().feed(frame)
    return decode(inner)


@PROPERTY
@given(commands)
def test_what_is_encoded_decodes_to_the_same(command: Command) -> None:
    assert decoded(encode(command)) == command


@PROPERTY
@given(st.binary(max_size=200))
@example(b"")
@example(b"\0\0\0")
@example(b"\0\0\0\x02{}")
@example(b"\0\xff\xff\xff{}")
@example(b"\x07\0\0\0")
def test_any_bytes_decode_or_raise_a_protocol_error(frame: bytes) -> None:
    try:
        decode(frame)
    except ProtocolError:
        pass


@PROPERTY
@given(st.sampled_from([0, 1, 2]), st.binary(max_size=120), st.binary(max_size=10))
def test_any_header_bytes_decode_or_raise_a_protocol_error(kind: int, header: bytes, body: bytes) -> None:
    try:
        command = decode(pack(">I", kind << 24 | len(header)) + header + body)
    except ProtocolError:
        return
    assert command.body == body


@PROPERTY
@given(commands, st.data())
def test_a_frame_with_one_byte_changed_decodes_or_raises_a_protocol_error(
    command: Command, data: st.DataObject
) -> None:
    frame = bytearray(encode(command)[4:])
    frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(frame))
    except ProtocolError:
        pass


@PROPERTY
@given(st.dictionaries(text, json_values, max_size=5) | json_values)
def test_ext_fields_of_any_json_type_become_text(ext: object) -> None:
    header = msgspec.json.encode({"code": 10, "extFields": ext})
    try:
        command = decode(pack(">I", len(header)) + header)
    except ProtocolError:
        assert ext is not None
        return
    assert all(type(key) is str and type(value) is str for key, value in command.ext.items())


def json_command(header: bytes) -> Command:
    return decode(pack(">I", len(header)) + header)


HOSTILE_JSON = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"{}",
    b'{"code":"x"}',
    b'{"code":1e400}',
    b'{"code":NaN}',
    b'{"code":99999999999}',
    b'{"code":' + b"9" * 5000 + b"}",
    b'{"code":1,"opaque":1.5}',
    b'{"code":1,"extFields":[]}',
    b'{"code":1,"extFields":{"a":1e999}}',
    b'{"code":1,"extFields":{"a":"\xff"}}',
    b'{"code":1,"extFields":{"a":"\\ud800"}}',
    b'{"code":1} trailing',
    b'{"code":1,"x":' + b"[" * 30000 + b"]" * 30000 + b"}",
    b'{"code":1,"extFields":{"a":' + b"[" * 3000 + b"]" * 3000 + b"}}",
]


@pytest.mark.parametrize("header", HOSTILE_JSON, ids=range(len(HOSTILE_JSON)))
def test_hostile_json_headers_raise_a_protocol_error(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        json_command(header)


def test_what_real_clients_send_is_understood() -> None:
    # C++: numbers, a newline at the end, empty credentials. ali-ons: booleans. Java: languages by ordinal too.
    command = json_command(
        b'{"code":310,"extFields":{"AccessKey":"","e":3,"k":false,"m":true,"x":null,"y":1.0,"z":{"q":[1]}},'
        b'"flag":0,"language":"CPP","opaque":9,"version":333,"whatever":[1,{}]}\n'
    )
    assert command.ext == {"AccessKey": "", "e": "3", "k": "false", "m": "true", "y": "1", "z": '{"q":[1]}'}
    assert (command.language, command.opaque, command.version) == (LanguageCode.CPP, 9, 333)
    assert json_command(b'{"code":1,"language":9}').language == LanguageCode.GO
    assert json_command(b'{"code":1,"language":"KLINGON"}').language == LanguageCode.OTHER
    assert json_command(b'{"code":1,"language":{}}').language == LanguageCode.OTHER
    assert json_command(b'{"code":1,"remark":null}').remark == ""
    assert json_command(b'{"code":1,"remark":7}').remark == "7"
    assert json_command(b'{"code":1,"extFields":null}').ext == {}


def test_the_last_of_two_equal_names_wins() -> None:
    assert json_command(b'{"code":1,"extFields":{"a":"1","a":"2"},"code":3}') == Command(
        code=3, ext={"a": "2"}, language=LanguageCode.OTHER, version=0
    )
    pairs = header_binary.encode_pairs({"a": "1"}) + header_binary.encode_pairs({"a": "2"})
    assert header_binary.decode_pairs(pairs) == {"a": "2"}


def test_an_empty_value_is_a_missing_one_in_binary_form() -> None:
    command = Command(code=1, ext={"a": "", "b": "x"}, serialize=SerializeType.ROCKETMQ)
    assert decoded(encode(command)).ext == {"b": "x"}
    assert header_binary.decode_pairs(b"\0\x01a\0\0\0\0") == {}


@pytest.mark.parametrize("cut", range(1, 42))
def test_a_binary_header_cut_short_anywhere_is_refused(cut: int) -> None:
    header = header_binary.encode_header(105, 7, 0, 479, 3, "re", {"topic": "T1", "x": "y"})
    short = header[: len(header) - cut] if cut < len(header) else b""
    with pytest.raises(ProtocolError):
        decode(pack(">I", 1 << 24 | len(short)) + short)


def test_binary_lengths_that_lie_are_refused() -> None:
    good = header_binary.encode_header(1, 0, 0, 0, 0, "", {"k": "v"})
    for at, word in [(13, 0x7FFFFFFF), (13, 0xFFFFFFFF), (17, 0), (17, 0x7FFFFFFF), (24, 0x7FFFFFFF), (24, 0xFFFFFFFF)]:
        header = good[:at] + pack(">I", word) + good[at + 4 :]
        with pytest.raises(ProtocolError):
            decode(pack(">I", 1 << 24 | len(header)) + header)


def test_a_code_too_large_for_the_binary_form_goes_as_json() -> None:
    command = Command(code=200050, ext={"topic": "T"}, serialize=SerializeType.ROCKETMQ)
    assert decoded(encode(command)).serialize is SerializeType.JSON


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x80",
        b"\x87\x01\x02\x00\x03\x00\x60\xa0\x00",  # trailing byte
        b"\x87\x18\x01\x02\x00\x03\x00\x60\xa0",  # 1 in a longer form than needed
        b"\x9f\x01\x02\x00\x03\x00\x60\xa0\xff",  # indefinite length
        b"\x87\x01\x02\x00\x03\x00\x60\xa2\x61a\x61x\x61a\x61y",  # a key twice
        b"\x87\x01\x02\x00\x03\x00\x60\xa1\x61a\x01",  # a number as a value
        b"\x87\x01\x02\x00\x03\x00\x01\xa0",  # a number as the remark
        b"\x87\xf5\x02\x00\x03\x00\x60\xa0",  # true as the code
        b"\x87\x1b\xff\xff\xff\xff\xff\xff\xff\xff\x02\x00\x03\x00\x60\xa0",  # a code of 64 bits
        b"\xc0\x61x",
        b"\xd8\x23\x61(",
        b"\x81" * 3000,
    ],
    ids=range(13),
)
def test_anything_but_canonical_cbor_is_refused(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(pack(">I", 2 << 24 | len(header)) + header)


def test_limits_of_header_and_frame() -> None:
    header = encode_header(1, 0, 0, 0, 3, "x" * 70_000, {})
    frame = pack(">I", len(header)) + header
    with pytest.raises(ProtocolError, match="over the limit"):
        decode(frame)
    assert decode(frame, max_header=100_000).remark == "x" * 70_000
    with pytest.raises(BadRequest, match="over the limit"):
        encode(Command(code=1, body=bytes(16 * 1024 * 1024)))


def test_flags() -> None:
    assert Command(code=1, flag=FLAG_RESPONSE).is_response
    assert Command(code=1, flag=FLAG_ONEWAY).is_oneway
    assert not Command(code=1).is_response
    assert not Command(code=1).is_oneway


@pytest.mark.parametrize("serialize", list(SerializeType))
def test_a_response_has_the_opaque_and_the_form_of_its_request(serialize: SerializeType) -> None:
    request = Command(code=105, opaque=77, serialize=serialize)
    answer = decoded(response_to(request, 17, ext={"a": "b"}, remark='no route, "sorry" \u00e4', body=b"[]"))
    assert answer.is_response
    assert (answer.opaque, answer.code, answer.serialize) == (77, 17, serialize)
    assert (answer.ext, answer.remark, answer.body) == ({"a": "b"}, 'no route, "sorry" \u00e4', b"[]")


@pytest.mark.parametrize("serialize", [0, 1, 2])
def test_a_response_head_and_its_body_parts_make_a_frame(serialize: int) -> None:
    parts = [b"one", b"two"]
    head = encode_response_head(5, serialize, 0, {"x": "y"}, "", 6)
    assert head + b"".join(parts) == encode_response(5, serialize, 0, {"x": "y"}, "", b"onetwo")


def test_half_surrogates_become_question_marks() -> None:
    assert json_text("a\ud800b") == b'"a?b"'
    answer = decoded(encode_response(1, 0, 1, {"k\ud800": "v"}, "bad \ud800 name"))
    assert (answer.ext, answer.remark) == ({"k?": "v"}, "bad ? name")


def test_a_json_response_always_has_ext_fields() -> None:
    assert b'"extFields":{}' in encode_response(1, 0, 0, {})


def test_more_ext_fields_for_a_forwarded_request() -> None:
    request = Command(code=310, opaque=4, ext={"a": "g"}, body=b"body", serialize=SerializeType.ROCKETMQ)
    forwarded = decoded(with_ext(encode(request)[4:], {"fwd": "1"}))
    assert forwarded == Command(
        code=310, opaque=4, ext={"a": "g", "fwd": "1"}, body=b"body", serialize=SerializeType.ROCKETMQ
    )
