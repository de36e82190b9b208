"""Answers from templates are the frames that the general encoder would write."""

from __future__ import annotations

import pytest

from trimq.wire.command import Command, decode
from trimq.wire.frame import FrameDecoder
from trimq.wire.headers.pull import PullResponse
from trimq.wire.headers.send import SendResponse
from trimq.wire.responses import MAX_LISTED_IDS, encode_pull_head, encode_send_response, joined_ids


def decoded(frame: bytes) -> Command:
    (inner,) = FrameDecoder().feed(frame)
    return decode(inner)


@pytest.mark.parametrize("serialize", [0, 1, 2])
def test_an_answer_to_a_send(serialize: int) -> None:
    frame = encode_send_response(5, serialize, "7F00000100002A9F00000000000003E8", 3, 42)
    answer = decoded(frame)
    assert (answer.code, answer.opaque, answer.flag, answer.serialize) == (0, 5, 1, serialize)
    assert answer.ext == {
        "MSG_REGION": "DefaultRegion",
        "TRACE_ON": "true",
        "msgId": "7F00000100002A9F00000000000003E8",
        "queueId": "3",
        "queueOffset": "42",
    }


@pytest.mark.parametrize("serialize", [0, 1])
def test_an_answer_to_a_send_with_everything(serialize: int) -> None:
    frame = encode_send_response(
        -1, serialize, "A,B", 0, -1, code=11, transaction_id='t"1', region='r"x', trace_on=False, dup=True
    )
    answer = decoded(frame)
    assert (answer.code, answer.opaque) == (11, -1)
    assert SendResponse.from_ext(answer.ext) == SendResponse(
        msg_id="A,B", queue_id=0, queue_offset=-1, transaction_id='t"1', region='r"x', trace_on=False, dup=True
    )


@pytest.mark.parametrize("serialize", [0, 1, 2])
def test_the_head_of_a_pull_answer_and_its_records(serialize: int) -> None:
    head = encode_pull_head(8, serialize, 0, 15, 10, 100, 7, suggest=1, remark="FOUND")
    answer = decoded(head + b"records")
    assert (answer.body, answer.remark, answer.opaque) == (b"records", "FOUND", 8)
    assert PullResponse.from_ext(answer.ext) == PullResponse(
        suggest_which_broker_id=1, next_begin_offset=15, min_offset=10, max_offset=100
    )


def test_all_four_offsets_are_there_on_every_code() -> None:
    for code in (0, 19, 20, 21):
        ext = decoded(encode_pull_head(1, 0, code, 0, 0, 0, 0)).ext
        assert ext.keys() == {"suggestWhichBrokerId", "nextBeginOffset", "minOffset", "maxOffset"}


def test_ids_of_a_large_batch_fit_a_header() -> None:
    ids = ["7F00000100002A9F00000000000003E8"] * 5000
    listed = joined_ids(ids)
    assert listed.count(",") == MAX_LISTED_IDS - 1
    assert decoded(encode_send_response(1, 0, listed, 0, 0)).ext["msgId"] == listed
    assert joined_ids(ids[:1]) == ids[0]
