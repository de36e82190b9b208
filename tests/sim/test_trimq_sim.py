"""`trimq.sim` as an application's test uses it: the documented scenario, and the same seed the same run."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
import trio

from trimq import Message, Received, Start
from trimq.sim import Simulation, run_simulation


async def power_cut(sim: Simulation) -> None:
    seen: list[bytes] = []

    async def handle(message: Received) -> None:
        seen.append(message.body)

    async with (
        sim.client() as mq,
        mq.subscribe("orders", group="billing", start=Start.FIRST) as orders,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(orders.run, handle)
        await mq.send("orders", b"before")
        victim = sim.leader(sim.groups[0])
        assert victim is not None
        await victim.kill(power=True)
        await mq.send("orders", b"after")
        await victim.start()
        assert await sim.until(lambda: {b"before", b"after"} <= set(seen), 30)
        nursery.cancel_scope.cancel()


def test_an_applications_handler_survives_a_power_cut_and_the_run_repeats() -> None:
    first = run_simulation(power_cut, seed=7)
    assert run_simulation(power_cut, seed=7) == first != run_simulation(power_cut, seed=8)


def test_another_loop_in_the_same_process_is_left_alone() -> None:
    """Fixtures and applications have threads of their own with a loop in them."""
    stop = threading.Event()
    beats: list[float] = []

    async def beat() -> None:
        while not stop.is_set():
            await trio.sleep(0.001)
            beats.append(trio.current_time())

    alone = run_simulation(power_cut, seed=7)
    thread = threading.Thread(target=trio.run, args=(beat,))
    thread.start()
    try:
        assert run_simulation(power_cut, seed=7) == alone
    finally:
        stop.set()
        thread.join()
    assert len(beats) > 10
    assert beats == sorted(beats)


def test_a_paused_leader_is_replaced_and_goes_on_as_a_follower() -> None:
    async def scenario(sim: Simulation) -> None:
        group = sim.groups[0]
        old = sim.leader(group)
        assert old is not None
        old.pause()
        assert await sim.until(lambda: sim.leader(group) not in (None, old), 10)
        async with sim.client() as mq:
            await mq.send("t", b"x")
            old.resume()
            assert await sim.until(lambda: all(not r.ready for r in old.replicas()), 1)

    run_simulation(scenario, seed=1)


def test_what_a_scenario_raises_comes_out() -> None:
    async def scenario(sim: Simulation) -> None:
        await trio.sleep(1)
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        run_simulation(scenario, seed=1)


@pytest.mark.slow
def test_a_leader_that_is_stopped_costs_its_clients_less_than_100_ms() -> None:
    """Without processors that are busy: what is left are the steps of the hand-over and whoever waits in them."""
    pauses: list[float] = []

    async def stops(sim: Simulation) -> None:
        async with sim.client(default_timeout=30) as mq, mq.producer("load") as producer:
            await producer.send(Message(topic="t", body=b"first"))
            acks = [trio.current_time()]

            async def send() -> None:
                await producer.send(Message(topic="t", body=b"on"))
                acks.append(trio.current_time())

            async def probe() -> None:
                while True:
                    nursery.start_soon(send)
                    await trio.sleep(0.005)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(probe)
                await trio.sleep(0.2)
                for _ in range(2):
                    victim = sim.leader(sim.groups[0])
                    assert victim is not None
                    acks[:] = acks[-1:]
                    assert await victim.stop()
                    await trio.sleep(0.3)
                    await victim.start()
                    assert await sim.until(lambda: sim.leader(sim.groups[0]) is not None, 5)
                    await trio.sleep(0.5)
                    pauses.append(max(after - before for before, after in pairwise(acks)))
                nursery.cancel_scope.cancel()

    run_simulation(stops, seed=7)
    print("pauses of clients in ms:", *(round(1000 * pause) for pause in pauses))
    assert max(pauses) < 0.1
