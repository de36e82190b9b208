"""A three-node Raft cluster for foreign clients, whose leaders are killed while they work; and what it stored.

`Killer` kills a leader when told and brings the node back a little later, so that a test can go on meanwhile.
`stored` reads every queue of a topic from 0 to its end with our own client: the truth that a foreign client's own
words are compared with.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import trio

import trimq
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import query, wait_ready_blocking

DOWN_S = 1.5
"""How long a killed node stays away."""
SHORT_LEVELS = "1s 2s 2s 2s 3s 4s 5s 6s 7s 8s 9s 10s 20s 30s 1m 2m 3m 4m"
"""Delay levels that let a test see retries and dead letters in seconds."""


@contextmanager
def cluster_for_clients(directory: Path, *, groups: int = 3, **extra: str) -> Iterator[LocalCluster]:
    """A ready cluster; gone when the block ends. Prints its last words when the test fails."""
    cluster = LocalCluster.create(
        directory, base_port=0, groups=groups, extra={"messageDelayLevel": SHORT_LEVELS, **extra}
    )
    try:
        cluster.start()
        wait_ready_blocking(cluster)
        yield cluster
    finally:
        cluster.stop()


class Killer:
    """Kills leaders, one group after the other, and brings them back."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._back: list[threading.Thread] = []
        self.kills = 0
        self.led = 0
        """Replica groups that the node killed last was leading."""

    def kill(self) -> None:
        """kill -9 the node that leads the next group in turn; it comes back by itself."""
        self.healed()
        group = self._cluster.groups[self.kills % len(self._cluster.groups)]
        leaders = {name: found.leader for name, found in query(self._cluster).items()}
        leader = leaders[group]
        assert leader is not None
        self.led = list(leaders.values()).count(leader)
        self._cluster.kill(leader)
        self.kills += 1
        thread = threading.Thread(target=self._return, args=(leader,))
        thread.start()
        self._back.append(thread)

    def _return(self, node: str) -> None:
        time.sleep(DOWN_S)
        self._cluster.start(node)

    def healed(self) -> None:
        """Wait until all nodes are back and every group has a ready leader."""
        self.returned()
        wait_ready_blocking(self._cluster)

    def returned(self) -> None:
        """Wait until what was killed is started again. A test that failed does this before its cluster is stopped:
        else a node would come back behind it, and stay."""
        for thread in self._back:
            thread.join()
        self._back.clear()


@dataclass(slots=True)
class Stored:
    """What stands in the queues of a topic."""

    places: dict[str, list[tuple[str, int, int]]] = field(default_factory=lambda: defaultdict(list))
    """Body → (broker, queue, offset) of each copy."""
    tags: dict[str, str | None] = field(default_factory=dict)
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    order: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    """(broker, queue) → bodies in the order of their offsets."""

    @property
    def bodies(self) -> set[str]:
        return set(self.places)

    @property
    def twice_in_one_group(self) -> int:
        """Copies beyond the first inside one replica group: the log promises none for messages with an id."""
        return sum(
            len(copies) - len({broker for broker, _, _ in copies}) for copies in self.places.values() if len(copies) > 1
        )

    @property
    def twice_elsewhere(self) -> int:
        """Copies in a second replica group: the client itself sent the message again, to another broker."""
        return sum(len({broker for broker, _, _ in copies}) - 1 for copies in self.places.values())


def stored(namesrv: str, topic: str) -> Stored:
    """Everything in a topic."""

    async def main() -> Stored:
        found = Stored()
        async with trimq.connect(namesrv) as client, client.pull() as consumer:
            for queue in await consumer.queues(topic):
                with anyio.fail_after(60):
                    offset, end = await consumer.bounds(queue)
                order = found.order.setdefault((queue.group, queue.id), [])
                while offset < end:
                    with anyio.fail_after(60):
                        batch = await consumer.read(queue, offset, max=256, wait=0.5)
                    for message in batch.messages:
                        body = message.body.decode()
                        found.places[body].append((queue.group, queue.id, message.offset))
                        found.tags[body] = message.tag
                        found.keys[body] = tuple(message.keys)
                        order.append(body)
                    offset = batch.next_offset
        return found

    return trio.run(main)


def create_topic(namesrv: str, topic: str, *, queues: int = 4) -> None:
    """In every replica group."""

    async def main() -> None:
        async with trimq.connect(namesrv) as client:
            await client.admin.create_topic(topic, queues=queues)

    trio.run(main)


def send(namesrv: str, topic: str, bodies: Sequence[str], *, tags: Sequence[str] = ("TagA",)) -> None:
    """With our own client, tags in turn, property `n` as the Java driver sets it."""

    async def main() -> None:
        async with trimq.connect(namesrv) as client:
            for number, body in enumerate(bodies):
                await client.send(
                    topic, body, tag=tags[number % len(tags)], keys=[f"key-{number}"], properties={"n": str(number)}
                )

    trio.run(main)


@dataclass(slots=True)
class Found:
    """What a row measured."""

    messages: int = 0
    lost: int = 0
    twice: int = 0
    errors: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


def bodies(count: int) -> list[str]:
    return [f"body-{n}" for n in range(count)]


def compare(found: Found, wanted: set[str], there: Stored) -> None:
    """Count what is missing or stored twice. Copies in another replica group are the client's own retry there."""
    found.lost = len(wanted - there.bodies)
    found.twice = there.twice_in_one_group
    if there.twice_elsewhere:
        found.notes.append(f"{there.twice_elsewhere} sent again by the client to another broker")
    found.expect(not there.bodies - wanted, f"{len(there.bodies - wanted)} messages that were not sent")
