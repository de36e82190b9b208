"""Lanes are bounded; rates come from samples."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from broker.metrics import Counters, Rates, exposition
from broker.processor.lane import Lane


@pytest.mark.trio
async def test_a_full_lane_refuses_by_count_and_by_bytes(autojump_clock: MockClock) -> None:
    lane = Lane("test", workers=1, requests_max=2, bytes_max=100)
    done: list[int] = []

    async def work() -> None:
        await trio.sleep(1)
        done.append(1)

    assert lane.offer(work, 60)
    assert not lane.offer(work, 60), "bytes"
    assert lane.offer(work, 40)
    assert not lane.offer(work, 0), "requests"
    async with trio.open_nursery() as nursery:
        await nursery.start(lane.run)
        await trio.sleep(2.5)
        assert len(done) == 2
        assert lane.offer(work, 100)
        nursery.cancel_scope.cancel()
    assert lane.refused == 2


@pytest.mark.trio
async def test_a_request_that_fails_does_not_end_its_lane(autojump_clock: MockClock) -> None:
    lane = Lane("test", workers=1, requests_max=2, bytes_max=100)
    done = trio.Event()

    async def bad() -> None:
        raise RuntimeError("a mistake of ours")

    async def good() -> None:
        done.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(lane.run)
        lane.offer(bad, 1)
        lane.offer(good, 1)
        with trio.fail_after(1):
            await done.wait()
        nursery.cancel_scope.cancel()


def test_rates_are_over_the_newest_samples() -> None:
    rates, counters = Rates(), Counters()
    assert rates.tps3("put_messages") == "0.00 0.00 0.00"
    for second in range(0, 100, 10):
        counters.put_messages = second * 5 if second < 90 else 90 * 5 + 50
        rates.sample(float(second), counters)
    assert rates.rate("put_messages", 1) == 10.0
    assert rates.tps3("put_messages").split()[2] == "5.56"


def test_the_metrics_page_names_every_counter_with_its_labels() -> None:
    page = exposition({"broker": "b"}, {"trimq_term": 3.0}, Counters(put_messages=7))
    assert 'rocketmq_messages_in_total{broker="b"} 7' in page
    assert 'trimq_term{broker="b"} 3' in page


def test_each_morning_has_its_counters() -> None:
    rates, counters = Rates(), Counters()
    for day, total in ((7, 0), (7, 10), (8, 30), (8, 40), (9, 70)):
        counters.put_messages = total
        rates.sample(0, counters, day=day)
    assert (rates.yesterday_morning.put_messages, rates.this_morning.put_messages) == (30, 70)
