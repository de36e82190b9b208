"""One request inside the broker, and the ways of answering it.

Hot codes get their typed header straight from the bytes (`Typed`); the rest a decoded `Command` in a `Request`.
A processor decodes the header it needs and returns the answer's frame (or None when somebody else
answers later: the intake on commit, a held pull). Errors are `Refused`: a documented code and a remark that says what
to do. The registry turns them into answers, so no processor formats errors by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.replication.base import LeaderHint, ReplyTo
from broker.replication.requests import Answer, Refused
from trimq.wire.codes import ResponseCode, SerializeType
from trimq.wire.command import Command, encode_response
from trimq.wire.requests import Request as Typed

if TYPE_CHECKING:
    from trimq.wire.headers.base import Header

__all__ = ["NO_EXT", "Client", "Refused", "Request", "Typed", "client_of", "later", "leader_ext", "success"]

NO_EXT: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Client:
    """What a client of ours said in HELLO; kept at its connection."""

    client_id: str
    features: frozenset[str]


def client_of(reply: ReplyTo) -> Client | None:
    """Who is on the other end, if it introduced itself; None for foreign clients and forwarded requests."""
    found = getattr(reply, "data", None)
    return found if isinstance(found, Client) else None


@dataclass(slots=True, eq=False)
class Request:
    """A decoded request and where its answer goes."""

    command: Command
    reply: ReplyTo
    size: int = 0
    """Bytes of the frame, for the budgets."""

    @property
    def ext(self) -> Mapping[str, str]:
        return self.command.ext

    @property
    def oneway(self) -> bool:
        return self.command.is_oneway

    @property
    def serialize(self) -> SerializeType:
        return self.command.serialize

    def later(self, ok_frame: bytes | None = None) -> Answer:
        """Where the intake sends the answer once the request's fate is known."""
        command = self.command
        return Answer(self.reply, command.opaque, command.serialize, command.is_oneway, "pid" in command.ext, ok_frame)

    def success(self, ext: Mapping[str, str] = NO_EXT, *, body: bytes = b"", remark: str = "") -> bytes:
        command = self.command
        return encode_response(command.opaque, command.serialize, ResponseCode.SUCCESS, ext, remark, body)

    def answer(self, code: int, remark: str, ext: Mapping[str, str] = NO_EXT, *, body: bytes = b"") -> bytes:
        command = self.command
        return encode_response(command.opaque, command.serialize, code, ext, remark, body)


_TYPES = tuple(SerializeType)


def later(typed: Typed[Header], reply: ReplyTo, ok_frame: bytes | None = None, *, ours: bool = False) -> Answer:
    """Where the intake sends the answer to a hot request once its fate is known."""
    return Answer(reply, typed.opaque, _TYPES[typed.serialize], typed.is_oneway, ours, ok_frame)


def success(typed: Typed[Header]) -> bytes:
    """The plain "done" to a hot request."""
    return encode_response(typed.opaque, typed.serialize, ResponseCode.SUCCESS, NO_EXT)


def leader_ext(hint: LeaderHint) -> dict[str, str]:
    """The fields by which an answer tells a client who leads; empty when nobody is known to."""
    if not hint.addr:
        return {"leaderTerm": str(hint.term)} if hint.term else {}
    return {"leaderAddr": hint.addr, "leaderId": hint.leader_id, "leaderTerm": str(hint.term)}
