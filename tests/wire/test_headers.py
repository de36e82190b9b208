"""Typed headers: all of them, from text and from whatever else clients send."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.bounds import FEW, i32, i64, json_values, some_text, text
from trimq.errors import ProtocolError
from trimq.wire.headers import admin, client, leader, offset, pull, query, route, send
from trimq.wire.headers.base import Header
from trimq.wire.headers.send import SendHeader, SendHeaderV2

FAMILIES = (admin, client, leader, offset, pull, query, route, send)
HEADERS: list[type[Header]] = [
    value
    for family in FAMILIES
    for value in vars(family).values()
    if isinstance(value, type) and issubclass(value, Header) and value is not Header
]

NAMES = [f"{header.__module__}.{header.__name__}" for header in HEADERS]


def values_for(header: type[Header]) -> st.SearchStrategy[Header]:
    """Instances with every field set to something allowed and not empty (an empty text equals a missing one)."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for info in msgspec.structs.fields(header):
        kind = str(info.type)
        if "bool" in kind:
            fields[info.name] = st.booleans()
        elif "str" in kind:
            fields[info.name] = some_text
        else:
            fields[info.name] = i32 if "2147483647" in kind else i64
    return st.builds(header, **fields)


@pytest.mark.parametrize("header", HEADERS, ids=NAMES)
def test_every_header_survives_the_way_through_text(header: type[Header]) -> None:
    @FEW
    @given(values_for(header))
    def check(value: Header) -> None:
        ext = value.to_ext()
        assert all(type(key) is str and type(field) is str for key, field in ext.items())
        again = header.from_ext(ext)
        quiet = [name for name in header.quiet if getattr(value, name) in (False, -1)]
        assert again == value or quiet
        assert again.to_ext() == ext

    check()


@pytest.mark.parametrize("header", HEADERS, ids=NAMES)
def test_every_header_reads_or_raises_a_protocol_error(header: type[Header]) -> None:
    names = st.sampled_from(header.__struct_encode_fields__) if header.__struct_encode_fields__ else text

    @FEW
    @given(st.dictionaries(names | text, json_values, max_size=8))
    def check(ext: dict[str, object]) -> None:
        try:
            header.from_ext(ext)
        except ProtocolError:
            pass

    check()


def test_an_error_names_the_field() -> None:
    with pytest.raises(ProtocolError, match="topic"):
        route.GetRouteHeader.from_ext({})
    good = {"consumerGroup": "g", "topic": "T", "queueId": "1", "commitOffset": "5"}
    with pytest.raises(ProtocolError, match="queueId"):
        offset.UpdateOffsetHeader.from_ext(good | {"queueId": "one"})
    with pytest.raises(ProtocolError, match="queueId"):
        offset.UpdateOffsetHeader.from_ext(good | {"queueId": str(2**31)})
    with pytest.raises(ProtocolError, match="commitOffset"):
        offset.UpdateOffsetHeader.from_ext(good | {"commitOffset": ""})


def test_numbers_and_booleans_are_read_in_every_spelling() -> None:
    base = {"producerGroup": "g", "topic": "T", "queueId": 3, "sysFlag": "0", "bornTimestamp": 1.7e12}
    for yes in ("true", "TRUE", "1", 1, True):
        header = SendHeader.from_ext(base | {"batch": yes})
        assert (header.batch, header.queue_id, header.born_timestamp) == (True, 3, 1_700_000_000_000)
    for no in ("false", "0", 0, False, "", None):
        assert SendHeader.from_ext(base | {"batch": no}).batch is False


SHORT = {
    "a": "pg",
    "b": "T",
    "c": "TBW102",
    "d": "4",
    "e": "1",
    "f": "0",
    "g": "1700000000000",
    "h": "7",
    "i": "k\x01v",
}


def test_both_spellings_of_a_send_are_one_class() -> None:
    header = SendHeader.from_ext(SHORT | {"n": "broker-a", "pid": "00000000000000ff", "pe": "0", "ps": "9", "pf": "3"})
    assert isinstance(header, SendHeader)
    assert (header.topic, header.broker_name, header.flag, header.properties) == ("T", "broker-a", 7, "k\x01v")
    assert header.sequence == (255, 0, 9, 3)
    long = SendHeader(**msgspec.structs.asdict(header))
    assert SendHeader.from_ext(long.to_ext()) == long
    assert SendHeader.from_ext(long.to_short_ext()) == header
    assert long.to_short_ext() == header.to_ext()
    assert SendHeaderV2.from_ext(header.to_ext()) == header


def test_a_plain_send_carries_none_of_our_fields() -> None:
    ours = {"pid", "pe", "ps", "pf", "again", "fwd", "fwdFrom"}
    assert not ours & SendHeader.from_ext(SHORT).to_ext().keys()
    assert "dup" not in send.SendResponse(msg_id="x").to_ext()


@pytest.mark.parametrize(
    "fields",
    [
        {"pid": "xyz", "pe": "0", "ps": "0", "pf": "0"},
        {"pid": "1" * 17, "pe": "0", "ps": "0", "pf": "0"},
        {"pid": "-1", "pe": "0", "ps": "0", "pf": "0"},
        {"pid": "1", "ps": "0", "pf": "0"},
        {"pid": "1", "pe": "0", "pf": "0"},
        {"pid": "1", "pe": "0", "ps": "0"},
        {"pid": "1", "pe": "0", "ps": "2", "pf": "3"},
    ],
)
def test_a_malformed_sequence_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ProtocolError, match="bad sequence"):
        _ = SendHeader.from_ext(SHORT | fields).sequence
    assert SendHeader.from_ext(SHORT).sequence is None


def test_a_send_back_of_an_old_client_has_three_fields() -> None:
    header = send.SendBackHeader.from_ext({"group": "g", "offset": 1000, "delayLevel": 0})
    assert (header.group, header.offset, header.delay_level, header.max_reconsume_times) == ("g", 1000, 0, None)


def test_a_leader_hint_is_found_or_ignored() -> None:
    hint = leader.LeaderHint(leader_addr="10.0.0.1:10911", leader_id="n1", leader_term=7)
    assert leader.LeaderHint.find({"msgId": "x"} | hint.to_ext()) == hint
    assert leader.LeaderHint.find({"msgId": "x"}) is None
    assert leader.LeaderHint.find({"leaderAddr": "x", "leaderTerm": "soon"}) is None


def test_topics_of_a_consume_stats_request() -> None:
    def topics(**fields: str) -> list[str]:
        return admin.ConsumeStatsHeader.from_ext({"consumerGroup": "g"} | fields).topics()

    assert topics() == []
    assert topics(topic="A") == ["A"]
    assert topics(topicList="A;B;") == ["A", "B"]
