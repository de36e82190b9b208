"""Pop consumers of the library against several replica groups: each has a poller of its own, none is forgotten."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from tests.broker.cluster import open_cluster
from tests.broker.support import World
from tests.broker.test_order_failover import connect
from tests.broker.test_registration import NAMESRV, name_server
from trimq import PopConsumer

pytestmark = pytest.mark.trio


@pytest.mark.parametrize("seed", range(2))
async def test_every_group_is_asked_again_when_workers_are_free_again(autojump_clock: MockClock, seed: int) -> None:
    world = World(seed=f"pop groups {seed}")
    done: Counter[bytes] = Counter()
    finished = trio.Event()

    async def work(jobs: PopConsumer) -> None:
        async for job in jobs:
            async with job:
                await trio.sleep(0.2)
                done[job.body] += 1
            if len(done) == 18:
                finished.set()

    async with name_server(world), open_cluster(3, world=world, namesrv=(NAMESRV,)) as cluster:
        for group in range(3):
            await cluster.ready(group)
        async with connect(world, "printers") as mq:
            await mq.admin.create_topic("jobs", queues=2)
            async with mq.pop("jobs", group="printers") as jobs, trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(work, jobs)
                for number in range(18):
                    await mq.send("jobs", b"%d" % number)
                with trio.fail_after(5):
                    await finished.wait()
                nursery.cancel_scope.cancel()
    assert set(done.values()) == {1}
