"""Drills of what is decided later: delayed and timed messages, transactions; with leaders killed meanwhile.

    python -m tests.drills.later delays --levels 10000 --timed 1000 --kills 10
    python -m tests.drills.later transactions --count 5000 --kills 10

Each ends with one JSON line; exit status 1 on a violation. The suite runs both in short (`test_later.py`).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import trio

import trimq
from tests.drills.support import local_cluster
from trimq.errors import TrimqError
from trimq.remoting.client import RemotingClient, open_remoting_client
from trimq.remoting.system import AnyioNetwork, SystemClock
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import ask

__all__ = ["DELAY_LEVELS", "DELAY_LEVELS_MS", "delays", "small_cluster", "transactions"]

GROUP = "broker-a"
_LEVELS_S = (1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12, 14)
"""Eighteen levels of a drill: it ends in a minute, not in two hours."""
DELAY_LEVELS = " ".join(f"{seconds}s" for seconds in _LEVELS_S)
DELAY_LEVELS_MS = [seconds * 1_000 for seconds in _LEVELS_S]
TROUBLE_MS = 3_000
"""So long after a kill a message may be late: the group has no leader, and the machine starts a process."""
WORKERS = 8


def small_cluster(directory: Path) -> AbstractContextManager[LocalCluster]:
    """One group of three nodes with short delays and an impatient broker."""
    return local_cluster(
        directory,
        groups=1,
        messageDelayLevel=DELAY_LEVELS,
        transactionTimeOut="1000",
        transactionCheckInterval="1000",
        timerRollSeconds="10",
    )


# --- kills


async def kill_leaders(cluster: LocalCluster, count: int, every_s: float, killed_ms: list[int]) -> None:
    """Kill the leader, wait for the next one, start the victim again; `count` times."""
    async with open_remoting_client(AnyioNetwork()) as asker:
        for _ in range(count):
            await trio.sleep(every_s)
            victim = await leader(asker, cluster)
            killed_ms.append(SystemClock().wall_ms())
            cluster.kill(victim)
            while await leader(asker, cluster) == victim:  # noqa: ASYNC110  (processes tell nobody)
                await trio.sleep(0.05)
            cluster.start(victim)
            await quiet(asker, cluster)


async def leader(asker: RemotingClient, cluster: LocalCluster) -> str:
    while (name := (await ask(asker, cluster))[GROUP].leader) is None:  # noqa: ASYNC110
        await trio.sleep(0.05)
    return name


async def quiet(asker: RemotingClient, cluster: LocalCluster) -> None:
    """Until all three replicas are in step again: the next kill must not meet a minority."""
    with trio.fail_after(60):
        while True:
            behind = (await ask(asker, cluster))[GROUP].lag_bytes()
            if behind is not None and behind < 1 << 20:
                return
            await trio.sleep(0.1)


async def read_all(mq: trimq.Client, topic: str) -> list[trimq.Received]:
    async with mq.pull() as reader:
        return [message async for message in reader.iterate(topic)]


# --- delays


@dataclass
class Delays:
    """What a drill of delays saw."""

    sent: int = 0
    unknown: int = 0
    kills: int = 0
    lost: int = 0
    twice: int = 0
    early: int = 0
    late_ms: list[int] = field(default_factory=list)
    calm_ms: list[int] = field(default_factory=list)
    """Lateness of those with no kill in the seconds before they were due."""

    @property
    def violations(self) -> int:
        return self.lost + self.twice + self.early

    def as_json(self) -> dict[str, Any]:
        figures = {name: _figures(getattr(self, name)) for name in ("late_ms", "calm_ms")}
        plain = {name: getattr(self, name) for name in ("sent", "unknown", "kills", "lost", "twice", "early")}
        return {**plain, **figures}


def _figures(values: Sequence[int]) -> dict[str, int]:
    if not values:
        return {}
    ordered = sorted(values)
    return {"count": len(ordered), "p50": ordered[len(ordered) // 2], "p99": ordered[len(ordered) * 99 // 100],
            "max": ordered[-1]}  # fmt: skip


async def delays(
    cluster: LocalCluster, *, levels: int, timed: int, kills: int, span_s: float, rng: random.Random
) -> Delays:
    """Send over all levels and at arbitrary times within `span_s`, kill leaders, read everything back."""
    seen, killed_ms = Delays(kills=kills), list[int]()
    topic = "later"
    wanted: list[str] = []
    async with trimq.connect(cluster.namesrv_address, default_timeout=60) as mq:
        await mq.admin.create_topic(topic, queues=4)
        async with mq.producer() as producer, trio.open_nursery() as nursery:
            nursery.start_soon(kill_leaders, cluster, kills, 2.0, killed_ms)
            turns = iter(rng.sample([True] * levels + [False] * timed, levels + timed))
            room = trio.Semaphore(WORKERS * 8)

            async def send_one(by_level: bool, number: int) -> None:
                body = b"%d" % number
                if by_level:
                    level = 1 + number % len(DELAY_LEVELS_MS)
                    message = trimq.Message(topic=topic, body=body, delay_level=level)
                else:
                    least = rng.randrange(200, int(span_s * 1000))
                    message = trimq.Message(topic=topic, body=body, delay=timedelta(milliseconds=least))
                try:
                    await producer.send(message)
                    wanted.append(message.id)
                except TrimqError:
                    seen.unknown += 1
                finally:
                    room.release()

            pause = span_s / (levels + timed)
            async with trio.open_nursery() as sending:
                for number, by_level in enumerate(turns):
                    await room.acquire()
                    sending.start_soon(send_one, by_level, number)
                    await trio.sleep(pause / 2)
        seen.sent = len(wanted)
        await trio.sleep(max(span_s, max(DELAY_LEVELS_MS) / 1000) + 5)
        messages = await read_all(mq, topic)
        taken_ms = await waited_from(mq)
    counts = Counter(message.id for message in messages)
    seen.lost = sum(1 for id in wanted if not counts[id])
    seen.twice = sum(1 for count in counts.values() if count > 1)
    for message in messages:
        due = int(message.all_properties.get("TIMER_OUT_MS") or 0)
        if not due:
            # A level's time begins when the broker took the message, not when it was sent: a failover may lie between.
            due = taken_ms[message.id] + DELAY_LEVELS_MS[int(message.all_properties["DELAY"]) - 1]
        late = message.stored_ms - due
        seen.early += late < 0
        seen.late_ms.append(late)
        if not any(killed - 500 <= due <= killed + TROUBLE_MS for killed in killed_ms):
            seen.calm_ms.append(late)
    return seen


async def waited_from(mq: trimq.Client) -> dict[str, int]:
    """Id to when the broker took the message, of all that waited in a delay level."""
    found: dict[str, int] = {}
    async with mq.pull() as reader:
        for level in range(len(DELAY_LEVELS_MS)):
            queue, at, end = trimq.Queue("SCHEDULE_TOPIC_XXXX", GROUP, level), 0, 1
            while at < end:
                batch = await reader.read(queue, at, max=1000, wait=0)
                found.update((message.id, message.stored_ms) for message in batch.messages)
                at, end = batch.next_offset, batch.end_offset
    return found


# --- transactions


@dataclass
class Transactions:
    """What a drill of transactions saw."""

    begun: int = 0
    unknown: int = 0
    left: int = 0
    """Left undecided, by choice or because their producer died."""
    checks: int = 0
    kills: int = 0
    committed: int = 0
    rolled_back: int = 0
    missing: int = 0
    phantom: int = 0
    twice: int = 0

    @property
    def violations(self) -> int:
        return self.missing + self.phantom + self.twice

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


async def transactions(cluster: LocalCluster, *, count: int, kills: int, rng: random.Random) -> Transactions:
    """Half messages with commit, rollback and unknown; producers and leaders die; visibility must be as decided."""
    seen = Transactions(kills=kills)
    topic, group = "bookings", "bookers"
    ledger: dict[str, trimq.Outcome] = {}
    """The application's own books. Whoever writes first decides."""

    async def check(message: trimq.Received) -> trimq.Outcome:
        seen.checks += 1
        return ledger.setdefault(message.id, trimq.Outcome.ROLLBACK)

    async def one(producer: trimq.Producer, number: int, stop: trio.CancelScope) -> None:
        message = trimq.Message(topic=topic, body=b"%d" % number)
        try:
            async with producer.transaction(message) as tx:
                seen.begun += 1
                outcome = ledger.setdefault(tx.id, rng.choice((trimq.Outcome.COMMIT, trimq.Outcome.ROLLBACK)))
                dice = rng.random()
                if dice < 0.15:
                    seen.left += 1
                    tx.unknown()
                elif dice < 0.17:
                    seen.left += 1
                    stop.cancel()  # this producer dies here
                    await trio.sleep_forever()
                elif outcome is trimq.Outcome.COMMIT:
                    await tx.commit()
                else:
                    await tx.rollback()
        except TrimqError:
            seen.unknown += 1  # begun or not, decided or not: the check knows

    numbers = iter(range(count))

    async def worker() -> None:
        for _ in range(count):
            async with (
                trimq.connect(cluster.namesrv_address, default_timeout=20) as mq,
                mq.producer(group, check=check) as producer,
            ):
                with trio.CancelScope() as stop:
                    for number in numbers:
                        await one(producer, number, stop)
                    return

    async with trimq.connect(cluster.namesrv_address, default_timeout=60) as mq:
        await mq.admin.create_topic(topic, queues=4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_leaders, cluster, kills, 2.0, [])
            for _ in range(WORKERS):
                nursery.start_soon(worker)
        async with mq.producer(group, check=check):
            await _settled(mq, topic, ledger)
        found = Counter(message.id for message in await read_all(mq, topic))
    wanted = {id for id, outcome in ledger.items() if outcome is trimq.Outcome.COMMIT}
    seen.committed, seen.rolled_back = len(wanted), len(ledger) - len(wanted)
    seen.missing = len(wanted - found.keys())
    seen.phantom = len(found.keys() - wanted)
    seen.twice = sum(1 for times in found.values() if times > 1)
    return seen


async def _settled(mq: trimq.Client, topic: str, ledger: dict[str, trimq.Outcome]) -> None:
    """Until nothing changes for some seconds: checks come every second."""
    still, before = 0, -1
    with trio.move_on_after(60):
        while still < 4:
            await trio.sleep(1.5)
            now = len(await read_all(mq, topic)) + len(ledger)
            still = still + 1 if now == before else 0
            before = now


# --- the command


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills.later", description=__doc__)
    parser.add_argument("drill", choices=["delays", "transactions"])
    parser.add_argument("--levels", type=int, default=10_000)
    parser.add_argument("--timed", type=int, default=1_000)
    parser.add_argument("--count", type=int, default=5_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--span", type=float, default=40.0, help="seconds of sending, and the latest arbitrary time")
    parser.add_argument("--seed", default="1")
    args = parser.parse_args(arguments)
    rng = random.Random(args.seed)

    async def drill(cluster: LocalCluster) -> Delays | Transactions:
        if args.drill == "transactions":
            return await transactions(cluster, count=args.count, kills=args.kills, rng=rng)
        return await delays(cluster, levels=args.levels, timed=args.timed, kills=args.kills, span_s=args.span, rng=rng)

    with tempfile.TemporaryDirectory() as folder, small_cluster(Path(folder)) as cluster:
        result = trio.run(drill, cluster)
    print(json.dumps({"drill": args.drill, "violations": result.violations, **result.as_json()}))
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
