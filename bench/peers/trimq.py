"""trimq itself: the processes that `deploy/run3.sh` starts, one replica group, led by the first node."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import trio

import trimq
from bench.peers.base import Address, NotToBeHad
from bench.rocketmq_dialect import Pulls, Sends
from bench.thin import Dialect, drive
from trimq.testing import status
from trimq.testing.local_cluster import LocalCluster

__all__ = ["Trimq", "opener"]

_READ = "bench-read"
_QUEUES = 64
_SETTLED_WITHIN_S = 60.0
"""A leader that was elected in a second term hands over after half a minute."""


class Trimq:
    """One cluster of ours."""

    def __init__(self, name: str, cluster: LocalCluster, about: str) -> None:
        self.name = name
        self.about = about
        self.cluster = cluster
        self._filled: dict[int, int] = {}

    def leader(self, group: str = "") -> str:
        """Of a group; of the first one when none is named."""
        group = group or self.cluster.groups[0]
        end = time.monotonic() + 10
        while time.monotonic() < end:
            found = status.query(self.cluster)[group].leader
            if found is not None:
                return found
            time.sleep(0.05)
        raise NotToBeHad("nobody leads")

    def settle(self) -> None:
        """Let each group be led by the node that is preferred, so that no hand-over falls into a measurement."""
        for at, group in enumerate(self.cluster.groups):
            wanted = self.cluster.nodes[at % len(self.cluster.nodes)]
            end = time.monotonic() + _SETTLED_WITHIN_S
            while self.leader(group) != wanted:
                if time.monotonic() > end:
                    raise NotToBeHad(f"{group} is led by {self.leader(group)}, not by {wanted}")
                time.sleep(0.1)

    def processes(self) -> Mapping[str, int]:
        leader = self.leader()
        others = [node for node in self.cluster.nodes if node != leader]
        return {"leader": self.cluster.pids[leader]} | {
            f"follower {at}": self.cluster.pids[node] for at, node in enumerate(others, 1)
        }

    def address(self) -> Address:
        host, _, port = self.cluster.client_address(self.leader(), self.cluster.groups[0]).rpartition(":")
        return host, int(port)

    def create_topic(self, name: str, queues: int) -> None:
        async def main() -> None:
            async with trimq.connect(self.cluster.namesrv_address) as client:
                await client.admin.create_topic(name, queues=queues)

        trio.run(main)

    def sends(
        self, body_bytes: int, *, batch: int = 1, queues: int = 1, topic: str = "bench", unique: bool = False
    ) -> tuple[Address, Dialect]:
        places = [(topic, queue) for queue in range(queues)]
        return self.address(), Sends(places, body_bytes, batch=batch, unique=unique)

    def pulls(self, body_bytes: int, *, batch: int, messages: int) -> tuple[Address, Dialect]:
        topic = f"{_READ}-{body_bytes}"
        if self._filled.get(body_bytes, 0) < messages:
            self.create_topic(topic, 1)
            address, dialect = self.sends(body_bytes, batch=64, topic=topic)
            drive(address, dialect, window=8, messages=messages)
            self._filled[body_bytes] = messages
        return self.address(), Pulls(topic, 0, batch=batch, messages=messages)

    def library(self) -> Sequence[str]:
        return ["bench.clients.rocketmq", "--namesrv", self.cluster.namesrv_address]

    def fail(self, fault: str) -> Callable[[], None]:
        victim = self.leader()
        if fault == "kill":
            self.cluster.kill(victim)
            return partial(self._back, victim)
        self.cluster.pause(victim)
        return partial(self.cluster.signal, victim, signal.SIGCONT)

    def _back(self, victim: str) -> None:
        self.cluster.start(victim)
        status.wait_ready_blocking(self.cluster)


def opener(
    name: str,
    about: str,
    *,
    flush: str = "sync",
    extra: Mapping[str, str] | None = None,
    source: Path | None = None,
    nodes: int = 3,
    groups: int = 1,
) -> Callable[[Path], AbstractContextManager[Trimq]]:
    """A cluster of ours; `extra` are configuration keys, `source` the tree whose code its processes run."""

    @contextmanager
    def opened(home: Path) -> Iterator[Trimq]:
        cluster = LocalCluster.create(
            home, base_port=0, groups=groups, nodes=nodes, flush=flush, extra=dict(extra or {})
        )
        peer = Trimq(name, cluster, about)
        try:
            with _import_from(source):
                cluster.start()
            status.wait_ready_blocking(cluster)
            peer.settle()
            peer.create_topic("bench", _QUEUES)
            yield peer
        finally:
            cluster.stop()

    return opened


@contextmanager
def _import_from(source: Path | None) -> Iterator[None]:
    """Child processes started meanwhile import our packages from there."""
    before = os.environ.get("PYTHONPATH")
    if source is not None:
        os.environ["PYTHONPATH"] = str(source)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before
