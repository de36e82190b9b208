"""Sends that need the disk before they can be judged: one task, one after the other.

Two kinds. A *suspect*: a foreign client's id was found in the window, but the record it points to is not in memory. And
`again=1`: the application sends a message anew whose outcome it never learnt, so its id is looked up in the key index
from the id's own time on. The index holds what is applied, so the search first waits until everything in flight when it
began is applied too.

While a numbered send (`pid`) waits here, later ones of the same producer wait behind it, in order: they would only be
refused as out of sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from broker.replication.base import Busy
from broker.replication.once import Place, place_of, same_id
from broker.replication.requests import Answer, PutMessage
from broker.store.errors import StoreError
from trimq.message.ids import unique_id_time_ms

if TYPE_CHECKING:
    from broker.replication.once import KeyLookup, LogView
    from trimq.message.batch import BatchElement

__all__ = ["Held", "Job", "Lookups"]

JOBS_MAX: Final = 4096
HELD_MAX: Final = 256
"""Requests of one producer that may wait behind its lookup: our client has at most 64 unsettled."""
_CLOCK_SLACK_MS: Final = 86_400_000
"""An id carries its client's time, the index that of whoever led then: these clocks may differ by this much."""
_ANY_TIME_MS: Final = 1 << 62
_MATCHES_MAX: Final = 64


@dataclass(slots=True)
class Held:
    """A send that is not judged yet."""

    head: PutMessage
    elements: Sequence[BatchElement]
    """One for a plain message."""
    answer: Answer | None
    batch: bool
    """Whether it came as a batch."""


@dataclass(slots=True)
class Job:
    """What has to be found out about a send."""

    send: Held
    term: object
    """Identity of the leadership it came under."""
    ids: Sequence[bytes | None]
    """Unique id of each element."""
    tid: int
    suspects: Sequence[int] = ()
    """Positions of records to read, for a foreign client's send; empty for `again`."""
    records: dict[int, bytes | None] = field(default_factory=dict)
    """Position → the record, None when it has expired."""
    places: dict[int, Place] = field(default_factory=dict)
    """Element number → where its first copy lies (`again`)."""
    failed: bool = False
    """A record could not be read (disk, damage under repair): nothing can be said, so nothing may be stored."""


class Lookups:
    """The queue of jobs and the requests held behind them."""

    def __init__(
        self,
        log: LogView,
        keys: KeyLookup | None,
        *,
        wall_ms: Callable[[], int],
        all_applied: Callable[[object], Awaitable[bool]],
        finish: Callable[[Job], None],
        readmit: Callable[[Held], None],
    ) -> None:
        self._log = log
        self._keys = keys
        self._wall_ms = wall_ms
        self._all_applied = all_applied
        """Waits until everything in flight is applied; False when that leadership is over."""
        self._finish = finish
        self._readmit = readmit
        self._jobs: deque[Job] = deque()
        self._held: dict[int, deque[Held]] = {}
        self._wake = trio.Event()

    def __len__(self) -> int:
        return len(self._jobs) + sum(len(held) for held in self._held.values())

    def holds(self, pid: int) -> bool:
        """Does a send of this producer wait here? Then hold the next one as well."""
        return pid in self._held

    def hold(self, pid: int, send: Held) -> None:
        """Keep a send behind the one that is being looked up. Raises `Busy`."""
        held = self._held[pid]
        if len(held) >= HELD_MAX:
            raise Busy(f"{HELD_MAX} requests wait behind one lookup")
        held.append(send)

    def add(self, job: Job) -> None:
        """Look this up. Raises `Busy`."""
        if len(self._jobs) >= JOBS_MAX:
            raise Busy(f"{JOBS_MAX} lookups wait")
        self._jobs.append(job)
        if job.send.head.sequence is not None:
            self._held.setdefault(job.send.head.sequence[0], deque())
        self._wake.set()

    def drop(self) -> list[Held]:
        """Leadership is over: everything that waits, in order of arrival per producer."""
        sends = [job.send for job in self._jobs]
        sends += [send for held in self._held.values() for send in held]
        self._jobs.clear()
        self._held.clear()
        return sends

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            while self._jobs:
                job = self._jobs[0]
                await self._resolve(job)
                if self._jobs and self._jobs[0] is job:
                    self._jobs.popleft()
                    self._done(job)
            self._wake = trio.Event()
            await self._wake.wait()

    def _done(self, job: Job) -> None:
        self._finish(job)
        sequence = job.send.head.sequence
        if sequence is not None:
            # One of those held may ask for a lookup itself: then the rest is held behind it again.
            for send in self._held.pop(sequence[0], ()):
                self._readmit(send)

    async def _resolve(self, job: Job) -> None:
        try:
            if job.suspects:
                for position in job.suspects:
                    job.records[position] = await self._read(position)
            elif await self._all_applied(job.term):
                for number, uniq in enumerate(job.ids):
                    place = await self._find(job.tid, job.send.head.topic, uniq) if uniq else None
                    if place is not None:
                        job.places[number] = place
        except (OSError, StoreError):
            job.failed = True

    async def _find(self, tid: int, topic: bytes, uniq: bytes) -> Place | None:
        if self._keys is None:
            return None
        made = unique_id_time_ms(uniq.decode(errors="replace"), self._wall_ms() + _CLOCK_SLACK_MS)
        begin = max(0, (made or _CLOCK_SLACK_MS) - _CLOCK_SLACK_MS)
        for position in await self._keys.lookup(tid, uniq, begin, _ANY_TIME_MS, _MATCHES_MAX):
            raw = await self._read(position)
            if raw is not None and same_id(raw, topic, uniq) is not None:
                return place_of(raw)
        return None

    async def _read(self, position: int) -> bytes | None:
        """The record at `position`; None when it has expired."""
        if position < self._log.first_position:
            return None
        return await self._log.read_record(position)
