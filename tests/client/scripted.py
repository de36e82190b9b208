"""A cluster in memory that answers as the protocol says, and misbehaves on command.

Not a broker: one producer table per replica group, lists of bodies instead of a log, no consumers. It exists for what
a real broker does only by chance or not at all: answers lost at a chosen moment, frozen leaders, stale hints,
refusals. What a real broker does by itself is tested against the real one. Everything is synchronous inside
`send_all`, so a test owns the order of events; it runs under Trio and asyncio.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from trio.testing import MockClock

from trimq.client.client import Client, open_client
from trimq.env import Stream, StreamHandler, TaskStatus
from trimq.message.batch import iter_batch
from trimq.message.properties import parse
from trimq.wire.body.group import Hello
from trimq.wire.body.route import BrokerData, QueueData, TopicRouteData
from trimq.wire.codes import VERSION, RequestCode, ResponseCode
from trimq.wire.command import Command, decode, encode
from trimq.wire.frame import FrameDecoder
from trimq.wire.headers.send import SendHeader

NAMESRV = "ns:1"


class FixedClock:
    def wall_ms(self) -> int:
        return 1_700_000_000_000


@dataclass
class Stored:
    queue: int
    offset: int
    body: bytes
    id: str


@dataclass
class Group:
    """One replica group: its log, and who leads."""

    name: str
    addresses: list[str]
    term: int = 1
    leader: str | None = None
    registered: str | None = None
    """Whom the name server believes to lead."""
    ours: bool = True
    version: int = VERSION
    hints: bool = True
    log: list[Stored] = field(default_factory=list)
    tables: dict[str, tuple[int, dict[tuple[int, int], dict[str, str]]]] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def elect(self, addr: str | None) -> None:
        """A new leader, known to the name server at once."""
        self.leader = addr
        self.term += 1
        if addr is not None:
            self.registered = addr

    @property
    def bodies(self) -> list[bytes]:
        return [stored.body for stored in self.log]


Judge = Callable[["Group", Command, SendHeader], "Command | str | None"]
"""Decides over a send: an answer instead of the normal one, "drop" for none at all, "lose" for storing without an
answer, None for the normal course."""


class Server:
    """One address."""

    def __init__(self, addr: str, cluster: Cluster, group: Group | None) -> None:
        self.addr = addr
        self.cluster = cluster
        self.group = group
        self.alive = True
        self.frozen = False
        self.streams: list[MemoryStream] = []
        self.frames = 0

    def kill(self) -> None:
        """As kill -9: every connection ends, new ones are refused."""
        self.alive = False
        for stream in self.streams:
            stream.end()
        self.streams.clear()

    def receive(self, stream: MemoryStream, frame: bytes) -> None:
        if self.frozen:
            return
        self.frames += 1
        command = decode(frame)
        answer = self.cluster.answer(self, command)
        if answer is not None and not command.is_oneway:
            stream.push(encode(answer))


class MemoryStream:
    """The client's end of a connection to a `Server`."""

    def __init__(self, server: Server) -> None:
        self.peer = server.addr
        self.local = "client:1"
        self._server = server
        self._decoder = FrameDecoder()
        self._incoming = bytearray()
        self._ended = False
        self._news = anyio.Event()

    def push(self, data: bytes) -> None:
        self._incoming += data
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._incoming.clear()
        self._news.set()

    async def receive_some(self, max_bytes: int) -> bytes:
        await anyio.lowlevel.checkpoint()
        while not self._incoming and not self._ended:
            self._news = anyio.Event()
            await self._news.wait()
        data = bytes(self._incoming[:max_bytes])
        del self._incoming[:max_bytes]
        return data

    async def send_all(self, data: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        if self._ended:
            raise ConnectionResetError("connection reset")
        for frame in self._decoder.feed(data):
            self._server.receive(self, frame)

    async def aclose(self) -> None:
        self.end()


class Cluster:
    """A name server and replica groups; also the network that leads to them."""

    def __init__(self, groups: Mapping[str, int], *, topics: Mapping[str, int]) -> None:
        self.topics = dict(topics)
        self.without: dict[str, set[str]] = {}
        """Topic to the groups that do not have it (yet)."""
        self.groups = {
            name: Group(name, [f"{name}{number}:1" for number in range(count)]) for name, count in groups.items()
        }
        self.servers = {NAMESRV: Server(NAMESRV, self, None)}
        self.judge: Judge = lambda group, command, header: None
        self.sends: list[tuple[str, Command, SendHeader]] = []
        for group in self.groups.values():
            group.leader = group.registered = group.addresses[0]
            self.servers.update({addr: Server(addr, self, group) for addr in group.addresses})

    def kill(self, addr: str) -> None:
        self.servers[addr].kill()

    # trimq.env.Network

    async def connect(self, host: str, port: int) -> Stream:
        await anyio.lowlevel.checkpoint()
        server = self.servers[f"{host}:{port}"]
        if not server.alive:
            raise ConnectionRefusedError("connection refused")
        stream = MemoryStream(server)
        server.streams.append(stream)
        return stream

    async def serve(self, handler: StreamHandler, host: str, port: int, *, task_status: TaskStatus) -> None:
        raise OSError("this network only connects")

    # Answers

    def answer(self, server: Server, command: Command) -> Command | None:
        group = server.group
        if group is None:
            return self._route(command)
        if command.code == RequestCode.HELLO:
            if not group.ours:
                answer = reply(command, ResponseCode.REQUEST_CODE_NOT_SUPPORTED)
                answer.version = group.version
                return answer
            return reply(command, 0, body=Hello.ours(group=group.name).to_json())
        if command.code in (RequestCode.SEND_MESSAGE_V2, RequestCode.SEND_BATCH_MESSAGE):
            return self._send(server, group, command)
        return reply(command, 0)

    def _route(self, command: Command) -> Command:
        topic = command.ext["topic"]
        queues = self.topics.get(topic, 8 if topic == "TBW102" else 0)
        groups = [group for group in self.groups.values() if group.name not in self.without.get(topic, ())]
        if not queues or not groups:
            return reply(command, ResponseCode.TOPIC_NOT_EXIST)
        route = TopicRouteData(
            brokerDatas=[
                BrokerData(brokerName=group.name, cluster="C", brokerAddrs=self._addresses(group)) for group in groups
            ],
            queueDatas=[
                QueueData(brokerName=group.name, perm=6, readQueueNums=queues, writeQueueNums=queues)
                for group in groups
            ],
        )
        return reply(command, 0, body=route.to_json())

    def _addresses(self, group: Group) -> dict[int, str]:
        others = [addr for addr in group.addresses if addr != group.registered]
        addresses = dict(enumerate(others, 1))
        if group.registered is not None:
            addresses[0] = group.registered
        return addresses

    def _send(self, server: Server, group: Group, command: Command) -> Command | None:
        header = SendHeader.from_ext(command.ext)
        self.sends.append((server.addr, command, header))
        hint: dict[str, str] = {}
        if group.hints and group.leader is not None:
            hint = {"leaderAddr": group.leader, "leaderTerm": str(group.term)}
        verdict = self.judge(group, command, header)
        if isinstance(verdict, Command):
            return verdict
        if verdict == "drop":
            return None
        if group.leader is None or not self.servers[group.leader].alive or self.servers[group.leader].frozen:
            code = ResponseCode.NOT_STORED if group.ours else ResponseCode.SERVICE_NOT_AVAILABLE
            return reply(command, code, remark="no leader", ext=hint)
        if server.addr != group.leader and not group.ours:
            return reply(command, ResponseCode.SERVICE_NOT_AVAILABLE, remark="slave", ext=hint)
        answer = self._store(group, command, header)
        answer.ext.update(hint)
        return None if verdict == "lose" else answer

    def _store(self, group: Group, command: Command, header: SendHeader) -> Command:
        batch = command.code == RequestCode.SEND_BATCH_MESSAGE
        elements = iter_batch(command.body) if batch else []
        bodies = [e.body for e in elements] if batch else [command.body]
        ids = [parse(e.properties)["UNIQ_KEY"] for e in elements] if batch else [parse(header.properties)["UNIQ_KEY"]]
        if header.again:
            for stored in group.log:
                if stored.id == ids[0]:
                    return reply(command, 0, ext=placed(stored.queue, stored.offset, duplicate=True))
        if header.sequence is None:
            return reply(command, 0, ext=self._append(group, header.queue_id, bodies, ids))
        _, _, first, floor = header.sequence
        expected, runs = group.tables.get(header.pid, (0, {}))
        expected = max(expected, floor)
        if first > expected:
            return reply(command, ResponseCode.OUT_OF_SEQUENCE, ext={"next": str(expected)})
        if first < expected:
            known = runs.get((first, len(bodies)))
            if known is None:
                return reply(command, ResponseCode.STALE_SEQUENCE, ext={"next": str(expected)})
            return reply(command, 0, ext={**known, "dup": "1"})
        ext = self._append(group, header.queue_id, bodies, ids)
        runs = {run: answer for run, answer in runs.items() if run[0] + run[1] > floor}
        runs[first, len(bodies)] = ext
        group.tables[header.pid] = (first + len(bodies), runs)
        return reply(command, 0, ext=ext)

    def _append(self, group: Group, queue: int, bodies: list[bytes], ids: list[str]) -> dict[str, str]:
        start = group.ends[queue]
        for index, body in enumerate(bodies):
            group.log.append(Stored(queue, start + index, body, ids[index]))
        group.ends[queue] += len(bodies)
        return placed(queue, start)


def reply(
    command: Command, code: int, *, remark: str = "", ext: Mapping[str, str] | None = None, body: bytes = b""
) -> Command:
    """An answer to a request."""
    return Command(code=code, opaque=command.opaque, flag=1, remark=remark, ext=dict(ext or {}), body=body)


def placed(queue: int, offset: int, *, duplicate: bool = False) -> dict[str, str]:
    ext = {"msgId": "0", "queueId": str(queue), "queueOffset": str(offset)}
    if duplicate:
        ext["dup"] = "1"
    return ext


@asynccontextmanager
async def client_of(cluster: Cluster, *, default_timeout: float = 10.0) -> AsyncIterator[Client]:
    """A client of a scripted cluster, with nothing left to chance."""
    rng = random.Random("client")
    async with open_client(
        NAMESRV, cluster, FixedClock(), rng, client_id="test@1", default_timeout=default_timeout
    ) as client:
        yield client


def run(backend: str, body: Callable[[], Awaitable[None]]) -> None:
    """Run a test body; under Trio time jumps to the next timer as soon as nothing else can happen."""
    options: dict[str, Any] = {}  # Any: AnyIO hands it to the backend
    if backend == "trio":
        options["clock"] = MockClock(autojump_threshold=0)

    async def bounded() -> None:
        with anyio.fail_after(60):
            await body()

    anyio.run(bounded, backend=backend, backend_options=options)
