"""Message ids: where a message lies (offset id) and which message it is (unique id).

An **offset id** is the store's address and the position in its log, as upper-case hex: 32 digits for IPv4, 56 for IPv6.
Transactions and tools read the position back out of it.

A **unique id** (property UNIQ_KEY) is made by the producer: ten bytes of its own, milliseconds since the start of the
month, a counter. It looks like the ids of Java clients, whose tools read the time from it, but the ten bytes are random
rather than an address, a process id and a hash. `IdSource` never gives the same id twice: time is not allowed to go
back within a source, and a millisecond whose counter is used up borrows the next one.

The source in force stands in a `ContextVar`, so `Message(...)` needs no argument and a simulator owns chance and time
all the same. A process installs its default once with `set_default_source`.
"""

from __future__ import annotations

import random
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final, Protocol

from trimq.errors import BadRequest, RecordError

__all__ = [
    "ID_SOURCE",
    "IdSource",
    "host_bytes",
    "host_text",
    "new_message_id",
    "offset_message_id",
    "parse_offset_message_id",
    "set_default_source",
    "unique_id_time_ms",
]


class _WallClock(Protocol):
    def wall_ms(self) -> int: ...


_PREFIX_BYTES: Final = 10


class IdSource:
    """Makes unique ids for one producer process (or one simulated client)."""

    __slots__ = ("_clock", "_counter", "_last_ms", "_month_end", "_month_start", "_prefix")

    def __init__(self, rng: random.Random, clock: _WallClock) -> None:
        self._prefix = rng.randbytes(_PREFIX_BYTES).hex().upper()
        self._counter = rng.randrange(0x10000)
        self._clock = clock
        self._last_ms = 0
        self._month_start = 0
        self._month_end = 0

    def new_id(self) -> str:
        """32 upper-case hex digits, never the same twice."""
        now = self._clock.wall_ms()
        self._counter = counter = (self._counter + 1) & 0xFFFF
        if now > self._last_ms:
            self._last_ms = now
        else:
            now = self._last_ms
            if counter == 0:
                self._last_ms = now = now + 1
        if not self._month_start <= now < self._month_end:
            self._month_start, self._month_end = _month_around(now)
        return "%s%08X%04X" % (self._prefix, (now - self._month_start) & 0xFFFFFFFF, counter)  # noqa: UP031  twice as fast

    def new_ids(self, count: int) -> list[str]:
        """What `count` calls of `new_id` in one moment give, quicker."""
        ids: list[str] = []
        while len(ids) < count:
            ids.append(self.new_id())
            head, counter = ids[-1][:-4], self._counter
            more = min(count - len(ids), 0xFFFF - counter)
            ids += ["%s%04X" % (head, each) for each in range(counter + 1, counter + 1 + more)]  # noqa: UP031
            self._counter = counter + more
        return ids


def _month_around(wall_ms: int) -> tuple[int, int]:
    start = datetime.fromtimestamp(wall_ms / 1000, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return round(start.timestamp() * 1000), round(following.timestamp() * 1000)


def unique_id_time_ms(unique_id: str, now_ms: int) -> int | None:
    """When a unique id was made (UTC milliseconds), taking the latest month that does not lie ahead of `now_ms`.

    None when it is not an id of this shape. The answer is a hint: ids of other clients count from their own time zone.
    """
    if len(unique_id) not in (32, 56):
        return None
    try:
        since = int(unique_id[-12:-4], 16)
    except ValueError:
        return None
    start, _ = _month_around(now_ms)
    if start + since > now_ms:
        start, _ = _month_around(start - 1)
    return start + since


ID_SOURCE: ContextVar[IdSource] = ContextVar("ID_SOURCE")
"""The source that `new_message_id` uses in this context."""

_default: list[IdSource] = []


def set_default_source(source: IdSource) -> None:
    """Install the source for contexts that have none of their own; for the edge of a process."""
    _default[:] = [source]


def new_message_id() -> str:
    """A fresh unique id from the source in force. Raises `BadRequest` when the process installed none."""
    source = ID_SOURCE.get(None)
    if source is None:
        if not _default:
            raise BadRequest("no id source: import trimq, or set trimq.message.ids.ID_SOURCE")
        source = _default[0]
    return source.new_id()


def offset_message_id(host: bytes, position: int) -> str:
    """The offset id of a message: `host` as in a record (8 or 20 bytes), position in the log."""
    return (host + position.to_bytes(8, "big")).hex().upper()


def parse_offset_message_id(text: str) -> tuple[bytes, int]:
    """(host bytes, position) of an offset id. Raises `RecordError` when it is not one."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(text) not in (32, 56) or len(raw) * 2 != len(text):
        raise RecordError(f"{text[:60]!r} is no offset message id: 32 or 56 hex digits wanted")
    return raw[:-8], int.from_bytes(raw[-8:], "big", signed=True)


@lru_cache(maxsize=4096)
def host_bytes(address: str) -> bytes:
    """`ip:port` as a record carries it: address bytes, port as 4 bytes. Raises `BadRequest` when it is not one.

    The port follows the last colon; brackets around an IPv6 address are optional. An IPv4 address in IPv6 clothes
    (`::ffff:10.0.0.1`) counts as IPv4, since old consumers cannot read IPv6 hosts.
    """
    host, _, port = address.rpartition(":")
    try:
        number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
        if not 0 <= number <= 65535:
            raise ValueError
        host = host.removeprefix("[").removesuffix("]").partition("%")[0]
        if ":" not in host:
            return inet_pton(AF_INET, host) + number.to_bytes(4, "big")
        raw = inet_pton(AF_INET6, host)
    except (ValueError, OSError):
        raise BadRequest(f"{address!r} is not ip:port") from None
    if raw.startswith(b"\0" * 10 + b"\xff\xff"):
        raw = raw[12:]
    return raw + number.to_bytes(4, "big")


def host_text(host: bytes) -> str:
    """The reverse of `host_bytes`; IPv6 in brackets. Raises `RecordError` unless there are 8 or 20 bytes."""
    port = int.from_bytes(host[-4:], "big")
    if len(host) == 8:
        return f"{inet_ntop(AF_INET, host[:4])}:{port}"
    if len(host) == 20:
        return f"[{inet_ntop(AF_INET6, host[:16])}]:{port}"
    raise RecordError(f"a host of {len(host)} bytes; 8 or 20 wanted")
