"""The thin client: one socket, prebuilt requests, answers only counted. It shows what the *server* can do.

Every broker is driven by the same loop; what differs is a `Dialect`, which writes requests and counts what was settled.
The client takes 0.05 to 0.3 of a core, so the two cores belong to the servers. A closed loop: `window` requests are in
flight at any time. Latencies are taken first in, first out: exact where a connection is answered in order (all brokers
here answer one queue's sends so), else right in the sum and smoothed at the edges.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

__all__ = ["Dialect", "Refused", "Run", "drive", "percentile"]

_RECEIVE = 1 << 18
_SILENCE_S = 15.0
_WARM_UP_SHARE = 0.15


class Refused(Exception):
    """A server answered with an error, closed the connection or fell silent: the run proves nothing."""


class Dialect(Protocol):
    """How one broker is spoken to. Made anew for every run; holds the state of its connection."""

    def hello(self, link: socket.socket) -> None:
        """Whatever comes before the first request."""

    def requests(self, count: int) -> bytes:
        """The next `count` requests, ready for the wire."""

    def settled(self, data: bytes) -> tuple[int, int]:
        """How many requests the bytes just received settle, and how many messages that makes. Raises Refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one run reached."""

    messages: int
    """Settled inside the measured time."""
    seconds: float
    p50_ms: float
    p99_ms: float
    all_messages: int
    """With the warm-up's: what the processes' CPU time was spent on."""

    @property
    def per_second(self) -> float:
        return self.messages / self.seconds


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of ascending values; NaN when there are none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def drive(
    address: tuple[str, int], dialect: Dialect, *, window: int, seconds: float = 1e9, messages: int | None = None
) -> Run:
    """Keep `window` requests in flight for `seconds`, or until `messages` came. Raises Refused, OSError."""
    with socket.create_connection(address, timeout=_SILENCE_S) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        dialect.hello(link)
        return _loop(link, dialect, window, seconds, messages)


def _loop(link: socket.socket, dialect: Dialect, window: int, seconds: float, wanted: int | None) -> Run:
    sent: deque[tuple[float, int]] = deque()
    waits: list[tuple[float, int]] = []
    begin = now = perf_counter()
    count_from = begin + seconds * _WARM_UP_SHARE if wanted is None else begin
    end = begin + seconds
    total = counted = 0
    in_flight = 0
    last = now
    link.sendall(dialect.requests(window))
    sent.append((now, window))
    in_flight = window
    while in_flight:
        try:
            data = link.recv(_RECEIVE)
        except TimeoutError:
            raise Refused(f"silent for {_SILENCE_S:g} s with {in_flight} requests in flight") from None
        if not data:
            raise Refused(f"the server closed the connection with {in_flight} requests in flight")
        done, came = dialect.settled(data)
        now = perf_counter()
        total += came
        if count_from <= now <= end:
            counted += came
            last = now
        in_flight -= done
        _waited(sent, waits if now >= count_from else [], now, done)
        if now < end and done and (wanted is None or total < wanted):
            link.sendall(dialect.requests(done))
            sent.append((now, done))
            in_flight += done
        elif wanted is not None and total >= wanted:
            break
    spent = (min(now, end) if wanted is None else last) - count_from
    p50, p99 = _weighted(waits, 0.5), _weighted(waits, 0.99)
    return Run(messages=counted, seconds=spent, p50_ms=p50 * 1e3, p99_ms=p99 * 1e3, all_messages=total)


def _waited(sent: deque[tuple[float, int]], waits: list[tuple[float, int]], now: float, done: int) -> None:
    while done and sent:
        at, count = sent[0]
        waits.append((now - at, min(done, count)))
        if count > done:
            sent[0] = (at, count - done)
            return
        done -= count
        sent.popleft()


def _weighted(waits: list[tuple[float, int]], share: float) -> float:
    waits.sort()
    left = share * sum(count for _, count in waits)
    for wait, count in waits:
        left -= count
        if left <= 0:
            return wait
    return float("nan")
