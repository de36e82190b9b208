"""A live group moves async → sync → raft → sync while producers send: what was lost, and the longest pause.

`python -m tests.drills.moves DIR` starts a cluster of three nodes and one group of its own, and prints one JSON object.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import trio

import trimq
from trimq.drill.history import History
from trimq.drill.load import Sender, run_sender, warm_up
from trimq.drill.reader import read_everything
from trimq.drill.verdict import Verdict, judge
from trimq.remoting.client import open_remoting_client
from trimq.remoting.system import AnyioNetwork
from trimq.testing import status
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import wait_ready_blocking
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.group import SetStrategyHeader

MOVES = ("sync", "raft", "sync")
PRODUCERS = 4
RATE_EACH = 200.0
BETWEEN_S = 2.0


async def move_under_load(cluster: LocalCluster) -> tuple[Verdict, dict[str, float]]:
    """Load, move, read everything back. The verdict and, for each move, its time and the longest pause in ms."""
    history = History()
    figures: dict[str, float] = {}
    (group,) = cluster.groups
    stop = trio.Event()
    async with trimq.connect(cluster.namesrv_address) as client, open_remoting_client(AnyioNetwork()) as asker:
        queues = await warm_up(client, "moves", cluster.groups, 4)

        async def produce(number: int) -> None:
            async with client.producer(f"moves-{number}") as producer:
                sender = Sender(number, producer, queues, history)
                await sender.send_one()
                await run_sender(sender, RATE_EACH, stop)

        async with trio.open_nursery() as nursery:
            for number in range(PRODUCERS):
                nursery.start_soon(produce, number)
            await trio.sleep(BETWEEN_S)
            for at, strategy in enumerate(MOVES, 1):
                leader = (await status.ask(asker, cluster))[group].leader
                assert leader is not None
                header = SetStrategyHeader(group=group, strategy=strategy)
                command = Command(code=RequestCode.SET_GROUP_STRATEGY, ext=header.to_ext())
                began = trio.current_time()
                answer = await asker.invoke(cluster.client_address(leader, group), command)
                assert answer.code == ResponseCode.SUCCESS, answer.remark
                figures[f"{at} to {strategy}: committed after ms"] = round((trio.current_time() - began) * 1000, 1)
                await trio.sleep(BETWEEN_S)
                times = sorted(when for when in history.acked_at.values() if when >= began - 0.5)
                pause = max(later - earlier for earlier, later in itertools.pairwise(times))
                figures[f"{at} to {strategy}: longest pause ms"] = round(pause * 1000, 1)
            stop.set()
        await read_everything(client, cluster, queues, history)
    return judge(history), figures


def main() -> None:
    cluster = LocalCluster.create(Path(sys.argv[1]), base_port=0, groups=1, strategy="async", flush="sync")
    cluster.start()
    try:
        wait_ready_blocking(cluster)
        verdict, figures = trio.run(move_under_load, cluster)
    finally:
        cluster.stop()
    names = ("acked", "lost", "duplicates", "reordered", "phantom", "disagree", "unknown", "short", "client_errors")
    print(json.dumps({**figures, **{name: getattr(verdict, name) for name in names}, "examples": verdict.examples}))
    sys.exit(verdict.violations > 0)


if __name__ == "__main__":
    main()
