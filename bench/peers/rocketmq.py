"""Apache RocketMQ itself, 5.3.3 from Maven Central: a DLedger group of three, or a master with two slaves.

Started as the interoperability tests do (`tests/interop`), but with the optimising compiler and room to work. Clients
are trimq's own: the thin one speaks the same bytes to both, the library one works against Apache's brokers too.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import trio

import trimq
from bench.peers.base import Address, NotToBeHad, Open, Processes, free_ports, until
from bench.rocketmq_dialect import Pulls, Sends
from bench.thin import Dialect, Refused, drive
from trimq.errors import TrimqError

__all__ = ["opener"]

_MODULE = "server5"
_NODES = ("n0", "n1", "n2")
_HEAP_MB = 768
_READ = "bench-read"


class RocketMQ:
    def __init__(self, name: str, about: str, home: Path, *, dledger: bool) -> None:
        self.name = name
        self.about = about
        self._home = home
        self._dledger = dledger
        ports = free_ports(7)
        self._namesrv, self._ports, self._peers = ports[0], dict(zip(_NODES, ports[1:4], strict=True)), ports[4:]
        self.running = Processes(home)
        self._filled: dict[int, int] = {}

    @property
    def namesrv(self) -> str:
        return f"127.0.0.1:{self._namesrv}"

    def start(self, *names: str) -> None:
        from tests.interop.apache import OPENED
        from tests.interop.java_home import command

        for name in names:
            home = self._home / name
            (home / "conf").mkdir(parents=True, exist_ok=True)
            settings = self._settings(name, home)
            (home / "server.conf").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
            main = "namesrv.NamesrvStartup" if name == "namesrv" else "broker.BrokerStartup"
            heap = 256 if name == "namesrv" else _HEAP_MB
            words = ["-c", home / "server.conf"]
            line = command(_MODULE, f"org.apache.rocketmq.{main}", words, home=home, heap_mb=heap, fast=True)
            line[1:1] = [*OPENED, f"-Xms{heap}m"]
            self.running.start(name, line, env={"HOME": str(home)})

    def _settings(self, name: str, home: Path) -> dict[str, object]:
        if name == "namesrv":
            return {
                "listenPort": self._namesrv,
                "kvConfigPath": home / "kvConfig.json",
                "configStorePath": home / "namesrv.properties",
            }
        at = _NODES.index(name)
        return {
            "brokerClusterName": "DefaultCluster",
            "brokerName": "broker-a",
            "brokerIP1": "127.0.0.1",
            "brokerIP2": "127.0.0.1",
            "listenPort": self._ports[name],
            "namesrvAddr": self.namesrv,
            "storePathRootDir": home / "store",
            "storePathCommitLog": home / "store" / "commitlog",
            "mappedFileSizeCommitLog": 256 << 20,
            "diskMaxUsedSpaceRatio": 95,
            "osPageCacheBusyTimeOutMills": 10_000,
            "waitTimeMillsInSendQueue": 10_000,
            "sendThreadPoolQueueCapacity": 100_000,
            **(self._as_dledger(at) if self._dledger else self._as_slave(at)),
        }

    def _as_dledger(self, at: int) -> dict[str, object]:
        peers = ";".join(f"{node}-127.0.0.1:{port}" for node, port in zip(_NODES, self._peers, strict=True))
        return {
            "enableDLegerCommitLog": "true",
            "dLegerGroup": "broker-a",
            "dLegerPeers": peers,
            "dLegerSelfId": _NODES[at],
            "preferredLeaderId": _NODES[0],
        }

    def _as_slave(self, at: int) -> dict[str, object]:
        """Two copies before an answer, as trimq's majority of three; 5.x waits for nobody unless told."""
        return {
            "brokerId": at,
            "brokerRole": "SLAVE" if at else "SYNC_MASTER",
            "flushDiskType": "SYNC_FLUSH",
            "inSyncReplicas": 2,
            "haListenPort": self._peers[at],
        }

    def _leader(self) -> str | None:
        """Which node is registered with id 0, asked now."""

        async def main() -> str | None:
            async with trimq.connect(self.namesrv) as client:
                with anyio.fail_after(5):
                    groups = (await client.admin.cluster()).groups
                return next((group.leader for group in groups), None)

        try:
            address = trio.run(main)
        except (TrimqError, TimeoutError, OSError):
            return None
        return next((node for node, port in self._ports.items() if address == f"127.0.0.1:{port}"), None)

    def leader(self) -> str:
        until("a leader", lambda: self._leader() is not None, self.running, within_s=40)
        found = self._leader()
        assert found is not None
        return found

    def create_topic(self, name: str, queues: int) -> bool:
        async def main() -> None:
            async with trimq.connect(self.namesrv) as client:
                with anyio.fail_after(10):
                    await client.admin.create_topic(name, queues=queues)
                    await client.send(name, b"?")

        try:
            trio.run(main)
        except (TrimqError, TimeoutError, OSError):
            return False
        return True

    def processes(self) -> Mapping[str, int]:
        pids, leader = self.running.pids(), self.leader()
        others = [node for node in _NODES if node != leader]
        return {"leader": pids[leader]} | {f"follower {at}": pids[node] for at, node in enumerate(others, 1)}

    def _address(self) -> Address:
        return "127.0.0.1", self._ports[self.leader()]

    def sends(
        self, body_bytes: int, *, batch: int = 1, queues: int = 1, topic: str = "bench"
    ) -> tuple[Address, Dialect]:
        return self._address(), Sends([(topic, queue) for queue in range(queues)], body_bytes, batch=batch)

    def pulls(self, body_bytes: int, *, batch: int, messages: int) -> tuple[Address, Dialect]:
        topic = f"{_READ}-{body_bytes}"
        if self._filled.get(body_bytes, 0) < messages:
            until(f"topic {topic}", partial(self.create_topic, topic, 1), self.running)
            address, dialect = self.sends(body_bytes, topic=topic)
            drive(address, dialect, window=256, messages=messages)
            self._filled[body_bytes] = messages
        return self._address(), Pulls(topic, 0, batch=batch, messages=messages)

    def library(self) -> Sequence[str]:
        return ["bench.clients.rocketmq", "--namesrv", self.namesrv]

    def fail(self, fault: str) -> Callable[[], None]:
        if not self._dledger:
            raise NotToBeHad("a master with slaves has no failover")
        victim = self.leader()
        self.running.signal(victim, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        if fault == "kill":
            return partial(self.start, victim)
        return partial(self.running.signal, victim, signal.SIGCONT)

    def warm_up(self) -> bool:
        """The JIT compiler's share is not measured. False while a master refuses: its slaves are not there yet."""
        address, dialect = self.sends(1024)
        try:
            drive(address, dialect, window=256, messages=40_000)
        except Refused:
            return False
        return True


def opener(name: str, about: str, *, dledger: bool) -> Open:
    @contextmanager
    def opened(home: Path) -> Iterator[RocketMQ]:
        from tests.interop import java_home

        try:
            java_home.built()
        except java_home.NotToBeHad as why:
            raise NotToBeHad(str(why)) from None
        peer = RocketMQ(name, about, home, dledger=dledger)
        try:
            peer.start("namesrv", *_NODES)
            until("a topic that takes messages", partial(peer.create_topic, "bench", 8), peer.running, within_s=150)
            until("a warm compiler and slaves in sync", peer.warm_up, peer.running, within_s=90)
            yield peer
        finally:
            peer.running.stop()

    return opened
