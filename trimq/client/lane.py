"""A lane: the order of everything that one producer sends to one replica group.

The promise of "stored once" rests on two facts that this class keeps. Requests are numbered in the order in which
they are sealed, and whatever may have been stored is sent again exactly as it was, to the same queue, oldest first
(go-back-N). So the broker can tell a repetition from news by `(first, count)` alone, and remembers per producer only
what is not settled yet: the *floor* in every request says below which number nothing will ever be repeated.

Three states of a sealed request matter: *settled* (answered for good, or given up), *certain* (every transmission was
refused, so nothing of it is stored) and, between them, *doubtful*. Certain requests at the young end are taken apart
again: their numbers were never used, so their messages may be regrouped or go elsewhere. Doubtful ones stay as they
are.

Batching has no timer. A message goes out at once when its queue has nothing in flight; whatever queues up meanwhile
goes together when the answer comes. So a quiet producer has the latency of one request, a busy one the cost of a
batch.

Sans-I/O: `put` takes messages in, `next_request` says what to transmit now, `answered`, `refused` and `link_lost` say
what came of it. The driver is `trimq.client.lane_driver`.

A broker that is not ours ignores the numbers and answers out of order; `sequenced=False` keeps one request per queue in
flight, which is the only way to keep its order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from trimq.client.model import Queue

if TYPE_CHECKING:
    import anyio

    from trimq.client.model import Receipt
    from trimq.client.outgoing import Outgoing
    from trimq.client.send_stream import SendStream
    from trimq.client.timing import Waitable
    from trimq.errors import TrimqError

__all__ = ["BATCH_BYTES_MAX", "BATCH_COUNT_MAX", "REQUESTS_MAX", "GivenUp", "Lane", "Request", "Slot"]

REQUESTS_MAX = 64
"""Unsettled requests per lane: what a broker has to remember per producer, and what a failover repeats."""

BATCH_BYTES_MAX = 256 * 1024
"""An automatic batch closes here. Far below the 1 MiB at which an entry of the log closes, so several fit into one."""

BATCH_COUNT_MAX = 128
"""Messages in an automatic batch. Larger ones cost less each; smaller ones keep client and broker busy at once."""


class Slot:
    """One message on its way: from `put` until its outcome is known."""

    __slots__ = (
        "again",
        "alone",
        "began",
        "bounded",
        "bundle",
        "deadline",
        "entered",
        "entry",
        "event",
        "message",
        "outcome",
        "pinned",
        "queue",
        "request",
        "sink",
        "size",
        "stream",
        "target",
    )

    def __init__(
        self,
        message: Outgoing,
        queue: Queue,
        sink: Callable[[Slot], None],
        *,
        pinned: bool = False,
        again: bool = False,
        deadline: float = inf,
    ) -> None:
        self.message = message
        self.queue = queue
        self.pinned = pinned
        """It must go to this queue: an order key, an explicit choice, or an earlier attempt that may have been
        stored."""
        self.again = again
        """It was sent before: the broker must look its id up before storing."""
        self.alone = again or not message.batchable
        """It travels in a request of its own."""
        self.deadline = deadline
        """When the producer gives it up, on the event loop's clock."""
        self.began = 0.0
        """When the application handed it over, on the event loop's clock; kept where sends are traced."""
        self.bounded = False
        """The deadline is the caller's own."""
        self.size = message.size
        self.bundle: tuple[Slot, ...] | None = None
        """The slots of one explicit batch: they stay together, all or none."""
        self.target: Queue | None = None
        """Of an atomic send: the queue that this message is for; `queue` only keeps the bundle together then."""
        self.request: Request | None = None
        self.outcome: Receipt | TrimqError | None = None
        self.sink = sink
        """Told once, when the outcome is known."""
        self.entered = False
        """It is in a lane, and counts as in hand."""
        self.entry: anyio.Event | None = None
        """For a stream: set when it enters a lane, or ends before."""
        self.event: Waitable | None = None
        """For the sink: who waits for this message alone."""
        self.stream: SendStream | None = None
        """For the sink: the stream that this message was sent through."""

    def settle(self, outcome: Receipt | TrimqError) -> None:
        """Note the outcome and tell the sink. A second outcome is ignored: the first one was told already."""
        if self.outcome is None:
            self.outcome = outcome
            self.sink(self)


class Request:
    """A sealed run of messages for one queue; it goes over the wire as it is, however often."""

    __slots__ = (
        "attempts",
        "body",
        "doubtful",
        "epoch",
        "first",
        "first_deadline",
        "hole",
        "in_flight",
        "live",
        "queue",
        "settled",
        "slots",
    )

    def __init__(self, queue: Queue, slots: list[Slot], first: int) -> None:
        self.queue = queue
        self.slots = slots
        self.first = first
        """Sequence of its first message."""
        self.first_deadline = min(slot.deadline for slot in slots)
        self.live = len(slots)
        """Slots that someone still waits for."""
        self.in_flight = 0
        """Transmissions without an answer; those of a lost connection are never answered and stay counted."""
        self.epoch = -1
        """The lane's epoch of its newest transmission."""
        self.attempts = 0
        """Transmissions so far."""
        self.doubtful = False
        """The broker itself said that it does not know."""
        self.settled = False
        self.hole = False
        """Settled without being stored for sure: its numbers are missing at the broker until the floor covers them."""
        self.body: bytes | None = None
        """Its encoded body, kept for repetitions."""

    @property
    def end(self) -> int:
        """One past the sequence of its last message."""
        return self.first + len(self.slots)

    @property
    def certain(self) -> bool:
        """Surely not stored: every transmission was refused, or there was none."""
        return self.in_flight == 0 and not self.doubtful

    @property
    def again(self) -> bool:
        return self.slots[0].again

    @property
    def atomic(self) -> bool:
        """Messages of several topics, stored as one entry."""
        return self.slots[0].target is not None


class GivenUp(Enum):
    """What is known of a message that nobody waits for any more."""

    NOT_STORED = "not stored"
    UNKNOWN = "unknown"


class Lane:
    """Messages of one producer for one replica group: queued, sealed, repeated, settled. See the module docstring."""

    def __init__(
        self, group: str, *, sequenced: bool = True, batching: bool = True, window: int = REQUESTS_MAX
    ) -> None:
        self.group = group
        self.sequenced = sequenced
        self.batching = batching
        self.window = window
        self.epoch = 0
        """Counts new beginnings: a transmission belongs to the epoch in which it was made."""
        self._waiting: dict[Queue, deque[Slot]] = {}
        self._waiting_count = 0
        self._unsettled: deque[Request] = deque()
        self._next = 0
        self._cursor = 0
        self._busy: dict[Queue, int] = {}

    # What the driver asks

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is unsettled."""
        return not self._unsettled and not self._waiting_count

    @property
    def busy(self) -> bool:
        """Something is unsettled."""
        return bool(self._unsettled)

    @property
    def due(self) -> bool:
        """Something waits to be transmitted, now or after an answer."""
        return self._waiting_count > 0 or self._cursor < len(self._unsettled)

    @property
    def floor(self) -> int:
        """Every sequence below it is settled."""
        return self._unsettled[0].first if self._unsettled else self._next

    @property
    def in_flight(self) -> int:
        """Requests that were transmitted in this epoch and have no answer."""
        return sum(1 for request in self._unsettled if request.epoch == self.epoch and request.in_flight)

    @property
    def unsettled(self) -> tuple[Request, ...]:
        """Sealed and not settled, oldest first."""
        return tuple(self._unsettled)

    @property
    def waiting(self) -> int:
        """Messages that are in no request yet."""
        return self._waiting_count

    def expired(self, now: float) -> list[Slot]:
        """Messages whose deadline has passed and that have no outcome yet; of an explicit batch the first only."""
        late: list[Slot] = []
        for waiting in self._waiting.values():
            late += [slot for slot in waiting if slot.deadline <= now]
        for request in self._unsettled:
            if not request.settled and request.first_deadline <= now:
                late += [slot for slot in request.slots if slot.deadline <= now and slot.outcome is None]
        return [slot for slot in late if slot.bundle is None or slot.bundle[0] is slot]

    def everything(self) -> list[Slot]:
        """All messages without an outcome; of an explicit batch the first only."""
        return self.expired(inf)

    # Messages in

    def put(self, slot: Slot) -> None:
        """Queue a message behind those of the same queue."""
        waiting = self._waiting.get(slot.queue)
        if waiting is None:
            waiting = self._waiting[slot.queue] = deque()
        waiting.append(slot)
        self._waiting_count += 1

    def put_first(self, slots: Iterable[Slot]) -> None:
        """Queue messages again, before all others of their queues, in their order."""
        for slot in reversed(list(slots)):
            self._waiting.setdefault(slot.queue, deque()).appendleft(slot)
            self._waiting_count += 1

    def take_unpinned(self) -> list[Slot]:
        """Remove and return what waits here but may go to any queue: this lane is in trouble, another may not be."""
        taken: list[Slot] = []
        for queue in list(self._waiting):
            slots = self._waiting[queue]
            stay = deque(slot for slot in slots if slot.pinned)
            if len(stay) != len(slots):
                taken += [slot for slot in slots if not slot.pinned]
                self._replace_waiting(queue, stay)
        return taken

    def give_up(self, slot: Slot) -> GivenUp:
        """Nobody waits for this message (or this explicit batch) any more.

        It is not sent again, unless others still need the request that it travels in.
        """
        gone = slot.bundle or (slot,)
        request = slot.request
        if request is None:
            waiting = self._waiting.get(slot.queue)
            if waiting is not None:
                self._replace_waiting(slot.queue, deque(other for other in waiting if other not in gone))
            return GivenUp.NOT_STORED
        if request.settled:
            return GivenUp.UNKNOWN
        request.live -= len(gone)
        if request.live > 0:
            return GivenUp.UNKNOWN
        certain = request.certain
        self._settle(request, hole=True)
        return GivenUp.NOT_STORED if certain else GivenUp.UNKNOWN

    # Requests out

    def next_request(self) -> Request | None:
        """The request to transmit now, or None when nothing may go until an answer or another message comes."""
        request = self._repetition() or self._seal()
        if request is not None:
            request.epoch = self.epoch
            request.in_flight += 1
            request.attempts += 1
        return request

    def _repetition(self) -> Request | None:
        """The oldest request that is due again, or None.

        In a sequenced lane nothing passes a hole: only once everything before it is settled does the floor cover it.
        """
        unsettled = self._unsettled
        while self._cursor < len(unsettled):
            request = unsettled[self._cursor]
            if self.sequenced and request.hole:
                return None
            self._cursor += 1
            if not request.settled and request.epoch != self.epoch:
                return request
        return None

    def _seal(self) -> Request | None:
        """Close the next run of waiting messages, of a queue that has nothing in flight or has plenty waiting."""
        if self._cursor < len(self._unsettled) or len(self._unsettled) >= self.window:
            return None
        for queue, waiting in self._waiting.items():
            if self._busy.get(queue) and not (self.sequenced and _is_full(waiting)):
                continue
            slots = self._run(waiting)
            self._waiting_count -= len(slots)
            del self._waiting[queue]
            if waiting:
                self._waiting[queue] = waiting  # behind the other queues: each gets its turn
            request = Request(queue, slots, self._next)
            for slot in slots:
                slot.request = request
            self._next += len(slots)
            self._unsettled.append(request)
            self._cursor += 1
            self._busy[queue] = self._busy.get(queue, 0) + 1
            return request
        return None

    def _run(self, waiting: deque[Slot]) -> list[Slot]:
        """Take from the head what may travel in one request."""
        head = waiting.popleft()
        if head.bundle is not None:
            return [head, *(waiting.popleft() for _ in head.bundle[1:])]
        slots = [head]
        if not self.batching or head.alone:
            return slots
        size = head.size
        while waiting and len(slots) < BATCH_COUNT_MAX:
            slot = waiting[0]
            size += slot.size
            if size > BATCH_BYTES_MAX or slot.alone or slot.bundle is not None:
                break
            slots.append(waiting.popleft())
        return slots

    # Answers in

    def answered(self, request: Request, *, stored: bool) -> bool:
        """The broker gave a final answer: stored, or refused for good. Returns whether it was still awaited."""
        request.in_flight -= 1
        if request.settled:
            return False
        self._settle(request, hole=not stored)
        return True

    def refused(self, request: Request, *, certain: bool) -> bool:
        """One transmission was not accepted; `certain` when the broker said that nothing was stored.

        Returns whether a repetition is due: not for the late answer to a transmission of an earlier epoch.
        """
        if certain:
            request.in_flight -= 1
        else:
            request.doubtful = True
        return not request.settled and request.epoch == self.epoch

    def restart(self) -> list[Slot]:
        """Begin again from the oldest unsettled request. Returns the messages of requests that were taken apart.

        Those are certainly not stored and out of the lane; put them back here or into another lane.
        """
        self.epoch += 1
        self._cursor = 0
        freed: list[Slot] = []
        unsettled = self._unsettled
        while unsettled and unsettled[-1].certain and not unsettled[-1].settled:
            request = unsettled.pop()
            freed[0:0] = self._take_apart(request)
            self._next = request.first
        return freed

    def repeat(self, request: Request) -> list[Slot]:
        """Send one request of an unsequenced lane again, without touching the others; returns as `restart`."""
        assert not self.sequenced, "a sequenced lane begins again as a whole"
        self._cursor = 0
        if not request.certain:
            request.epoch = -1
            return []
        self._unsettled.remove(request)
        return self._take_apart(request)

    def _take_apart(self, request: Request) -> list[Slot]:
        self._unbusy(request.queue)
        alive = [slot for slot in request.slots if slot.outcome is None]
        for slot in alive:
            slot.request = None
        return alive

    def _settle(self, request: Request, *, hole: bool) -> None:
        request.settled = True
        request.hole = hole
        self._unbusy(request.queue)
        unsettled = self._unsettled
        while unsettled and unsettled[0].settled:
            unsettled.popleft()
            if self._cursor:
                self._cursor -= 1

    def _unbusy(self, queue: Queue) -> None:
        left = self._busy[queue] - 1
        if left:
            self._busy[queue] = left
        else:
            del self._busy[queue]

    def _replace_waiting(self, queue: Queue, slots: deque[Slot]) -> None:
        self._waiting_count += len(slots) - len(self._waiting[queue])
        if slots:
            self._waiting[queue] = slots
        else:
            del self._waiting[queue]


def _is_full(waiting: deque[Slot]) -> bool:
    """Whether so much waits that it is worth a request beside the one in flight. An estimate from the first message."""
    return len(waiting) >= BATCH_COUNT_MAX or len(waiting) * waiting[0].size >= BATCH_BYTES_MAX
