"""The words of the client library: messages, queues, receipts, and what to read or filter.

Everything here is a plain value: it opens nothing and waits for nothing. `Message` is what an application makes;
`trimq.client.received.Received` is what comes back.

A `Message` carries its unique id (RocketMQ's UNIQ_KEY) from the moment it is made, and remembers where it was first
sent. That is what makes "send the same Message again" safe: the second attempt goes to the same replica group and
asks it to look the id up before storing anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, TypeAlias

from trimq.client import defaults as _defaults  # noqa: F401  (installs the source of message ids)
from trimq.message.ids import new_message_id

if TYPE_CHECKING:
    from trimq.client.received import Received

__all__ = [
    "Batch",
    "Filter",
    "Message",
    "Position",
    "Queue",
    "Rebalance",
    "Receipt",
    "SendStatus",
    "Sql",
    "Start",
    "Tag",
]


@dataclass(frozen=True, slots=True, order=True)
class Queue:
    """One queue: the unit of order and of assignment. Sorts by topic, replica group, number."""

    topic: str
    group: str
    """The replica group that holds it (RocketMQ's brokerName)."""
    id: int
    """Its number inside the group, from 0."""

    def __str__(self) -> str:
        return f"{self.topic}@{self.group}:{self.id}"


class SendStatus(IntEnum):
    """How safe a stored message is. Everything here means *stored*; only `OK` means replicated as configured.

    The values are RocketMQ's response codes. A Raft group answers `OK` or an error, never one of the others.
    """

    OK = 0
    FLUSH_DISK_TIMEOUT = 10
    SLAVE_NOT_AVAILABLE = 11
    FLUSH_SLAVE_TIMEOUT = 12


@dataclass(frozen=True, slots=True)
class Receipt:
    """A stored message: where it is."""

    id: str
    """The message's unique id (UNIQ_KEY)."""
    queue: Queue
    offset: int
    """Its place in the queue; -1 when a duplicate's first copy has expired from the log."""
    status: SendStatus
    duplicate: bool
    """True when this send found the message already stored, and stored nothing."""
    at: datetime
    """When the answer came, by this machine's clock."""
    offset_id: str = ""
    """RocketMQ's offset message id (broker address and log position), as the broker gave it."""
    leader: str = ""
    """`ip:port` of the broker that answered."""
    recall_handle: str = ""
    """Of a message with `delay` or `at`: what `Producer.recall` needs to cancel it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message to send. Immutable; sending the *same object* twice stores it once (inside one replica group).

    `order_key`: messages with the same key go to the same queue and keep their order. At most one of `delay`, `at` and
    `delay_level` says when it is delivered; nothing is delivered before its time.
    """

    topic: str
    body: bytes
    tag: str | None = None
    keys: Sequence[str] = ()
    """Business keys, each indexed for look-up. They hold no spaces."""
    order_key: str | None = None
    delay: timedelta | None = None
    """Deliver it so long after the broker took it, to the millisecond (RocketMQ: from 5.0 on)."""
    at: datetime | None = None
    """Deliver it at this time, by the broker's clock; a time that is over means at once. An Apache broker before 5.0
    knows neither; the message is not given to it (`BadRequest`)."""
    delay_level: int | None = None
    """Deliver it after the time of one of the broker's delay levels (`messageDelayLevel`), from 1. All versions."""
    properties: Mapping[str, str] = field(default_factory=dict)
    """The application's own properties. Names of RocketMQ's own (`TAGS`, `KEYS`, ...) are refused."""
    id: str = field(default_factory=new_message_id)
    flag: int = 0
    """RocketMQ's 32-bit user flag, carried as it is."""
    _sent_to: Queue | None = field(default=None, init=False, repr=False, compare=False)
    """Where it was first handed to the wire. Set by the producer, once."""
    _carried: Mapping[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Properties of RocketMQ's own that the library sends along (a request's number, say)."""


@dataclass(frozen=True, slots=True)
class Tag:
    """Select by tag: `Tag("paid")`, `Tag("paid || cancelled")`, `Tag("*")` for everything."""

    expression: str = "*"

    @property
    def names(self) -> frozenset[str]:
        """The tags named; empty means all."""
        if self.expression.strip() in ("", "*"):
            return frozenset()
        return frozenset(part.strip() for part in self.expression.split("||") if part.strip())


@dataclass(frozen=True, slots=True)
class Sql:
    """Select by a SQL92 condition over properties, evaluated by the broker: `Sql("price > 10 AND colour = 'red'")`."""

    expression: str


Filter: TypeAlias = "Tag | Sql"

EVERYTHING = Tag("*")
"""The filter that drops nothing."""


class Start(Enum):
    """Where to begin in a queue that this consumer group has never read."""

    FIRST = "first"
    """The oldest message still kept."""
    LAST = "last"
    """Behind the newest message there is now: only what comes from here on."""


Position: TypeAlias = "int | Start | datetime"
"""An offset, an end of the queue, or the first message stored at or after a time."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read of a queue gave."""

    messages: Sequence[Received]
    next_offset: int
    """Read on from here. It may be past the last message when the filter dropped some."""
    first_offset: int
    """The oldest offset still kept."""
    end_offset: int
    """One past the newest."""


@dataclass(frozen=True, slots=True)
class Rebalance:
    """A change of the queues that a consumer holds."""

    gained: frozenset[Queue]
    lost: frozenset[Queue]
    assignment: frozenset[Queue]
    """All queues held after the change."""


def from_ms(ms: int) -> datetime:
    """Milliseconds since 1970 as an aware UTC time."""
    return datetime.fromtimestamp(ms / 1000, tz=UTC)


def to_ms(when: datetime) -> int:
    """Milliseconds since 1970; a naive time is taken as local time, as `datetime.timestamp` does."""
    return round(when.timestamp() * 1000)
