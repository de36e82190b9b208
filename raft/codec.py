"""Messages of the core as peer frames carry them.

A message is a flat array of plain values, its code first; entries travel as the frame's body, byte for byte as they
stand in the log. Sender and receiver are not in it: a session has told once who is who (`raft.transport`), so nobody
can speak in another's name by accident.

Promise: any array decodes to a message whose fields have the right types and ranges, or raises `CodecError`. Whether
the content makes sense is the core's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from raft.core.errors import InvariantBroken
from raft.core.log import check_chain
from raft.core.messages import (
    AppendReply,
    AppendRequest,
    Beat,
    BeatReply,
    CampaignNow,
    Message,
    VoteReply,
    VoteRequest,
)
from raft.core.types import EntryId, EntryLike, Health, NodeId
from raft.frames import CodecError

__all__ = ["DRIVER_CODES", "decode_message", "encode_message", "entry_id_fields", "take_entry_id", "take_int"]

VOTE_REQUEST: Final = 1
VOTE_REPLY: Final = 2
APPEND_REQUEST: Final = 3
APPEND_REPLY: Final = 4
BEAT: Final = 5
BEAT_REPLY: Final = 6
CAMPAIGN_NOW: Final = 7
DRIVER_CODES: Final = 16
"""Codes from here on belong to the driver (formation, installation, repair), not to the core."""

NUMBER_MAX: Final = (1 << 63) - 1
_HEALTH = {int(health): health for health in Health}


def take_int(value: Any, low: int = 0) -> int:  # Any: a peer's bytes
    """A plain number from `low` to 2^63-1. Raises CodecError."""
    if type(value) is not int or not low <= value <= NUMBER_MAX:
        raise CodecError(f"{value!r:.40} is not a number from {low} to 2^63-1")
    return value


def _flag(value: Any) -> bool:  # Any: a peer's bytes
    if type(value) is not bool:
        raise CodecError(f"{value!r:.40} is not true or false")
    return value


def _health(value: Any) -> Health:  # Any: a peer's bytes
    health = _HEALTH.get(value) if type(value) is int else None
    if health is None:
        raise CodecError(f"health {value!r:.40} is unknown")
    return health


def entry_id_fields(entry: EntryId) -> tuple[int, int, int, int]:
    """An entry id, flat."""
    return entry.index, entry.term, entry.crc, entry.end


def take_entry_id(fields: Sequence[Any], at: int) -> EntryId:
    """Four numbers from `fields[at]` on. Raises CodecError."""
    return EntryId(*(take_int(value) for value in fields[at : at + 4]))


def encode_message(message: Message) -> list[Any]:
    """The fields of a message; the entries of an append request are not among them (they are the body)."""
    match message:
        case AppendRequest(term=term, prev=prev, last=last, commit=commit, echo=echo):
            return [APPEND_REQUEST, term, *entry_id_fields(prev), *entry_id_fields(last), commit, echo]
        case AppendReply() as m:
            return [
                APPEND_REPLY, m.term, m.match, m.rejected, m.hint_index, m.hint_term, m.first_index,
                int(m.health), m.incarnation,
            ]  # fmt: skip
        case Beat() as m:
            return [BEAT, m.term, m.commit, m.round, m.echo]
        case BeatReply() as m:
            return [BEAT_REPLY, m.term, m.round, int(m.health), m.incarnation]
        case VoteRequest() as m:
            return [VOTE_REQUEST, m.term, *entry_id_fields(m.last), m.nonce, m.pre, m.transfer, m.resumes]
        case VoteReply() as m:
            return [VOTE_REPLY, m.term, m.nonce, m.pre, m.granted, m.sticky]
        case CampaignNow() as m:
            return [CAMPAIGN_NOW, m.term]


def _append_request(f: Sequence[Any], sender: NodeId, to: NodeId) -> Message:
    return AppendRequest(
        term=take_int(f[1]),
        sender=sender,
        to=to,
        prev=take_entry_id(f, 2),
        last=take_entry_id(f, 6),
        commit=take_int(f[10]),
        echo=take_int(f[11]),
    )


def _append_reply(f: Sequence[Any], sender: NodeId, to: NodeId) -> Message:
    return AppendReply(
        term=take_int(f[1]),
        sender=sender,
        to=to,
        match=take_int(f[2]),
        rejected=take_int(f[3], -1),
        hint_index=take_int(f[4]),
        hint_term=take_int(f[5]),
        first_index=take_int(f[6]),
        health=_health(f[7]),
        incarnation=take_int(f[8]),
    )


def _beat(f: Sequence[Any], sender: NodeId, to: NodeId) -> Message:
    return Beat(
        term=take_int(f[1]),
        sender=sender,
        to=to,
        commit=take_int(f[2]),
        round=take_int(f[3]),
        echo=take_int(f[4]),
    )


def _beat_reply(f: Sequence[Any], sender: NodeId, to: NodeId) -> Message:
    return BeatReply(
        term=take_int(f[1]),
        sender=sender,
        to=to,
        round=take_int(f[2]),
        health=_health(f[3]),
        incarnation=take_int(f[4]),
    )


def _vote_request(f: Sequence[Any], sender: NodeId, to: NodeId) -> Message:
    return VoteRequest(
        term=take_int(f[1]),
        sender=sender,
        to=to,
        last=take_entry_id(f, 2),
        nonce=take_int(f[6]),
        pre=_flag(f[7]),
        transfer=_flag(f[8]),
        resumes=_flag(f[9]),
    )


def _vote_reply(f: Sequence[Any], sender: NodeId, to: NodeId) -> Message:
    return VoteReply(
        term=take_int(f[1]),
        sender=sender,
        to=to,
        nonce=take_int(f[2]),
        pre=_flag(f[3]),
        granted=_flag(f[4]),
        sticky=_flag(f[5]),
    )


def _campaign_now(f: Sequence[Any], sender: NodeId, to: NodeId) -> Message:
    return CampaignNow(term=take_int(f[1]), sender=sender, to=to)


_DECODERS: Final[dict[int, tuple[int, Callable[[Sequence[Any], NodeId, NodeId], Message]]]] = {
    VOTE_REQUEST: (10, _vote_request),
    VOTE_REPLY: (6, _vote_reply),
    APPEND_REQUEST: (12, _append_request),
    APPEND_REPLY: (9, _append_reply),
    BEAT: (5, _beat),
    BEAT_REPLY: (5, _beat_reply),
    CAMPAIGN_NOW: (2, _campaign_now),
}


def decode_message(
    fields: Sequence[Any],
    body: memoryview,
    sender: NodeId,
    to: NodeId,
    parse_entries: Callable[[memoryview], Sequence[EntryLike]],
) -> Message:
    """The message in a frame from `sender`. `parse_entries` checks the body and raises CodecError itself."""
    code = fields[0] if fields else None
    known = _DECODERS.get(code) if type(code) is int else None
    if known is None:
        raise CodecError(f"message code {code!r:.40} is unknown")
    count, decode = known
    if len(fields) != count:
        raise CodecError(f"message {code} has {len(fields)} fields instead of {count}")
    message = decode(fields, sender, to)
    if type(message) is AppendRequest:
        entries = parse_entries(body) if len(body) else ()
        if (entries[-1].index if entries else message.prev.index) != message.last.index:
            raise CodecError("an append request does not hold the entries that it announces")
        try:
            check_chain(message.prev, entries)
        except InvariantBroken as error:
            raise CodecError(f"an append request is not a run of the log: {error}") from None
        return replace(message, entries=entries)
    if len(body):
        raise CodecError(f"message {code} has a body")
    return message
