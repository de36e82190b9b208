"""The short way from a frame to a typed request gives what the long way gives, or the same refusal."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.bounds import PROPERTY, json_values, text
from trimq.errors import ProtocolError
from trimq.wire import header_binary, requests
from trimq.wire.codes import LanguageCode, RequestCode, SerializeType
from trimq.wire.command import Command, decode, encode
from trimq.wire.headers.base import Header
from trimq.wire.headers.send import SendHeader
from trimq.wire.requests import (
    Request,
    decode_pull,
    decode_query_offset,
    decode_send,
    decode_update_offset,
    peek_code,
    peek_opaque,
)

SEND = {
    "a": "pg",
    "b": "TopicTest",
    "c": "TBW102",
    "d": "4",
    "e": "1",
    "f": "0",
    "g": "1700000000000",
    "h": "0",
    "i": "UNIQ_KEY\x017F00000100010000000000000000000A\x02TAGS\x01A",
    "j": "0",
    "k": "false",
    "l": "16",
    "m": "false",
    "n": "broker-a",
}


def frame_of(code: int, ext: dict[str, str], serialize: SerializeType = SerializeType.JSON, **fields: Any) -> bytes:
    return encode(Command(code=code, opaque=9, ext=ext, serialize=serialize, **fields))[4:]


def raw_json(header: dict[str, object], body: bytes = b"") -> bytes:
    data = msgspec.json.encode(header)
    return pack(">I", len(data)) + data + body


def outcome(way: Callable[[], Request[Any]]) -> object:
    """What a decoder answers, comparable; a refusal is the word."""
    try:
        r = way()
    except ProtocolError:
        return "refused"
    return r.code, r.header, r.opaque, r.flag, r.version, r.language, r.body, r.serialize


def long_way(frame: bytes, header: type[Header], codes: frozenset[int]) -> Request[Header]:
    command = decode(frame)
    typed = header.from_ext(command.ext)
    if command.code not in codes or command.is_response:
        raise ProtocolError("not for this decoder")
    return Request(
        code=command.code,
        header=typed,
        opaque=command.opaque,
        flag=command.flag,
        version=command.version,
        language_text=command.language,
        body=command.body,
        serialize=command.serialize,
    )


send_values = st.fixed_dictionaries(
    {key: st.just(value) | json_values for key, value in SEND.items() if key not in "abcd"},
    optional=dict.fromkeys(("pid", "ps", "fwd", "AccessKey", "topic", "producerGroup"), json_values),
)


@PROPERTY
@given(send_values, st.sampled_from([10, 310, 320, 11]), st.integers(0, 3), st.binary(max_size=20))
def test_a_json_send_takes_the_short_way_to_the_same_result(
    ext: dict[str, object], code: int, flag: int, body: bytes
) -> None:
    full: dict[str, object] = {"a": "pg", "b": "T", "c": "TBW102", "d": 4} | ext
    frame = raw_json({"code": code, "extFields": full, "flag": flag, "language": "CPP", "opaque": 7}, body)
    expected = outcome(lambda: long_way(frame, SendHeader, requests.SEND_CODES))
    assert outcome(lambda: decode_send(frame)) == expected


@PROPERTY
@given(
    st.dictionaries(st.sampled_from([*SEND, "pid", "x", "topic"]), text | st.integers(-5, 10**19).map(str), max_size=6),
    st.permutations(list(SEND)),
    st.sampled_from([10, 310, 320, 15]),
)
def test_a_binary_send_takes_the_short_way_to_the_same_result(
    changes: dict[str, str], order: list[str], code: int
) -> None:
    ext = SEND | changes
    orders = [list(SEND), order] if changes else [list(SEND)]
    for names in orders:
        arranged = {name: ext[name] for name in names} | ext
        frame = frame_of(code, arranged, SerializeType.ROCKETMQ, body=b"body")
        expected = outcome(lambda frame=frame: long_way(frame, SendHeader, requests.SEND_CODES))  # type: ignore[misc]
        assert outcome(lambda frame=frame: decode_send(frame)) == expected  # type: ignore[misc]
        assert outcome(lambda frame=frame: decode_send(frame)) == expected, "the second time from the cache"  # type: ignore[misc]


@PROPERTY
@given(st.data())
def test_a_binary_send_with_a_byte_changed_agrees_with_the_long_way(data: st.DataObject) -> None:
    frame = bytearray(frame_of(310, SEND, SerializeType.ROCKETMQ, body=b"body"))
    decode_send(bytes(frame))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(frame)
    expected = outcome(lambda: long_way(changed, SendHeader, requests.SEND_CODES))
    assert outcome(lambda: decode_send(changed)) == expected


def test_a_binary_send_comes_from_the_cache_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = frame_of(310, SEND | {"b": "CachedTopic"}, SerializeType.ROCKETMQ, body=b"one")
    decode_send(first)
    monkeypatch.setattr(requests, "_long_way", None)
    second = frame_of(
        310,
        SEND | {"b": "CachedTopic", "g": "1700000000999", "h": "12", "i": "k\x01\u00e4"},
        SerializeType.ROCKETMQ,
        body=b"two",
    )
    request = decode_send(second)
    header = request.header
    assert (header.topic, header.born_timestamp, header.flag) == ("CachedTopic", 1700000000999, 12)
    assert (header.properties, header.max_reconsume_times) == ("k\x01\u00e4", 16)
    assert (request.body, request.serialize, request.language) == (b"two", 1, LanguageCode.PYTHON)


def test_the_cache_of_binary_runs_is_bounded() -> None:
    known = requests._known
    for n in range(requests._CACHE_MAX + 10):
        decode_send(frame_of(310, SEND | {"b": f"T{n}"}, SerializeType.ROCKETMQ))
    assert sum(map(len, known.headers.values())) == known.size <= requests._CACHE_MAX
    before = known.size
    decode_send(frame_of(310, SEND | {"b": "x" * 2000}, SerializeType.ROCKETMQ))
    decode_send(frame_of(310, SEND | {"x": "y" * 2000}, SerializeType.ROCKETMQ))
    assert known.size == before


@pytest.mark.parametrize("cut", range(1, 120, 3))
def test_a_known_binary_send_cut_short_is_refused(cut: int) -> None:
    frame = frame_of(310, SEND, SerializeType.ROCKETMQ)
    assert decode_send(frame) == decode_send(frame)
    header = frame[4:-cut]
    with pytest.raises(ProtocolError):
        decode_send(pack(">I", 1 << 24 | len(header)) + header)
    fixed = header[:17] + pack(">i", len(header) - 21) + header[21:]
    short = pack(">I", 1 << 24 | len(fixed)) + fixed
    assert outcome(lambda: decode_send(short)) == outcome(lambda: long_way(short, SendHeader, requests.SEND_CODES))


def test_headers_from_the_cache_do_not_share_what_varies() -> None:
    first = decode_send(frame_of(310, SEND, SerializeType.ROCKETMQ)).header
    second = decode_send(frame_of(310, SEND | {"g": "5", "i": "x"}, SerializeType.ROCKETMQ)).header
    assert (first.born_timestamp, second.born_timestamp) == (1700000000000, 5)
    assert (first.properties == SEND["i"], second.properties) == (True, "x")


def test_a_value_that_looks_like_the_mark_of_the_born_time_is_only_a_value() -> None:
    ext = SEND | {"b": "T\0\x01g\0\0\0\x011"}
    for _ in range(2):
        request = decode_send(frame_of(310, ext, SerializeType.ROCKETMQ))
        assert (request.header.topic, request.header.born_timestamp) == ("T\0\x01g\0\0\0\x011", 1700000000000)


def test_a_pair_behind_that_repeats_one_before_wins_as_everywhere() -> None:
    header = header_binary.encode_header(310, 1, 0, 479, 0, "", SEND)
    again = header_binary.encode_pairs({"b": "Other"})
    head = header[:17] + pack(">i", len(header) - 21 + len(again)) + header[21:] + again
    frame = pack(">I", 1 << 24 | len(head)) + head
    for _ in range(2):
        assert decode_send(frame).header.topic == "Other"


def test_a_send_with_a_missing_field_names_it() -> None:
    missing = {key: value for key, value in SEND.items() if key != "e"}
    for serialize in SerializeType:
        with pytest.raises(ProtocolError, match=r"`e`"):
            decode_send(frame_of(310, missing, serialize))


def test_json_cannot_smuggle_a_body_in() -> None:
    frame = raw_json({"code": 310, "extFields": SEND, "~body": "AAAA", "~serialize": 2}, b"real")
    request = decode_send(frame)
    assert (request.body, request.serialize) == (b"real", 0)
    frame = raw_json({"code": 310, "extFields": SEND, "~body": 5, "~serialize": "x"}, b"real")
    assert decode_send(frame).body == b"real"


def test_pulls_and_offsets_have_decoders_of_their_own() -> None:
    pull = {
        "consumerGroup": "g",
        "topic": "T",
        "queueId": "0",
        "queueOffset": "5",
        "maxMsgNums": "32",
        "sysFlag": "6",
        "commitOffset": "-1",
        "suspendTimeoutMillis": "15000",
        "subscription": "A || B",
        "subVersion": "7",
    }
    for serialize in SerializeType:
        header = decode_pull(frame_of(11, pull, serialize)).header
        assert (header.queue_offset, header.commit_offset, header.subscription) == (5, -1, "A || B")
    with pytest.raises(ProtocolError, match="code 14"):
        decode_pull(frame_of(14, pull))
    commit = {"consumerGroup": "g", "topic": "T", "queueId": "0", "commitOffset": "9", "set": "1"}
    header15 = decode_update_offset(frame_of(15, commit)).header
    assert (header15.commit_offset, header15.set_back) == (9, True)
    assert decode_query_offset(frame_of(14, commit)).header.set_zero_if_not_found


@pytest.mark.parametrize("serialize", list(SerializeType))
@pytest.mark.parametrize("code", list(RequestCode))
def test_peek_finds_the_code_and_the_opaque(code: RequestCode, serialize: SerializeType) -> None:
    frame = frame_of(code, {"topic": "T"}, serialize)
    assert peek_code(frame) == code
    assert peek_opaque(frame) == 9


def test_peek_reads_a_header_in_any_order_and_gives_up_on_garbage() -> None:
    assert peek_code(raw_json({"flag": 0, "opaque": 3, "code": 31})) == 31
    assert peek_code(raw_json({"code": 77777})) == 77777
    for garbage in (b"", b"\0\0\0\x02{}", b"\x05\0\0\0abc", b'\0\0\0\x09{"code":1', b"\x02\0\0\x01\x80"):
        assert peek_code(garbage) == -1
        assert peek_opaque(garbage) is None


@PROPERTY
@given(st.binary(max_size=80))
def test_any_bytes_can_be_peeked_at_and_decoded_or_refused(frame: bytes) -> None:
    peek_code(frame)
    peek_opaque(frame)
    for decoder in (decode_send, decode_pull, decode_update_offset):
        outcome(lambda decoder=decoder: decoder(frame))  # type: ignore[misc]
