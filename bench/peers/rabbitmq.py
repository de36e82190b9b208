"""RabbitMQ from the system's packages: three nodes, one quorum queue. Quorum queues sync before they confirm.

The thin client publishes AMQP 0-9-1 frames built beforehand and reads confirmations, several at a time as the broker
sends them; reading is by push with a prefetch window and cumulative acknowledgements, which is RabbitMQ's quickest way.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from struct import Struct

import psutil

from bench.peers.base import Address, NotToBeHad, Open, Processes, free_ports, until
from bench.thin import Dialect, Refused, drive

__all__ = ["opener"]

_NODES = ("n0", "n1", "n2")
_HEAD = Struct(">BHI")
_PREFETCH = 512
_BINARIES = ("/usr/lib/rabbitmq/bin", "/usr/local/lib/rabbitmq/bin")


def _method(class_: int, method: int, arguments: bytes, channel: int = 1) -> bytes:
    payload = class_.to_bytes(2, "big") + method.to_bytes(2, "big") + arguments
    return _HEAD.pack(1, channel, len(payload)) + payload + b"\xce"


def _short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


class _Amqp:
    """A connection with one open channel; cuts frames."""

    def __init__(self) -> None:
        self._rest = b""

    def hello(self, link: socket.socket) -> None:
        link.sendall(b"AMQP\x00\x00\x09\x01")
        self._await(link, 10, 10)
        login = b"\x00guest\x00guest"
        start_ok = bytes(4) + _short(b"PLAIN") + len(login).to_bytes(4, "big") + login + _short(b"en_US")
        link.sendall(_method(10, 11, start_ok, 0))
        tune = self._await(link, 10, 30)
        link.sendall(_method(10, 31, tune[:6] + bytes(2), 0) + _method(10, 40, _short(b"/") + bytes(2), 0))
        self._await(link, 10, 41)
        link.sendall(_method(20, 10, bytes(1)))
        self._await(link, 20, 11)

    def _await(self, link: socket.socket, class_: int, method: int) -> bytes:
        while True:
            data = link.recv(1 << 16)
            if not data:
                raise Refused("RabbitMQ closed the connection")
            for kind, payload in self.cut(data):
                if kind == 1 and payload[:4] == class_.to_bytes(2, "big") + method.to_bytes(2, "big"):
                    return payload[4:]

    def cut(self, data: bytes) -> list[tuple[int, bytes]]:
        buffer = self._rest + data if self._rest else data
        at, size, found = 0, len(buffer), []
        while size - at >= 8:
            kind, _, length = _HEAD.unpack_from(buffer, at)
            if at + 8 + length > size:
                break
            found.append((kind, buffer[at + 7 : at + 7 + length]))
            at += 8 + length
        self._rest = buffer[at:]
        return found


class _Publishes(_Amqp):
    def __init__(self, body_bytes: int) -> None:
        super().__init__()
        content = (60).to_bytes(2, "big") + bytes(2) + body_bytes.to_bytes(8, "big") + b"\x10\x00\x02"  # persistent
        self._request = (
            _method(60, 40, bytes(2) + _short(b"") + _short(b"bench") + bytes(1))
            + _HEAD.pack(2, 1, len(content)) + content + b"\xce"
            + _HEAD.pack(3, 1, body_bytes) + bytes(body_bytes) + b"\xce"
        )  # fmt: skip
        self._confirmed = 0
        self._early: set[int] = set()

    def hello(self, link: socket.socket) -> None:
        super().hello(link)
        link.sendall(_method(85, 10, bytes(1)))
        self._await(link, 85, 11)

    def requests(self, count: int) -> bytes:
        return self._request * count

    def settled(self, data: bytes) -> tuple[int, int]:
        """Confirmations name a tag alone or all up to it; those beyond a hole count already, once."""
        done = 0
        for kind, payload in self.cut(data):
            if kind != 1 or payload[:4] != b"\x00\x3c\x00\x50":
                if kind != 8:
                    raise Refused(f"RabbitMQ: {payload[:200]!r}")
                continue
            tag = int.from_bytes(payload[4:12], "big")
            if payload[12] & 1:
                early = {each for each in self._early if each <= tag}
                done += tag - self._confirmed - len(early)
                self._early -= early
                self._confirmed = tag
            else:
                done += 1
                self._early.add(tag)
            while self._confirmed + 1 in self._early:
                self._confirmed += 1
                self._early.discard(self._confirmed)
        return done, done


class _Deliveries(_Amqp):
    """A consumer that acknowledges every half window; its `requests` are those acknowledgements."""

    def __init__(self, queue: bytes) -> None:
        super().__init__()
        self._queue = queue
        self._tag = self._acked = 0

    def hello(self, link: socket.socket) -> None:
        super().hello(link)
        link.sendall(_method(60, 10, bytes(4) + _PREFETCH.to_bytes(2, "big") + bytes(1)))
        self._await(link, 60, 11)
        link.sendall(_method(60, 20, bytes(2) + _short(self._queue) + _short(b"c") + bytes(5)))

    def requests(self, count: int) -> bytes:
        if self._tag == self._acked:
            return b""
        self._acked = self._tag
        return _method(60, 80, self._tag.to_bytes(8, "big") + b"\x01")

    def settled(self, data: bytes) -> tuple[int, int]:
        came = sum(1 for kind, payload in self.cut(data) if kind == 1 and payload[:4] == b"\x00\x3c\x00\x3c")
        self._tag += came
        return int(self._tag - self._acked >= _PREFETCH // 2), came


class RabbitMQ:
    def __init__(self, name: str, about: str, home: Path) -> None:
        self.name = name
        self.about = about
        self._home = home
        ports = free_ports(8)
        self._ports, self._links = dict(zip(_NODES, ports[:3], strict=True)), dict(zip(_NODES, ports[3:6], strict=True))
        self._mapper = ports[6]
        self.running = Processes(home)
        self._rank = ports[7]
        self._filled: dict[int, int] = {}
        found = (Path(folder) / "rabbitmq-server" for folder in _BINARIES)
        self._bin = next((path.parent for path in found if path.exists()), None)
        if self._bin is None or shutil.which("erl") is None:
            raise NotToBeHad("no rabbitmq-server on this machine: apt install rabbitmq-server")

    def _name(self, node: str) -> str:
        return f"{node}x{self._rank}@localhost"

    def _env(self, node: str) -> dict[str, str]:
        home = self._home / node
        return {
            "HOME": str(self._home),
            "RABBITMQ_NODENAME": self._name(node),
            "RABBITMQ_NODE_PORT": str(self._ports[node]),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self._links[node]),
            "RABBITMQ_MNESIA_BASE": str(home),
            "RABBITMQ_LOG_BASE": str(home),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._home / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(home / "none.conf"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "ERL_EPMD_PORT": str(self._mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def start(self, *nodes: str) -> None:
        assert self._bin is not None
        if "epmd" not in self.running.pids():
            program = shutil.which("epmd")
            if program is None:
                raise NotToBeHad("no epmd on this machine")
            self.running.start("epmd", [program], env={"ERL_EPMD_PORT": str(self._mapper), "HOME": str(self._home)})
        (self._home / "plugins").write_text("[].\n")
        cookie = self._home / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text("trimqbench")
            cookie.chmod(0o400)
        for node in nodes:
            home = self._home / node
            home.mkdir(exist_ok=True)
            lines = ["cluster_formation.peer_discovery_backend = classic_config", "loopback_users = none"]
            lines += [f"cluster_formation.classic_config.nodes.{n + 1} = {self._name(e)}" for n, e in enumerate(_NODES)]
            lines += ["disk_free_limit.absolute = 100MB", "cluster_formation.randomized_startup_delay_range.max = 1"]
            (home / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
            self.running.start(node, [self._bin / "rabbitmq-server"], env=self._env(node))

    def _control(self, *words: str) -> bool:
        assert self._bin is not None
        line = [str(self._bin / "rabbitmqctl"), "-q", "-n", self._name("n0"), *words]
        done = subprocess.run(line, env={**_system(), **self._env("n0")}, capture_output=True, text=True, timeout=30)
        return done.returncode == 0

    def joined(self) -> bool:
        said = [self._control("await_online_nodes", "3", "-t", "20")]
        return all(said)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self._ports['n0']}/"

    def declare(self, queue: str) -> bool:
        import asyncio

        import aio_pika

        async def main() -> None:
            connection = await aio_pika.connect(self.url)
            async with connection:
                channel = await connection.channel()
                await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})

        try:
            asyncio.run(main())
        except (OSError, aio_pika.exceptions.AMQPException):
            return False
        return True

    def processes(self) -> Mapping[str, int]:
        """The Erlang machines below the shell scripts."""
        found = {}
        for node, pid in self.running.pids().items():
            for child in psutil.Process(pid).children(recursive=True):
                if child.name().startswith("beam"):
                    found["leader" if node == "n0" else node] = child.pid
        return found

    def sends(self, body_bytes: int, *, batch: int = 1, queues: int = 1) -> tuple[Address, Dialect]:
        if batch > 1:
            raise NotToBeHad("RabbitMQ has no batches")
        return ("127.0.0.1", self._ports["n0"]), _Publishes(body_bytes)

    def pulls(self, body_bytes: int, *, batch: int, messages: int) -> tuple[Address, Dialect]:
        """What is in the queue by then is read and gone, so it is filled for every run."""
        address, sends = self.sends(body_bytes)
        drive(address, sends, window=512, messages=messages + 512)
        return address, _Deliveries(b"bench")

    def library(self) -> Sequence[str]:
        return ["bench.clients.rabbitmq", "--url", self.url]

    def fail(self, fault: str) -> Callable[[], None]:
        victim = self.processes()["leader"]
        process = psutil.Process(victim)
        if fault == "kill":
            process.kill()
            return partial(self.start, "n0")
        process.suspend()
        return partial(process.send_signal, signal.SIGCONT)

    def stop(self) -> None:
        for pid in self.running.pids().values():
            try:
                for child in psutil.Process(pid).children(recursive=True):
                    child.kill()
            except psutil.NoSuchProcess:
                continue
        self.running.stop()


def _system() -> dict[str, str]:
    import os

    return dict(os.environ)


def opener(name: str, about: str) -> Open:
    @contextmanager
    def opened(home: Path) -> Iterator[RabbitMQ]:
        try:
            import aio_pika  # noqa: F401
        except ImportError:
            raise NotToBeHad("no aio-pika: pip install trimq[bench]") from None
        home.mkdir(parents=True, exist_ok=True)
        peer = RabbitMQ(name, about, home)
        try:
            peer.start(*_NODES)
            until("three nodes online", peer.joined, peer.running, within_s=90)
            until("a quorum queue", partial(peer.declare, "bench"), peer.running)
            yield peer
        finally:
            peer.stop()

    return opened
