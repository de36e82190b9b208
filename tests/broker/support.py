"""A broker in memory: real parts on a network of pipes, a disk in memory and a clock that jumps."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from broker.config import BrokerConfig, Strategy
from broker.env import Env
from broker.runtime import Broker, Replica, open_broker
from broker.store.fs import FileSystem
from broker.store.fs_memory import MemoryFileSystem
from tests.raft.memory_net import HostNetwork, MemoryNetwork, MemoryStream
from trimq.env import Stream, StreamHandler, TaskStatus
from trimq.message import properties
from trimq.message.model import MessageExt, decode_messages
from trimq.remoting.client import RemotingClient, open_remoting_client
from trimq.wire.body.heartbeat import ConsumerData, HeartbeatData, SubscriptionData
from trimq.wire.codes import RequestCode
from trimq.wire.command import Command
from trimq.wire.headers.pull import PullFlag, PullHeader
from trimq.wire.headers.send import SendHeader

START_MS = 1_700_000_000_000


class _Addressed:
    """A stream that knows its two ends."""

    def __init__(self, stream: Stream, *, local: str, peer: str) -> None:
        self.receive_some = stream.receive_some
        self.send_all = stream.send_all
        self.aclose = stream.aclose
        self.local = local
        self.peer = peer


class HostNet:
    """One host's network; the host's name is an IP address."""

    def __init__(self, net: MemoryNetwork, ip: str) -> None:
        self._host = HostNetwork(net, ip)
        self._ip = ip
        self._ports = itertools.count(50_000)

    async def connect(self, host: str, port: int) -> Stream:
        stream = await self._host.connect(host, port)
        return _Addressed(stream, local=f"{self._ip}:{next(self._ports)}", peer=f"{host}:{port}")

    async def serve(self, handler: StreamHandler, host: str, port: int, *, task_status: TaskStatus) -> None:
        async def handle(stream: Stream) -> None:
            assert isinstance(stream, MemoryStream)
            peer = f"{stream._in.source}:{next(self._ports)}"
            await handler(_Addressed(stream, local=f"{self._ip}:{port}", peer=peer))

        await self._host.serve(handle, self._ip, port, task_status=task_status)


class LoopClock:
    """Wall time that follows Trio's clock, so that a jumping clock moves both."""

    def wall_ms(self) -> int:
        return START_MS + int(trio.current_time() * 1000)


@dataclass
class World:
    """What a test broker runs on. The same world opened again finds its files."""

    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    disks: dict[str, MemoryFileSystem] = field(default_factory=dict)
    seed: str = "test"
    memory_bytes: int = 4 << 30
    _lives: Iterator[int] = field(default_factory=itertools.count)

    def env(self, host: str = "10.0.0.1", boot_id: str = "") -> Env:
        seed = f"{self.seed}/{host}/{next(self._lives)}"
        return Env(
            clock=LoopClock(),
            network=self.at(host),
            open_fs=self._open_fs,
            seed=seed,
            memory_bytes=self.memory_bytes,
            boot_id=boot_id,
        )

    def at(self, host: str) -> HostNet:
        return HostNet(self.network, host)

    def disk(self, root: str) -> MemoryFileSystem:
        if root not in self.disks:
            self.disks[root] = MemoryFileSystem(random.Random(f"{self.seed}/{root}"))
        return self.disks[root]

    @asynccontextmanager
    async def _open_fs(self, root: str) -> AsyncIterator[FileSystem]:
        yield self.disk(root)


def local_config(**changes: object) -> BrokerConfig:
    """A group of one replica."""
    fields: dict[str, object] = {
        "strategy": Strategy.LOCAL,
        "listen_port": 10911,
        "broker_ip": "10.0.0.1",
        "store_dir": "a",
        "segment_bytes": 8 << 20,
        "metrics_port": -1,
        "admin_allow": ("10.0.9.1/32",),
    }
    return BrokerConfig(**{**fields, **changes})  # type: ignore[arg-type]  # keywords of the caller


class User:
    """A client that speaks frames."""

    def __init__(self, client: RemotingClient, address: str) -> None:
        self.client = client
        self.address = address
        self.notices: list[Command] = []

    async def ask(self, code: int, ext: dict[str, str] | None = None, body: bytes = b"") -> Command:
        return await self.client.invoke(self.address, Command(code=code, ext=ext or {}, body=body))

    async def send(
        self, topic: str, body: bytes, *, queue: int = 0, props: dict[str, str] | None = None, **header: object
    ) -> Command:
        fields: dict[str, object] = {
            "producer_group": "p",
            "topic": topic,
            "queue_id": queue,
            "sys_flag": 0,
            "born_timestamp": START_MS,
            "properties": properties.format(props or {}),
            **header,
        }
        ext = SendHeader(**fields).to_short_ext()  # type: ignore[arg-type]  # keywords of the caller
        return await self.ask(RequestCode.SEND_MESSAGE_V2, ext, body)

    async def pull(
        self,
        topic: str,
        queue: int,
        offset: int,
        *,
        group: str = "g",
        tags: str = "*",
        hold_ms: int = 0,
        commit: int = -1,
        count: int = 32,
        own: bool = True,
        kind: str = "TAG",
        version: int = 0,
    ) -> Command:
        flag = PullFlag.SUBSCRIPTION if own else 0
        flag |= PullFlag.SUSPEND if hold_ms else 0
        flag |= PullFlag.COMMIT_OFFSET if commit >= 0 else 0
        header = PullHeader(
            consumer_group=group,
            topic=topic,
            queue_id=queue,
            queue_offset=offset,
            max_msg_nums=count,
            sys_flag=int(flag),
            commit_offset=max(commit, 0),
            suspend_timeout_millis=hold_ms,
            subscription=tags if own else "",
            expression_type=kind,
            sub_version=version,
        )
        return await self.ask(RequestCode.PULL_MESSAGE, header.to_ext())

    async def heartbeat(
        self, client_id: str, group: str, topics: dict[str, str], *, version: int = 1, kind: str = "TAG"
    ) -> Command:
        data = HeartbeatData(
            clientID=client_id,
            consumerDataSet=[
                ConsumerData(
                    groupName=group,
                    subscriptionDataSet=[
                        SubscriptionData.of(topic, text, version, kind) for topic, text in topics.items()
                    ],
                )
            ],
        )
        return await self.ask(RequestCode.HEART_BEAT, body=data.to_json())


async def drained(user: User, topic: str, queue: int, end: int, *, start: int = 0) -> list[MessageExt]:
    """All messages of a queue from `start` to `end`, however many pulls that takes."""
    found: list[MessageExt] = []
    at = start
    while at < end:
        answer = await user.pull(topic, queue, at, hold_ms=5_000)
        assert answer.code == 0, answer
        found += messages(answer)
        at = int(answer.ext["nextBeginOffset"])
    return found


def messages(answer: Command) -> list[MessageExt]:
    """The messages in a pull's answer."""
    return decode_messages(answer.body)


@asynccontextmanager
async def open_user(world: World, address: str, *, host: str = "10.0.9.1") -> AsyncIterator[User]:
    """A connection of its own to a broker."""
    notices: list[Command] = []

    def on_request(addr: str, command: Command) -> Command | None:
        notices.append(command)
        return None

    async with open_remoting_client(world.at(host), on_request=on_request) as client:
        user = User(client, address)
        user.notices = notices
        yield user


@asynccontextmanager
async def open_local(world: World | None = None, **changes: object) -> AsyncIterator[tuple[Replica, User, World]]:
    """A ready broker with one local replica, and a user of it."""
    world = world or World()
    broker: Broker
    async with open_broker([local_config(**changes)], world.env()) as broker:
        await broker.wait_ready()
        replica = broker.replicas[0]
        async with open_user(world, replica.address) as user:
            yield replica, user, world
