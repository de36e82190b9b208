"""The lane against a model of the broker's rule for sequences, under losses, refusals and give-ups."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from trimq.client.lane import BATCH_COUNT_MAX, GivenUp, Lane, Request, Slot
from trimq.client.model import Message, Queue, Receipt, SendStatus, from_ms
from trimq.client.outgoing import prepare
from trimq.errors import NotStored

QUEUES = [Queue("t", "a", number) for number in range(3)]


def slot(number: int, queue: Queue = QUEUES[0], **more: bool) -> Slot:
    message = Message(topic="t", body=b"%d" % number, id=f"{number:032X}")
    return Slot(prepare(message, 4096), queue, lambda _slot: None, **more)


def number_of(one: Slot) -> int:
    return int(one.message.body)


def receipt(one: Slot) -> Receipt:
    return Receipt(one.message.message.id, one.queue, 0, SendStatus.OK, False, from_ms(0))


# What one lane does, step by step


def test_a_quiet_lane_sends_at_once_and_a_busy_one_in_batches() -> None:
    lane = Lane("a")
    lane.put(slot(0))
    first = lane.next_request()
    assert first is not None
    assert len(first.slots) == 1
    for number in range(1, 6):
        lane.put(slot(number))
    assert lane.next_request() is None, "its queue has a request in flight"
    lane.answered(first, stored=True)
    second = lane.next_request()
    assert second is not None
    assert [number_of(s) for s in second.slots] == [1, 2, 3, 4, 5]
    assert (second.first, second.end, lane.floor) == (1, 6, 1)


def test_other_queues_do_not_wait_for_each_other() -> None:
    lane = Lane("a")
    for number, queue in enumerate(QUEUES):
        lane.put(slot(number, queue))
    sent = [lane.next_request() for _ in QUEUES]
    assert [request.queue for request in sent if request] == QUEUES
    assert [request.first for request in sent if request] == [0, 1, 2]


def test_plenty_waiting_goes_beside_the_request_in_flight() -> None:
    lane = Lane("a")
    lane.put(slot(0))
    assert lane.next_request()
    for number in range(BATCH_COUNT_MAX + 1):
        lane.put(slot(number))
    full = lane.next_request()
    assert full is not None
    assert len(full.slots) == BATCH_COUNT_MAX
    assert lane.next_request() is None, "what is left is no full batch"


def test_an_unsequenced_lane_keeps_one_request_per_queue() -> None:
    lane = Lane("a", sequenced=False)
    lane.put(slot(0))
    assert lane.next_request()
    for number in range(2 * BATCH_COUNT_MAX):
        lane.put(slot(number))
    assert lane.next_request() is None


def test_the_window_bounds_unsettled_requests() -> None:
    lane = Lane("a", window=2)
    for number, queue in enumerate(QUEUES):
        lane.put(slot(number, queue))
    first = lane.next_request()
    assert first
    assert lane.next_request()
    assert lane.next_request() is None
    lane.answered(first, stored=True)
    assert lane.next_request() is not None


def test_after_a_lost_link_doubtful_requests_go_again_unchanged() -> None:
    lane = Lane("a")
    sent = []
    for number, queue in enumerate(QUEUES):
        lane.put(slot(number, queue))
        sent.append(lane.next_request())
    assert lane.restart() == [], "all of them may have been stored"
    assert [lane.next_request() for _ in QUEUES] == sent
    assert lane.next_request() is None


def test_certain_requests_at_the_young_end_are_taken_apart() -> None:
    lane = Lane("a")
    requests: list[Request] = []
    for number, queue in enumerate(QUEUES):
        lane.put(slot(number, queue))
        request = lane.next_request()
        assert request is not None
        requests.append(request)
    for request in requests[1:]:
        assert lane.refused(request, certain=True)
    freed = lane.restart()
    assert [number_of(s) for s in freed] == [1, 2]
    assert lane.unsettled == (requests[0],)
    lane.put_first(freed)
    assert lane.next_request() is requests[0]
    again = lane.next_request()
    assert again is not None
    assert again.first == 1, "the numbers of what was taken apart are used again"


def test_a_doubtful_request_keeps_everything_older_together() -> None:
    lane = Lane("a")
    requests: list[Request] = []
    for number, queue in enumerate(QUEUES):
        lane.put(slot(number, queue))
        request = lane.next_request()
        assert request is not None
        requests.append(request)
    lane.refused(requests[0], certain=True)
    lane.refused(requests[1], certain=True)
    lane.refused(requests[2], certain=False)
    assert lane.restart() == []
    assert lane.unsettled == tuple(requests)


def test_a_late_answer_to_an_earlier_epoch_starts_nothing() -> None:
    lane = Lane("a")
    lane.put(slot(0))
    request = lane.next_request()
    assert request is not None
    lane.restart()
    lane.next_request()
    lane.refused(request, certain=True)
    assert not request.certain, "the newer transmission is still out"
    assert lane.answered(request, stored=True)


def test_giving_up_what_waits_is_certain_and_what_flies_is_not() -> None:
    lane = Lane("a")
    flying, waiting = slot(0), slot(1)
    lane.put(flying)
    request = lane.next_request()
    lane.put(waiting)
    assert lane.give_up(waiting) is GivenUp.NOT_STORED
    assert lane.give_up(flying) is GivenUp.UNKNOWN
    assert request is not None
    assert request.settled
    assert lane.idle
    assert lane.floor == 1, "the floor says that its number is settled"


def test_nothing_passes_a_hole_until_the_floor_covers_it() -> None:
    lane = Lane("a")
    requests: list[Request] = []
    for number, queue in enumerate(QUEUES):
        lane.put(slot(number, queue))
        request = lane.next_request()
        assert request is not None
        requests.append(request)
    lane.restart()
    lane.give_up(requests[1].slots[0])
    assert lane.next_request() is requests[0]
    assert lane.next_request() is None, "sequence 1 is missing at the broker, so 2 would be out of sequence"
    lane.answered(requests[0], stored=True)
    assert lane.floor == 2
    assert lane.next_request() is requests[2]


def test_an_explicit_batch_stays_together() -> None:
    lane = Lane("a")
    bundle = tuple(slot(number) for number in range(3))
    for one in bundle:
        one.bundle = bundle
    lane.put(slot(9))
    for one in bundle:
        lane.put(one)
    lane.put(slot(10))
    lone = lane.next_request()
    assert lone is not None
    assert len(lone.slots) == 1
    lane.answered(lone, stored=True)
    batch = lane.next_request()
    assert batch is not None
    assert tuple(batch.slots) == bundle
    assert lane.give_up(bundle[0]) is GivenUp.UNKNOWN
    assert batch.settled


def test_messages_without_a_queue_of_their_own_can_leave() -> None:
    lane = Lane("a")
    bound = slot(0, pinned=True)
    free = slot(1)
    lane.put(bound)
    lane.put(free)
    assert lane.take_unpinned() == [free]
    assert lane.waiting == 1


def test_expired_messages_are_named_once() -> None:
    lane = Lane("a")
    late = Slot(slot(0).message, QUEUES[0], lambda _slot: None, deadline=5.0)
    fine = Slot(slot(1).message, QUEUES[0], lambda _slot: None, deadline=50.0)
    lane.put(late)
    lane.put(fine)
    lane.next_request()
    assert lane.expired(10.0) == [late]
    late.settle(NotStored("late"))
    assert lane.expired(10.0) == []


# All of it at once, against the rule


@dataclass
class Log:
    """One producer's part of a replica group, by the rule of duplicates (first, count) above a floor."""

    next: int = 0
    floor: int = 0
    runs: dict[tuple[int, int], bool] = field(default_factory=dict)
    stored: list[int] = field(default_factory=list)

    def offer(self, first: int, numbers: list[int], floor: int) -> str:
        self.floor = max(self.floor, floor)
        self.runs = {run: True for run in self.runs if run[0] + run[1] > self.floor}
        expected = max(self.next, floor)
        if first == expected:
            self.next = first + len(numbers)
            self.runs[first, len(numbers)] = True
            self.stored += numbers
            return "ok"
        if first > expected:
            return "out of sequence"
        return "duplicate" if (first, len(numbers)) in self.runs else "stale"


class Wire:
    """A connection: requests arrive in order, answers come back in order, both are lost when it breaks."""

    def __init__(self, log: Log, rng: random.Random) -> None:
        self.log = log
        self.rng = rng
        self.going: list[tuple[Request, int, list[int], int]] = []
        self.coming: list[tuple[Request, str]] = []

    def deliver(self) -> None:
        if self.going:
            request, first, numbers, floor = self.going.pop(0)
            if self.rng.random() < 0.1:
                answer = "not now"
            else:
                answer = self.log.offer(first, numbers, floor)
                if answer == "ok" and self.rng.random() < 0.05:
                    answer = "unknown"
            self.coming.append((request, answer))


@pytest.mark.parametrize("seed", range(60))
def test_everything_is_stored_once_and_in_order_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    lane = Lane("a", window=rng.choice([1, 3, 64]))
    log = Log()
    wire = Wire(log, rng)
    slots: list[Slot] = []
    given_up: set[int] = set()
    surely_not: set[int] = set()
    steps = 0
    while steps < 3000 and (len(slots) < 120 or not lane.idle):
        steps += 1
        calm = steps > 2000
        match rng.choice(["put", "send", "send", "deliver", "deliver", "answer", "answer", "break", "give up"]):
            case "put" if len(slots) < 120:
                one = slot(len(slots), rng.choice(QUEUES))
                slots.append(one)
                lane.put(one)
            case "send":
                request = lane.next_request()
                if request is not None:
                    numbers = [number_of(s) for s in request.slots]
                    wire.going.append((request, request.first, numbers, lane.floor))
            case "deliver":
                wire.deliver()
            case "answer" if wire.coming:
                request, answer = wire.coming.pop(0)
                assert answer != "stale" or all(number_of(s) in given_up for s in request.slots)
                if answer in ("ok", "duplicate", "stale"):
                    for one in request.slots:
                        if answer != "stale":
                            one.settle(receipt(one))
                    lane.answered(request, stored=answer != "stale")
                elif lane.refused(request, certain=answer != "unknown"):
                    lane.put_first(lane.restart())
            case "break" if not calm and rng.random() < 0.2:
                for _ in range(rng.randrange(3)):
                    wire.deliver()
                wire = Wire(log, rng)
                lane.put_first(lane.restart())
            case "give up" if not calm and rng.random() < 0.1:
                waiting = [s for s in slots if s.outcome is None]
                if waiting:
                    one = rng.choice(waiting)
                    known = lane.give_up(one)
                    one.settle(NotStored("given up"))
                    given_up.add(number_of(one))
                    if known is GivenUp.NOT_STORED:
                        surely_not.add(number_of(one))
    assert lane.idle, "once faults end, everything settles"
    acked = [number_of(s) for s in slots if isinstance(s.outcome, Receipt)]
    assert len(log.stored) == len(set(log.stored)), "nothing is stored twice"
    assert set(acked) <= set(log.stored), "everything acknowledged is stored"
    assert not surely_not & set(log.stored), "what was called surely not stored is not there"
    assert len(acked) + len(given_up) >= 120
    for queue in QUEUES:
        mine = [number for number in log.stored if slots[number].queue == queue]
        assert mine == sorted(mine), "order per queue is kept"
