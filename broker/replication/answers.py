"""Frames that answer requests of the intake: made at admission for success, afterwards for everything else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from broker.replication.base import LeaderHint, Outcome, Replies, Shortfall, Verdict
from broker.replication.requests import Answer, Refused, RunAnswer
from trimq.wire.codes import ResponseCode, SerializeType
from trimq.wire.command import decode, encode, encode_response
from trimq.wire.responses import encode_send_response, joined_ids, send_response_parts

__all__ = ["SendAnswers", "failure_frame", "leader_ext", "plain_ok", "refusal_frame", "settle"]

_SHORT: Final = {
    Shortfall.FLUSH_DISK_TIMEOUT: int(ResponseCode.FLUSH_DISK_TIMEOUT),
    Shortfall.FLUSH_SLAVE_TIMEOUT: int(ResponseCode.FLUSH_SLAVE_TIMEOUT),
    Shortfall.SLAVE_NOT_AVAILABLE: int(ResponseCode.SLAVE_NOT_AVAILABLE),
}


class SendAnswers:
    """Makes the success answers of sends. `store_host` is the address and port that records carry."""

    __slots__ = ("_prefix", "_region", "_trace_on", "parts")

    def __init__(self, store_host: bytes, region: str, *, trace_on: bool) -> None:
        self._prefix = store_host.hex().upper()
        self._region = region
        self._trace_on = trace_on
        self.parts = send_response_parts(self._prefix, region, trace_on=trace_on)
        """The constant parts of the header of a plain send's answer, for who makes many at once."""

    def stored(
        self,
        answer: Answer,
        queue_id: int,
        queue_offset: int,
        positions: Sequence[int],
        transaction_id: str = "",
        *,
        duplicate: bool = False,
        recall_handle: str = "",
    ) -> bytes:
        """The answer to a send whose messages lie at `positions`; `queue_offset` is the first one's."""
        if answer.ok_frame is not None:
            return answer.ok_frame
        ids = ["%s%016X" % (self._prefix, position) for position in positions]  # noqa: UP031  twice as fast
        return encode_send_response(
            answer.opaque,
            answer.serialize,
            joined_ids(ids) if len(ids) > 1 else ids[0],
            queue_id,
            queue_offset,
            transaction_id=transaction_id,
            region=self._region,
            trace_on=self._trace_on,
            dup=duplicate,
            recall_handle=recall_handle,
        )

    def stored_one(self, answer: Answer, queue_id: int, queue_offset: int, position: int) -> bytes:
        """The same for the plain case, which is nearly all of them."""
        if answer.ok_frame is not None:
            return answer.ok_frame
        return encode_send_response(
            answer.opaque,
            answer.serialize,
            "%s%016X" % (self._prefix, position),  # noqa: UP031
            queue_id,
            queue_offset,
            region=self._region,
            trace_on=self._trace_on,
        )


def plain_ok(answer: Answer) -> bytes:
    """Success without anything to say."""
    return answer.ok_frame or encode_response(answer.opaque, answer.serialize, 0, {})


def leader_ext(leader: LeaderHint) -> dict[str, str]:
    """The fields by which any answer of ours may name the leader."""
    if not leader.addr:
        return {}
    return {"leaderAddr": leader.addr, "leaderId": leader.leader_id, "leaderTerm": str(leader.term)}


def failure_frame(answer: Answer, outcome: Outcome) -> bytes:
    """What a request is told whose entry was lost or whose fate is unknown.

    A foreign client hears codes after which it repeats the same message; its id makes that harmless.
    """
    if outcome.verdict is Verdict.LOST:
        code = ResponseCode.NOT_STORED if answer.ours else ResponseCode.SERVICE_NOT_AVAILABLE
        remark = "not stored: leadership changed before the request was replicated"
    else:
        code = ResponseCode.OUTCOME_UNKNOWN if answer.ours else ResponseCode.SYSTEM_ERROR
        remark = "outcome unknown: not confirmed in time, it may be stored; repeat the same request"
    return encode_response(answer.opaque, answer.serialize, int(code), leader_ext(outcome.leader), remark)


def refusal_frame(answer: Answer, refused: Refused) -> bytes:
    """A refusal that is known only after the request's own call returned."""
    return encode_response(answer.opaque, answer.serialize, refused.code, refused.ext, refused.remark)


def settle(answers: Sequence[tuple[Answer | RunAnswer, bytes]], outcome: Outcome, replies: Replies) -> None:
    """Hand every answer of an entry its frame."""
    add = replies.add
    if outcome.verdict is Verdict.OK:
        for answer, frame in answers:
            add(answer.reply, frame)
        return
    for answer, frame in _one_by_one(answers):
        if outcome.verdict is Verdict.SHORT:
            add(answer.reply, _short(frame, outcome.shortfall))
        else:
            add(answer.reply, failure_frame(answer, outcome))


def _one_by_one(answers: Iterable[tuple[Answer | RunAnswer, bytes]]) -> Iterator[tuple[Answer, bytes]]:
    for answer, frame in answers:
        if isinstance(answer, Answer):
            yield answer, frame
            continue
        at = 0
        for opaque in answer.opaques:
            end = at + 4 + int.from_bytes(frame[at : at + 4], "big")
            yield Answer(answer.reply, opaque, SerializeType.JSON, ours=answer.ours), frame[at:end]
            at = end


def _short(frame: bytes, shortfall: Shortfall) -> bytes:
    """The same answer with the code that says where the message is missing: it *is* stored, so the fields stand."""
    cmd = decode(frame[4:])
    cmd.code = _SHORT.get(shortfall, int(ResponseCode.SYSTEM_ERROR))
    cmd.remark = shortfall.value
    return encode(cmd)
