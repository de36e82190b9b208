"""Pop: 50 consumers on 4 queues, processes of consumers and leaders killed with kill -9.

Each message is processed at least once, none is invisible for ever, and what was told to be done never comes again.
A campaign sets TRIMQ_DRILL_ROUNDS; the suite keeps to a few.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import trio

import trimq
from tests.drills.pop_worker import GROUP, TOPIC
from tests.drills.support import local_cluster
from trimq.drill.faults import mend, strike
from trimq.drill.kinds import Fault
from trimq.remoting.client import open_remoting_client
from trimq.remoting.system import AnyioNetwork
from trimq.testing import status
from trimq.testing.local_cluster import LocalCluster

ROUNDS = int(os.environ.get("TRIMQ_DRILL_ROUNDS", "2"))
ROOT = Path(__file__).parents[2]
PROCESSES, PER_PROCESS, QUEUES, RATE = 5, 10, 4, 100
INVISIBLE_S = 5.0


class Drill:
    def __init__(self, cluster: LocalCluster, rounds: int) -> None:
        self.cluster = cluster
        self.rounds = rounds
        self.sent: set[str] = set()
        self.got: Counter[str] = Counter()
        self.told: set[str] = set()
        self.back: list[str] = []
        self.killed_processes = 0
        self.killed_leaders = 0
        self.lag = -1
        self._rng = random.Random(f"pop/{rounds}")
        self._stop = trio.Event()
        self._workers: list[trio.Process] = []

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            for worker in self._workers:
                worker.kill()
            with trio.CancelScope(shield=True):
                for worker in self._workers:
                    await worker.wait()
                    assert worker.stdout is not None
                    await worker.stdout.aclose()

    async def _run(self) -> None:
        async with trimq.connect(self.cluster.namesrv_address) as mq, trio.open_nursery() as nursery:
            await mq.admin.create_topic(TOPIC, queues=QUEUES)
            async with mq.pop(TOPIC, group=GROUP, start=trimq.Start.FIRST) as first:
                assert await first.receive(wait=0.1) == []
            for _ in range(PROCESSES):
                await self._start(nursery)
            nursery.start_soon(self._produce, mq)
            for number in range(self.rounds):
                await trio.sleep(1)
                await self._kill_workers(nursery)
                await self._kill_leader(number)
            self._stop.set()
            # A killed process may have acknowledged what it could not say any more: so the lag decides, not its lines.
            with trio.move_on_after(60):
                while set(self.got) != self.sent or (await mq.admin.lag(GROUP)).messages:  # noqa: ASYNC110
                    await trio.sleep(0.2)
            self.lag = (await mq.admin.lag(GROUP)).messages
            nursery.cancel_scope.cancel()

    async def _start(self, nursery: trio.Nursery) -> None:
        arguments = [self.cluster.namesrv_address, str(PER_PROCESS), str(INVISIBLE_S)]
        worker = await trio.lowlevel.open_process(
            [sys.executable, "-m", "tests.drills.pop_worker", *arguments], stdout=-1, cwd=ROOT
        )
        self._workers.append(worker)
        nursery.start_soon(self._listen, worker)

    async def _listen(self, worker: trio.Process) -> None:
        assert worker.stdout is not None
        rest = b""
        async for chunk in worker.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                word, _, body = line.decode().partition(" ")
                if word == "told":
                    self.told.add(body)
                else:
                    self.got[body] += 1
                    if body in self.told:
                        self.back.append(body)

    async def _produce(self, mq: trimq.Client) -> None:
        number = 0
        async with mq.producer() as producer, producer.stream() as stream:
            while not self._stop.is_set():
                await stream.send(trimq.Message(topic=TOPIC, body=b"%d" % number))
                self.sent.add(str(number))
                number += 1
                await trio.sleep(1 / RATE)

    async def _kill_workers(self, nursery: trio.Nursery) -> None:
        for _ in range(2):
            worker = self._workers.pop(self._rng.randrange(len(self._workers)))
            worker.kill()
            await worker.wait()  # its listener reads what it said to the end
            self.killed_processes += 1
            await self._start(nursery)

    async def _kill_leader(self, number: int) -> None:
        async with open_remoting_client(AnyioNetwork()) as asker:
            leader = (await status.ask(asker, self.cluster))[self.cluster.groups[0]].leader
            assert leader is not None
            blow = await strike(self.cluster, Fault.KILL, leader, number)
            await mend(self.cluster, Fault.KILL, blow, self._rng)
            with trio.fail_after(30):
                await status.wait_ready(asker, self.cluster, all_replicas=True)
        self.killed_leaders += 1
        print(f"round {number + 1}/{self.rounds}: killed {leader}; sent {len(self.sent)}, done {len(self.told)}")


@pytest.mark.slow
@pytest.mark.timeout(ROUNDS * 30 + 180)
def test_fifty_consumers_on_four_queues(tmp_path: Path) -> None:
    with local_cluster(tmp_path, groups=1) as cluster:
        drill = Drill(cluster, ROUNDS)
        trio.run(drill.run)
    again = sum(drill.got.values()) - len(drill.got)
    print(
        f"pop: rounds={drill.rounds} consumers={PROCESSES * PER_PROCESS} queues={QUEUES}"
        f" killed_leaders={drill.killed_leaders} killed_consumers={drill.killed_processes * PER_PROCESS}"
        f" sent={len(drill.sent)} processed={len(drill.got)} told={len(drill.told)} delivered_again={again}"
        f" came_back={len(drill.back)} still_out={drill.lag}"
    )
    assert set(drill.got) == drill.sent, f"never processed: {sorted(drill.sent - set(drill.got))[:10]}"
    assert len(drill.told) >= len(drill.sent) * 0.9
    assert drill.back == [], "told to be done, and came again"
    assert drill.lag == 0, "something is invisible for ever"
