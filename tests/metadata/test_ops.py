"""The control payload: every op there and back, canonical bytes, and nothing unknown is skipped."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.metadata import ops
from broker.metadata.membership import decode_membership
from broker.metadata.timer_ops import TimerCancel, TimerDone
from broker.metadata.transaction_ops import End, Half, HalfChecked, HalfEnd
from broker.replication.membership import GroupDetail, encode_membership, member_of
from raft.core.types import Membership

ids = st.integers(1, 2**31 - 1)
offsets = st.integers(0, 2**63 - 1)
queues = st.integers(0, 65_535)
names = st.text(max_size=20)
scalars = st.one_of(offsets, names, st.binary(max_size=20))
texts = st.dictionaries(names, names, max_size=3)

EVERY_OP = st.one_of(
    st.builds(ops.TopicPut, ids, names, queues, queues, queues, queues, queues, st.booleans(), texts),
    st.builds(ops.TopicDel, ids),
    st.builds(ops.GroupPut, ids, names, st.dictionaries(names, scalars, max_size=3)),
    st.builds(ops.GroupDel, ids, st.booleans()),
    st.builds(ops.OffsetsPut, st.lists(st.tuples(ids, ids, queues, offsets), max_size=5)),
    st.builds(ops.Reset, ids, st.lists(st.tuples(ids, queues, offsets), max_size=5), names),
    st.builds(
        ops.Producers,
        st.lists(
            st.builds(
                ops.ProducerRun,
                st.integers(0, 2**64 - 1),
                offsets,
                offsets,
                st.integers(1, 65_535),
                offsets,
                queues,
            ),
            max_size=3,
        ),
    ),
    st.builds(ops.OwnRecords, st.lists(st.tuples(queues, queues), max_size=5)),
    st.builds(ops.MembersPut, ids, st.lists(names, max_size=4).map(tuple)),
    st.builds(ops.Locks, ids, names, st.lists(st.tuples(ids, queues), max_size=4)),
    st.builds(ops.Progress, names, st.one_of(offsets, names), scalars),
    st.builds(ops.ConfigPut, names, names, names),
    st.builds(ops.InSync, offsets, st.lists(names, max_size=3).map(tuple), offsets),
    st.builds(ops.Feature, offsets),
    st.builds(Half, offsets, offsets, offsets),
    st.builds(HalfEnd, offsets, st.sampled_from(End), queues, st.integers(-1, 2**63 - 1), st.integers(-1, 2**63 - 1)),
    st.builds(TimerDone, queues, offsets, offsets, offsets, st.lists(offsets, max_size=3).map(tuple)),
    st.builds(TimerCancel, queues, offsets),
    st.builds(HalfChecked, st.lists(offsets, max_size=5)),
)


@given(st.integers(0, 2**50), st.lists(EVERY_OP, min_size=1, max_size=5))
def test_a_payload_is_canonical_and_decodes_to_the_same_ops(log_time: int, given_ops: list[ops.Op]) -> None:
    payload = ops.encode_payload(log_time, given_ops)
    assert ops.decode_payload(payload) == (log_time, given_ops)
    assert ops.decode_payload(memoryview(payload)) == (log_time, given_ops)
    assert cbor2.dumps(cbor2.loads(payload), canonical=True) == payload


@pytest.mark.parametrize("count", [0, 1, 23, 24, 255, 256, 65_535, 65_536])
def test_assembling_is_encoding(count: int) -> None:
    rows = [ops.TopicDel(1)] * count
    if not count:
        assert ops.encode_payload(5, rows) == b""
    else:
        assert ops.encode_payload(5, rows) == cbor2.dumps([1, 5, [[2, 1]] * count], canonical=True)


def test_every_code_has_a_level() -> None:
    assert sorted(ops.LEVEL_OF) == [*range(1, 13), *range(14, 19), 24, 25, *range(32, 37)]


@pytest.mark.parametrize("payload", [[2, 5, []], [1, 5, [[13, 1]]], [1, 5, [[63]]], [1, 5, [["x"]]], [1, 5, [[True]]]])
def test_what_is_unknown_was_written_by_a_newer_version(payload: Any) -> None:
    with pytest.raises(ops.NewerVersion, match="written by a newer version"):
        ops.decode_payload(cbor2.dumps(payload))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        cbor2.dumps(1),
        cbor2.dumps([1, 2]),
        cbor2.dumps([1, "t", []]),
        cbor2.dumps([1, -5, []]),
        cbor2.dumps([1, 5, {}]),
        cbor2.dumps([1, 5, [[]]]),
        cbor2.dumps([1, 5, [7]]),
        cbor2.dumps([1, 5, [[2]]]),
        cbor2.dumps([1, 5, [[2, 1, 1]]]),
        cbor2.dumps([1, 5, [[2, 0]]]),
        cbor2.dumps([1, 5, [[2, True]]]),
        cbor2.dumps([1, 5, [[2, 1.5]]]),
        cbor2.dumps([1, 5, [[5, [[1, 1, 65_536, 0]]]]]),
        cbor2.dumps([1, 5, [[5, 7]]]),
        cbor2.dumps([1, 5, [[7, [[1, 0, 0, 0, 0, 0]]]]]),
        cbor2.dumps([1, 5, [[7, [[1, 0, 0, 1, 0]]]]]),
        cbor2.dumps([1, 5, [[7, [[-1, 0, 0, 1, 0, 0]]]]]),
        cbor2.dumps([1, 5, [[7, [[1, True, 0, 1, 0, 0]]]]]),
        cbor2.dumps([1, 5, [[1, 1, b"name", 1, 1, 6, 0, 0, False, {}]]]),
        cbor2.dumps([1, 5, [[3, 1, "name", {"key": None}]]]),
        cbor2.dumps([1, 5, [[11, "kind", b"key", 1]]]),
        cbor2.dumps([1, 5, [[16, 1, -1, 0]]]),
        cbor2.dumps([1, 5, [[17, 1, 7, 0, 0, 0]]]),
        cbor2.dumps([1, 5, [[18, [-1]]]]),
    ],
)
def test_what_is_malformed_stops_the_group_too(payload: bytes) -> None:
    with pytest.raises(ops.ControlError):
        ops.decode_payload(payload)


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_raise_the_control_error(payload: bytes) -> None:
    try:
        ops.decode_payload(payload)
    except ops.ControlError:
        pass


def test_a_queue_key_is_topic_and_queue() -> None:
    key = ops.key_of(0x1234, 0xFFFF)
    assert (key, ops.tid_of(key), ops.queue_of(key)) == (0x1234FFFF, 0x1234, 0xFFFF)


def test_a_membership_payload_reads_as_consensus_wrote_it() -> None:
    member = member_of("n0", rank=1, address="10.0.0.1:40911", client_address="10.0.0.1:10911", uuid="ab" * 16)
    detail = GroupDetail(lineage=2**64 - 1, segment_bytes=1 << 20)
    log_time, view = decode_membership(encode_membership(Membership((member,), (), detail), 99))
    assert (log_time, view.strategy, view.segment_bytes, view.lineage) == (99, "raft", 1 << 20, 2**64 - 1)
    assert view.voters == (("n0", 1, "10.0.0.1:40911", "10.0.0.1:10911", "ab" * 16),)
    with pytest.raises(ops.NewerVersion):
        decode_membership(cbor2.dumps([2, 0, {}]))
    for damaged in (b"", cbor2.dumps([1]), cbor2.dumps([1, 0, {}]), cbor2.dumps([1, 0, 7])):
        with pytest.raises(ops.ControlError):
            decode_membership(damaged)
