"""One replica of one group: store, state, intake, replicator, services, listener, opened in this order.

What the parts are and who knows whom is `broker.wiring`; here is when they live. The client port is bound first, so
that a port in use is found before anything is touched and port 0 can be told to others; but connections are served only
once everything behind them runs. On the way out it is the other way round: hand leadership over, say goodbye to the
name servers, let the connections send what is queued, then stop the services, the replicator and last the store.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from broker.config import BrokerConfig
from broker.doors import Doors, open_doors
from broker.metadata.clients import ClientTable
from broker.metadata.state import GroupState
from broker.pages import serve_pages
from broker.processor.admin.broker import Parts, group_status
from broker.processor.admin.replication import TakeGroup
from broker.replication.base import Replicator, ReplicatorError
from broker.replication.intake import Intake
from broker.replication.raft_group import RaftReplicator
from broker.service.joining import Joining
from broker.service.registration import Registration
from broker.store.message_store import MessageStore, open_message_store
from broker.wiring import Wired, Wiring, make_intake, make_replicator, store_config
from trimq.remoting.address_page import fetch_addresses
from trimq.remoting.client import open_remoting_client
from trimq.remoting.server import Connection, Limits, RemotingServer

if TYPE_CHECKING:
    from broker.env import Env
    from raft.node import RaftNode
    from trimq.env import Network, Stream, StreamHandler, TaskStatus

__all__ = ["Replica", "open_replica"]

log = logging.getLogger(__name__)

DRAIN_S = 5.0
"""Longest wait for handing leadership over on a clean stop."""


class _Front:
    """What the listener serves: the dispatcher, once everything behind it runs."""

    def __init__(self) -> None:
        self.opened = trio.Event()
        self._wired: Wired | None = None

    def on_frames(self, conn: Connection, frames: Sequence[bytes]) -> None:
        assert self._wired is not None, "no connection is served before the front is open"
        self._wired.dispatcher.serve(conn, frames)

    def on_closed(self, conn: Connection) -> None:
        if self._wired is not None:
            for tell in self._wired.on_close:
                tell(conn)

    def open(self, wired: Wired) -> None:
        self._wired = wired
        self.opened.set()


class _GatedNetwork:
    """Accepts connections at once and hands them on only when the gate is open."""

    def __init__(self, network: Network, opened: trio.Event) -> None:
        self._network = network
        self._opened = opened

    async def connect(self, host: str, port: int) -> Stream:
        return await self._network.connect(host, port)

    async def serve(self, handler: StreamHandler, host: str, port: int, *, task_status: TaskStatus) -> None:
        async def handle(stream: Stream) -> None:
            await self._opened.wait()
            await handler(stream)

        await self._network.serve(handle, host, port, task_status=task_status)


@dataclass(slots=True)
class Replica:
    """One replica of one group, running."""

    config: BrokerConfig
    port: int
    """The bound client port."""
    address: str
    """`ip:port` that clients are told."""
    replicator: Replicator
    intake: Intake
    state: GroupState
    store: MessageStore
    clients: ClientTable
    parts: Parts
    doors: Doors
    """The WebSocket gateway."""
    aborted: bool = False
    """Leave at once, without handing over: what a test does instead of kill -9."""

    @property
    def ready(self) -> bool:
        """Whether this replica leads its group and is ready."""
        return self.replicator.is_ready

    async def wait_ready(self) -> None:
        """Until the group has a leader that this replica knows; if that is itself, until it is ready."""
        async for event in self.replicator.subscribe():
            if event.ready or (event.leader.leader_id and event.leader.leader_id != self.replicator.node_id):
                return

    def statistics(self) -> dict[str, object]:
        """Roles, marks and counters, as a snapshot."""
        return {"status": group_status(self.parts), "counters": self.parts.counters.snapshot()}


@asynccontextmanager
async def open_replica(
    config: BrokerConfig, node: RaftNode | None, env: Env, take_group: TakeGroup | None = None
) -> AsyncIterator[Replica]:
    """Run one replica for as long as the block runs; everything serves when it is entered.

    `take_group` lets an operator's request open further groups in this process.

    Raises `OSError` (port, disk) and the store's and the replicator's own errors, at any time, as a group.
    """
    front = _Front()
    async with env.open_fs(config.store_dir) as fs, trio.open_nursery() as listeners:
        limits = Limits(frame_max_bytes=config.max_frame_bytes, connections_max=env.connections_max)
        server = RemotingServer(front, limits=limits)
        gated = _GatedNetwork(env.network, front.opened)
        port: int = await listeners.start(partial(server.serve, gated, config.bind_address, config.listen_port))
        doors = await open_doors(listeners, gated, server, config, port)
        address = f"{_host(config)}:{port}"
        ha_address = f"{config.ha_ip or _host(config)}:{await _ha_port(config, port, env.network)}"
        state = GroupState(window_ms=config.duplicate_window_s * 1000)
        async with (
            open_message_store(fs, env.clock, store_config(config, env.boot_id), state) as store,
            open_remoting_client(env.network) as client,
        ):
            intake = make_intake(config, env, state, store, address)
            replicator = make_replicator(config, env, node, store, intake, fs, address, ha_address)
            async with trio.open_nursery() as nursery:
                wiring = Wiring(config, env, fs, state, store, intake, replicator, address, take_group)
                registration = Registration(
                    config, state, replicator, client, address, ha_address, _look_up(config, env)
                )
                wired = wiring.build(registration)
                await nursery.start(intake.run)
                await nursery.start(replicator.run)
                if isinstance(replicator, RaftReplicator) and config.master_slave:
                    await nursery.start(Joining(config, replicator, client, address).run)
                for service in wired.services:
                    await nursery.start(service)
                if config.metrics_port >= 0:
                    await serve_pages(listeners, env.network, wired.parts, port, doors.gauges)
                replica = Replica(
                    config, port, address, replicator, intake, state, store, wired.clients, wired.parts, doors
                )
                front.open(wired)
                try:
                    yield replica
                finally:
                    with trio.CancelScope(shield=True):
                        await _leave(replica, registration, server)
                nursery.cancel_scope.cancel()
        listeners.cancel_scope.cancel()


def _look_up(config: BrokerConfig, env: Env) -> Callable[[], Awaitable[tuple[str, ...]]] | None:
    """How to find the name servers when they are not configured."""
    page = config.address_page
    return partial(fetch_addresses, env.network, page) if page else None


async def _ha_port(config: BrokerConfig, port: int, network: Network) -> int:
    """Where a master or slave is reached by its like: `haListenPort`, else the client port + 1.

    Beside a client port that the system chose (listenPort = 0) that one may be in use: then it chooses this one too.
    """
    if config.ha_listen_port or config.listen_port or not config.master_slave:
        return config.ha_listen_port or port + 1
    async with trio.open_nursery() as nursery:
        free: int = await nursery.start(network.serve, _refuse, config.bind_address, 0)
        nursery.cancel_scope.cancel()
    return free


async def _refuse(stream: Stream) -> None:
    await stream.aclose()


def _host(config: BrokerConfig) -> str:
    """What clients are told: the configured address, else the one bound, else loopback."""
    everywhere = config.bind_address.strip("0.:") == ""
    return config.broker_ip or ("127.0.0.1" if everywhere else config.bind_address)


async def _leave(replica: Replica, registration: Registration, server: RemotingServer) -> None:
    """Hand over, then leave. Shielded by the caller: each step has its own deadline."""
    if replica.aborted:
        return
    with trio.move_on_after(DRAIN_S):
        try:
            replica.intake.flush()
            await replica.replicator.drain()
        except ReplicatorError as error:
            log.info("leadership was not handed over", extra={"reason": str(error)})
    await registration.goodbye()
    await server.drain()
