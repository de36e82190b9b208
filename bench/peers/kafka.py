"""Apache Kafka 3.9.1 from Maven Central: three KRaft nodes, each broker and controller, three replicas, acks=all.

A Kafka broker works through one connection's requests one by one and counts on clients that batch, so a thin client
would do it wrong: it is measured with librdkafka (`confluent-kafka`), its fastest client for Python.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.peers.base import Address, NotToBeHad, Open, Processes, free_ports, until
from bench.thin import Dialect

__all__ = ["opener"]

_PROJECT = Path(__file__).with_name("kafka")
_CLUSTER = "AAAAAAAAQACAAAAAAAAAAA"
"""Base64 of a UUID, as the storage tool wants it."""
_HEAP = ("-Xms768m", "-Xmx768m")


def _classpath() -> str:
    """Raises NotToBeHad."""
    path = _PROJECT / "target" / "classpath.txt"
    if not path.exists():
        if shutil.which("mvn") is None or shutil.which("java") is None:
            raise NotToBeHad("no java or mvn on this machine")
        done = subprocess.run(["mvn", "-B", "-q", "compile"], cwd=_PROJECT, capture_output=True, text=True, timeout=400)
        if done.returncode != 0:
            raise NotToBeHad(f"Maven cannot have Kafka: {' '.join((done.stdout + done.stderr).split())[-300:]}")
    return path.read_text().strip()


class Kafka:
    def __init__(self, name: str, about: str, home: Path, *, flush: bool) -> None:
        self.name = name
        self.about = about
        self._home = home
        self._flush = flush
        ports = free_ports(6)
        self._ports, self._controllers = ports[:3], ports[3:]
        self.running = Processes(home)

    def _settings(self, at: int) -> Mapping[str, object]:
        voters = ",".join(f"{n}@127.0.0.1:{port}" for n, port in enumerate(self._controllers))
        return {
            "process.roles": "broker,controller",
            "node.id": at,
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://127.0.0.1:{self._ports[at]},CONTROLLER://127.0.0.1:{self._controllers[at]}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._ports[at]}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": self._home / f"n{at}",
            "default.replication.factor": 3,
            "min.insync.replicas": 2,
            "offsets.topic.replication.factor": 3,
            "num.partitions": 1,
            **({"log.flush.interval.messages": 1} if self._flush else {}),
        }

    def start(self, *nodes: int) -> None:
        java = ["java", *_HEAP, "-cp", _classpath()]
        for at in nodes:
            path = self._home / f"n{at}.properties"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{key}={value}\n" for key, value in self._settings(at).items()))
            if not (self._home / f"n{at}").exists():
                tool = ["kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(path)]
                done = subprocess.run([*java, *tool], capture_output=True, text=True, timeout=60)
                if done.returncode != 0:
                    raise NotToBeHad(f"Kafka cannot format its storage: {' '.join(done.stderr.split())[-300:]}")
            self.running.start(f"n{at}", [*java, "kafka.Kafka", path])

    @property
    def _servers(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self._ports)

    def create(self) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": self._servers, "log_level": 0} | _SILENT)
        try:
            admin.create_topics([NewTopic("bench", 1, 3)], request_timeout=3)["bench"].result(4)
            return True
        except KafkaException as error:
            return "TOPIC_ALREADY_EXISTS" in str(error)
        except TimeoutError:
            return False

    def processes(self) -> Mapping[str, int]:
        return {f"node {at}": pid for at, pid in enumerate(self.running.pids().values())}

    def sends(self, body_bytes: int, *, batch: int = 1, queues: int = 1) -> tuple[Address, Dialect]:
        raise NotToBeHad("Kafka is measured with librdkafka only: one connection's requests are taken one by one")

    def pulls(self, body_bytes: int, *, batch: int, messages: int) -> tuple[Address, Dialect]:
        raise NotToBeHad("Kafka is measured with librdkafka only")

    def library(self) -> Sequence[str]:
        return ["bench.clients.kafka", "--servers", self._servers]

    def fail(self, fault: str) -> Callable[[], None]:
        self.running.signal("n0", signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        return partial(self.start, 0) if fault == "kill" else partial(self.running.signal, "n0", signal.SIGCONT)


_SILENT = {"error_cb": lambda error: None}


def opener(name: str, about: str, *, flush: bool) -> Open:
    @contextmanager
    def opened(home: Path) -> Iterator[Kafka]:
        try:
            import confluent_kafka  # noqa: F401
        except ImportError:
            raise NotToBeHad("no confluent-kafka: pip install trimq[bench]") from None
        peer = Kafka(name, about, home, flush=flush)
        try:
            peer.start(0, 1, 2)
            until("a topic with three replicas", peer.create, peer.running, within_s=60)
            yield peer
        finally:
            peer.running.stop()

    return opened
