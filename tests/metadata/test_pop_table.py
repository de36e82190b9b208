"""Pop state as a function of ops: in the applied table and in the leader's view alike, and through a snapshot."""

from __future__ import annotations

import random

import cbor2
import pytest

from broker.metadata.offsets import Offsets
from broker.metadata.ops import decode_payload, encode_op, encode_payload, key_of
from broker.metadata.overlay import Stamp
from broker.metadata.pop import PopOverlay, PopTable
from broker.metadata.pop_ops import OrderTake, PopDone, PopHide, PopOp, PopTake, RequestMode
from broker.metadata.tables import Applied, Overlaid

GID, TID = 1, 7
KEYS = [key_of(TID, queue) for queue in range(3)]


def seen(table: PopTable | PopOverlay) -> dict[str, object]:
    """Everything that others can see."""
    return {
        "queues": {
            place: (queue.next, dict(queue.taken), queue.floor)
            for place in sorted(set(table.places()))
            if (queue := table.queue(*place)) is not None
        },
        "batches": {place: table.batch(*place) for place in sorted(set(table.batches()))},
        "mode": table.mode("T", "g"),
    }


class Writer:
    """Makes ops as a leader would: of what is there."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 1_000

    def op(self, tables: Applied | Overlaid) -> PopOp:
        rng, pop = self.rng, tables.pop
        self.now += rng.randrange(1, 50)
        queue = rng.randrange(3)
        key = key_of(TID, queue)
        held, batch = pop.queue(GID, key), pop.batch(GID, key)
        start = held.next if held is not None else tables.offsets.get(GID, key) or 0
        kind = rng.choices(["take", "done", "hide", "order", "mode"], [5, 5, 2, 3, 1])[0]
        out = sorted(held.taken) if held is not None else []
        if kind == "done" and (out or batch is not None):
            some = rng.sample(out, rng.randrange(len(out) + 1)) if out else []
            some += [each for each in (batch.offsets if batch is not None else ()) if rng.random() < 0.5]
            return PopDone([(GID, TID, queue, sorted(set(some)))])
        if kind == "hide" and out:
            return PopHide(GID, TID, queue, rng.choice(out), self.now, self.now + rng.randrange(100))
        if kind == "order" and not out:
            first = batch.floor if batch is not None else tables.offsets.get(GID, key) or 0
            taken = list(range(first, first + rng.randrange(4)))
            following = taken[-1] + 1 if taken else first + 2
            return OrderTake(GID, TID, queue, following, self.now, self.now + 60, rng.choice(["", "a", "b"]), taken)
        if kind == "mode":
            return RequestMode("T", "g", rng.choice(["PULL", "POP"]), rng.randrange(3))
        offsets = sorted(rng.sample(range(start, start + 6), rng.randrange(5)))
        return PopTake(GID, TID, queue, start + 6, self.now, self.now + 60, offsets)


@pytest.mark.parametrize("seed", range(40))
def test_the_view_says_now_what_the_applied_table_says_later(seed: int) -> None:
    rng = random.Random(seed)
    stamp, applied = Stamp(), Applied()
    view, writer = Overlaid(applied, stamp), Writer(rng)
    flying: list[tuple[int, PopOp]] = []
    reference = Applied()
    offsets: dict[int, int] = {}
    for index in range(1, 120):
        stamp.index = index
        op = writer.op(view)
        view.apply(op, 0)
        reference.apply(op, 0)
        flying.append((index, op))
        for _ in range(rng.randrange(3)):
            if flying:
                at, first = flying.pop(0)
                _, (again,) = decode_payload(encode_payload(0, [first]))
                assert again == first
                applied.apply(again, 0)
                view.forget(at)
        assert seen(view.pop) == seen(reference.pop), f"after op {index}: {op}"
        for key in KEYS:
            now = view.offsets.get(GID, key)
            assert now == reference.offsets.get(GID, key)
            assert (now or 0) >= offsets.get(key, 0), "offsets never go back"
            offsets[key] = now or 0
            queue = view.pop.queue(GID, key)
            if queue is not None:
                assert queue.taken, "a queue without anything out costs nothing"
                assert queue.floor == min(queue.taken)
    for index, op in flying:
        applied.apply(op, 0)
        view.forget(index)
    assert seen(applied.pop) == seen(view.pop) == seen(reference.pop)
    restored = PopTable()
    restored.restore(cbor2.loads(cbor2.dumps(PopTable.encode(applied.pop.flat()), canonical=True)))
    assert seen(restored) == seen(applied.pop)


def test_a_scan_that_is_overtaken_by_applying_starts_over() -> None:
    stamp, base, offsets = Stamp(), PopTable(), Offsets()
    view = PopOverlay(base, stamp)
    stamp.index = 5
    op = PopTake(GID, TID, 0, 2, 1, 61, [0, 1])
    view.apply(op, offsets)
    for each in (op, PopDone([(GID, TID, 0, [0])])):
        base.apply(each, offsets)  # entries 5 and 6 are applied before 6 is scanned
    view.start_over()
    queue = view.queue(GID, key_of(TID, 0))
    assert queue is not None
    assert sorted(queue.taken) == [1]


def test_what_is_dropped_is_gone_in_both() -> None:
    stamp, base, offsets = Stamp(), PopTable(), Offsets()
    base.apply(PopTake(GID, TID, 0, 2, 1, 61, [0, 1]), offsets)
    base.apply(OrderTake(2, TID, 1, 2, 1, 61, "", [0, 1]), offsets)
    base.apply(PopTake(GID, 8, 0, 2, 1, 61, [0, 1]), offsets)
    for by_topic in (True, False):
        table, view = PopTable(), PopOverlay(base, stamp)
        table.restore(PopTable.encode(base.flat()))
        for each in (table, view):
            if by_topic:
                each.drop_topic(TID)
            else:
                each.drop_group(2)
                each.drop(GID, KEYS[0])
        assert seen(table) == seen(view)
        assert list(table.places()) == [(GID, key_of(8, 0))]
        assert list(table.batches()) == []


@pytest.mark.parametrize(
    "raw",
    [
        [32, 1, 1, 0, 5, 1, 2],
        [32, 1, 1, 70_000, 5, 1, 2, []],
        [32, 1, 1, 0, 5, 1, 2, [-1]],
        [33, [[1, 2, 3]]],
        [34, 1, 1, 0, "x", 1, 2],
        [35, 1, 1, 0, 5, 1, 2, 3, []],
        [36, "T", "g", 1, 0],
    ],
)
def test_malformed_ops_are_named(raw: list[object]) -> None:
    from broker.metadata.ops import ControlError

    with pytest.raises(ControlError, match=f"op code {raw[0]} is malformed"):
        decode_payload(cbor2.dumps([1, 0, [raw]], canonical=True))


def test_an_op_of_32_messages_is_small() -> None:
    op = PopTake(GID, TID, 3, 1_000_032, 1_700_000_000_000, 1_700_000_060_000, range(1_000_000, 1_000_032))
    assert len(encode_op(op)) < 200
