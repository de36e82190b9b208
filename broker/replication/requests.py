"""What the intake is given and what it says no with.

Plain values: processors fill them from the wire, services of the broker from their own decisions. Nothing here knows
how a request is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from broker.metadata.ops import Op
from broker.replication.base import NO_LEADER, LeaderHint, ReplicatorError, ReplyTo

__all__ = [
    "MARK_BYTES",
    "NO_HOST",
    "Answer",
    "OutcomeUnknown",
    "ProducerSequence",
    "PutMessage",
    "Refused",
    "RunAnswer",
]

NO_HOST = bytes(8)
"""An unknown IPv4 address and port, as records store it."""
MARK_BYTES = 64
"""Upper bound of an op that `PutMessage.mark` makes."""


class ProducerSequence(NamedTuple):
    """Where a send stands in the numbering of our own client (ext `pid`, `pe`, `ps`, `pf`)."""

    pid: int
    """The 16 hex digits as an unsigned 64-bit number."""
    epoch: int
    first: int
    floor: int
    """Everything below it is settled for this producer."""


@dataclass(slots=True)
class Answer:
    """Where and how the answer to one request goes once its fate is known."""

    reply: ReplyTo
    opaque: int
    serialize: int
    """The form of the request's header (`SerializeType`): the answer takes the same."""
    oneway: bool = False
    """Nobody reads an answer: none is made."""
    ours: bool = False
    """The client said HELLO: it understands codes from 9100 (NOT_STORED, OUTCOME_UNKNOWN)."""
    ok_frame: bytes | None = None
    """Sent on success instead of a send response (send-back, topic creation ...)."""


@dataclass(slots=True)
class RunAnswer:
    """Where the answers to a run of sends go, all of one connection and with JSON headers."""

    reply: ReplyTo
    opaques: Sequence[int]
    ours: bool


@dataclass(slots=True)
class PutMessage:
    """One message to store. Also the head of a batch, whose elements bring flag, body and properties of their own."""

    topic: bytes
    queue_id: int
    """Negative: the intake picks one."""
    body: bytes | memoryview
    properties: bytes = b""
    flag: int = 0
    sys_flag: int = 0
    """The client's bits; host and multi-tag bits are set here, from the addresses and the topic."""
    born_ms: int = 0
    born_host: bytes = NO_HOST
    """Address and port: 8 bytes (IPv4) or 20 (IPv6)."""
    reconsume_times: int = 0
    prepared_offset: int = 0
    sequence: tuple[int, int, int, int] | None = None
    """A `ProducerSequence`, or a plain tuple of the same four numbers."""
    again: bool = False
    """The application sends the same message again after an unknown outcome: look its id up before storing."""
    own: bool = False
    """The broker's own append (retried, delayed, committed): never checked for duplicates, marked by op 8."""
    default_topic: bytes = b"TBW102"
    default_queues: int = 4
    mark: Callable[[int, int, int], Op] | None = None
    """Makes an op that belongs into the entry of this message, from its queue, queue offset and position. At most
    `MARK_BYTES` of CBOR. Not for batches."""
    transaction_id: str = ""
    """Goes into the send response when not empty."""
    recall_handle: str = ""
    """Goes into the send response when not empty."""
    answer_queue: int | None = None
    """The queue that the response names, when that is not the one in which the message is stored."""
    producer_group: str = ""
    """Named in the log line that tells of a producer's first repeated message."""
    unit: bool = False
    """The producer runs in unit mode: a topic that its message creates is marked so."""


@dataclass(slots=True, eq=False)
class Refused(Exception):
    """The request is not stored and the client is told why: `code` is a response code."""

    code: int
    remark: str
    ext: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.remark} (code {self.code})"


class OutcomeUnknown(ReplicatorError):
    """What was asked for may or may not be in the log; `hint` says who may know."""

    def __init__(self, hint: LeaderHint = NO_LEADER) -> None:
        super().__init__("leadership ended before the change was committed: it may or may not take effect")
        self.hint = hint
