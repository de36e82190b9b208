"""One replica of one group: store, state, intake, replicator, services, listener, opened in this order.

`open_replica` is the wiring and nothing else. The client port is bound first, so that a port in use is found before
anything is touched and port 0 can be told to others; but connections are served only once everything behind them runs.
On the way out it is the other way round: hand leadership over, say goodbye to the name servers, let the connections
send what is queued, then stop the services, the replicator and last the store.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from broker.config import BrokerConfig, Strategy
from broker.metadata.clients import ClientTable
from broker.metadata.state import GroupState
from broker.metrics import Counters, Rates, exposition
from broker.processor.admin.broker import BrokerAdmin, Parts, group_status
from broker.processor.admin.groups import GroupAdmin
from broker.processor.admin.topics import TopicAdmin
from broker.processor.client_manage import ClientProcessor
from broker.processor.consumer_manage import ConsumerProcessor
from broker.processor.leaderless import Leaderless
from broker.processor.offsets import OffsetCommits
from broker.processor.pull_message import PullProcessor
from broker.processor.query_message import QueryProcessor
from broker.processor.registry import Dispatcher
from broker.processor.routes import Lanes, Processors, make_routes
from broker.processor.send_back import SendBackProcessor
from broker.processor.send_message import SendProcessor
from broker.replication.base import GroupFailed, Replicator, ReplicatorError
from broker.replication.control import CreationRules
from broker.replication.intake import Intake, IntakeConfig
from broker.replication.local import LocalConfig, LocalReplicator
from broker.replication.raft_group import GroupConfig, RaftReplicator
from broker.replication.raft_group import Peer as RaftPeer
from broker.service.hold import HoldTable
from broker.service.housekeeping import Housekeeping
from broker.service.leases import Leases
from broker.service.long_polling import LongPolling
from broker.service.members import Members
from broker.service.registration import Registration
from broker.service.schedule import ScheduleService
from broker.service.status_page import Page, StatusPage, json_page
from broker.service.system_topics import create_system_topics
from broker.service.terms import Terms
from broker.store.message_store import MessageStore, StoreConfig, open_message_store
from broker.store.retention import RetentionConfig
from trimq.message.ids import IdSource, host_bytes
from trimq.remoting.client import open_remoting_client
from trimq.remoting.server import Connection, Limits, RemotingServer

if TYPE_CHECKING:
    from broker.env import Env
    from broker.replication.forward import Forwarder
    from broker.store.fs import FileSystem
    from raft.node import RaftNode
    from trimq.env import Network, Stream, StreamHandler, TaskStatus

__all__ = ["Replica", "open_replica"]

log = logging.getLogger(__name__)

Service = Callable[..., Awaitable[None]]
"""Runs until cancelled; reports by `task_status` when it works."""

DRAIN_S = 5.0
"""Longest wait for handing leadership over on a clean stop."""
GUARD_S = 1.0
STATUS_PAGE_OFFSET = 8


class _Front:
    """What the listener serves: the dispatcher, once it is there."""

    def __init__(self) -> None:
        self.opened = trio.Event()
        self.dispatcher: Dispatcher | None = None
        self.on_close: list[Callable[[Connection], None]] = []

    def on_frames(self, conn: Connection, frames: Sequence[bytes]) -> None:
        assert self.dispatcher is not None, "no connection is served before the front is open"
        self.dispatcher.serve(conn, frames)

    def on_closed(self, conn: Connection) -> None:
        for tell in self.on_close:
            tell(conn)

    def open(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
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
    counters: Counters
    parts: Parts
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
        return {"status": group_status(self.parts), "counters": self.counters.snapshot()}


@asynccontextmanager
async def open_replica(
    config: BrokerConfig, node: RaftNode | None, env: Env, *, given: Mapping[str, str] | None = None
) -> AsyncIterator[Replica]:
    """Run one replica for as long as the block runs; everything serves when it is entered.

    Raises `OSError` (port, disk) and the store's and the replicator's own errors, at any time, as a group.
    """
    front = _Front()
    async with env.open_fs(config.store_dir) as fs, trio.open_nursery() as listeners:
        limits = Limits(frame_max_bytes=config.max_frame_bytes, connections_max=env.connections_max)
        server = RemotingServer(front, limits=limits)
        gated = _GatedNetwork(env.network, front.opened)
        port: int = await listeners.start(partial(server.serve, gated, config.bind_address, config.listen_port))
        address = f"{_host(config)}:{port}"
        state = GroupState(window_ms=config.duplicate_window_s * 1000)
        async with (
            open_message_store(fs, env.clock, store_config(config), state) as store,
            open_remoting_client(env.network) as client,
        ):
            intake = _intake(config, env, state, store, address)
            replicator = _replicator(config, env, node, store, intake, fs, address)
            async with trio.open_nursery() as nursery:
                wiring = _Wiring(config, env, fs, state, store, intake, replicator, address, given or {})
                registration = Registration(config, state, replicator, client, lambda: address)
                replica, dispatcher, services = wiring.build(registration, front)
                await nursery.start(intake.run)
                await nursery.start(replicator.run)
                for service in services:
                    await nursery.start(service)
                if config.metrics_port >= 0:
                    await _serve_status(listeners, env, config, port, replica)
                front.open(dispatcher)
                try:
                    yield replica
                finally:
                    with trio.CancelScope(shield=True):
                        await _leave(replica, registration, server)
                nursery.cancel_scope.cancel()
        listeners.cancel_scope.cancel()


async def _guard_disk(store: MessageStore, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """A local group whose log cannot be written any more has to be opened anew. (A Raft group sees to it itself.)"""
    task_status.started()
    while True:
        await trio.sleep(GUARD_S)
        fault = store.log.fault
        if fault is not None and fault.kind == "impaired":
            raise GroupFailed(fault.detail)


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
            replica.intake.flush_offsets()
            await replica.replicator.drain()
        except ReplicatorError as error:
            log.info("leadership was not handed over", extra={"reason": str(error)})
    await registration.goodbye()
    await server.drain()


def store_config(config: BrokerConfig) -> StoreConfig:
    """The store's part of the configuration."""
    return StoreConfig(
        retention=RetentionConfig(
            reserved_ms=config.reserved_s * 1000 or config.reserved_hours * 3_600_000,
            delete_hours=frozenset(range(24) if config.reserved_s else config.delete_when),
            disk_share_max=config.disk_used_ratio / 100,
            disk_share_force=config.disk_clean_ratio / 100 if config.clean_forcibly else 1.0,
        ),
        cluster=config.cluster_name,
        group=config.broker_name,
    )


def _intake(config: BrokerConfig, env: Env, state: GroupState, store: MessageStore, address: str) -> Intake:
    node = f"{config.broker_name}/{config.node_id}"
    ids = IdSource(env.rng(node, "ids"), env.clock)
    return Intake(
        state,
        store.log,
        store.queues,
        store.keys,
        env.clock,
        IntakeConfig(
            store_host=host_bytes(address),
            region=config.region_id,
            creation=CreationRules(
                auto_create_topic=config.auto_create_topic,
                auto_create_group=config.auto_create_group,
                default_queues=config.default_topic_queues,
            ),
        ),
        ids.new_id,
    )


def _replicator(
    config: BrokerConfig,
    env: Env,
    node: RaftNode | None,
    store: MessageStore,
    intake: Intake,
    fs: FileSystem,
    address: str,
) -> Replicator:
    rng = env.rng(f"{config.broker_name}/{config.node_id}", "replication")
    if config.replication is not Strategy.RAFT:
        return LocalReplicator(
            store,
            intake,
            LocalConfig(
                node_id=config.node_id,
                client_addr=address,
                flush_sync=config.sync_flush,
                segment_bytes=config.segment_bytes,
            ),
            rng,
        )
    assert node is not None, "a Raft group needs the process's Raft node"
    return RaftReplicator(
        node,
        store,
        intake,
        GroupConfig(
            cluster=config.cluster_name,
            group=config.broker_name,
            node_id=config.node_id,
            peers=tuple(RaftPeer(peer.id, peer.host, peer.port) for peer in config.peers),
            client_addr=address,
            segment_bytes=config.segment_bytes,
            preferred_leader=config.preferred_leader,
            unsafe_async_flush=config.unsafe_async_flush,
        ),
        fs,
        rng,
    )


@dataclass(slots=True)
class _Wiring:
    """Puts processors and services together."""

    config: BrokerConfig
    env: Env
    fs: FileSystem
    state: GroupState
    store: MessageStore
    intake: Intake
    replicator: Replicator
    address: str
    given: Mapping[str, str]

    def build(self, registration: Registration, front: _Front) -> tuple[Replica, Dispatcher, list[Service]]:
        config, state, store, intake, replicator = self.config, self.state, self.store, self.intake, self.replicator
        counters, rates = Counters(), Rates()
        clients, lanes = ClientTable(), Lanes.of(config.lane_queue)
        members = Members(clients, state, intake, replicator, notify=config.notify_ids_changed)
        leases = Leases(intake)
        holds = HoldTable(total_max=config.held_pulls_max)
        schedule = ScheduleService(config.delay_levels_ms, state, store, intake, replicator, self.env.clock, counters)
        commits = OffsetCommits(intake, counters)
        pulls = PullProcessor(config, state, store, intake, replicator, clients, commits, holds, lanes.disk, counters)
        polling = LongPolling(holds, pulls.look)
        parts = Parts(
            config=config,
            given=self.given,
            state=state,
            store=store,
            fs=self.fs,
            replicator=replicator,
            clock=self.env.clock,
            counters=counters,
            rates=rates,
            holds=holds,
            schedule=schedule,
            lanes={"send": lanes.client, "pull": lanes.disk, "ack": lanes.admin, "query": lanes.query},
            address=lambda: self.address,
            pid=self.env.pid,
            started_ms=self.env.clock.wall_ms(),
        )
        processors = Processors(
            send=SendProcessor(config, intake, counters),
            pull=pulls,
            offsets=commits,
            send_back=SendBackProcessor(
                config,
                store,
                intake,
                replicator,
                counters,
                self.env.rng(f"{config.broker_name}/{config.node_id}", "send-back"),
            ),
            clients=ClientProcessor(config, clients, members, intake, replicator, registration),
            consumers=ConsumerProcessor(config, state, store, intake, replicator, members, leases),
            query=QueryProcessor(state, store, replicator),
            topics=TopicAdmin(config, state, store, intake, replicator, clients, registration),
            groups=GroupAdmin(config, state, store, intake, replicator, clients),
            broker=BrokerAdmin(parts),
        )
        forwarder: Forwarder | None = getattr(replicator, "forwarder", None)
        leaderless = Leaderless(state, intake, replicator, forwarder)
        leaderless.unpack(store.log.marks.values.pending)
        store.pending = leaderless.pack
        dispatcher = Dispatcher(replicator, forwarder, make_routes(processors, lanes), leaderless)
        state.on_touched += [polling.touched, schedule.touched]
        state.on_topic_removed.append(store.queues.drop_topic)
        front.on_close += [processors.clients.closed, holds.closed]
        if forwarder is not None:
            front.on_close.append(forwarder.closed)
        terms = Terms(
            replicator,
            begin=[leases.begin_term],
            end=[leases.end_term, members.end_term],
            services=[
                partial(create_system_topics, config, intake),
                schedule.run_term,
                members.run_term,
                members.expire_inherited,
            ],
            observers=[registration.role_changed, lambda event: polling.role_changed(), leaderless.role_changed],
        )
        housekeeping = Housekeeping(clients, members, counters, rates)
        guard: list[Service] = [] if isinstance(replicator, RaftReplicator) else [partial(_guard_disk, store)]
        services: list[Service] = [
            *guard,
            *(lane.run for lane in lanes.all()),
            pulls.run,
            polling.run,
            terms.run,
            registration.run,
            housekeeping.run,
        ]
        port = int(self.address.rpartition(":")[2])
        replica = Replica(config, port, self.address, replicator, intake, state, store, clients, counters, parts)
        return replica, dispatcher, services


async def _serve_status(listeners: trio.Nursery, env: Env, config: BrokerConfig, port: int, replica: Replica) -> None:
    """The HTTP pages. A port in use is a warning here: the broker works without them."""
    wanted = config.metrics_port or (port + STATUS_PAGE_OFFSET if config.listen_port else 0)
    page = StatusPage(_pages(config, replica))
    try:
        await listeners.start(partial(page.serve, env.network, config.bind_address, wanted))
    except OSError as error:
        log.warning(
            "no status page: its port cannot be bound (metricsPort chooses another, -1 none)",
            extra={"port": wanted, "error": error.strerror or str(error)},
        )


def _pages(config: BrokerConfig, replica: Replica) -> dict[str, Page]:
    labels = {"cluster": config.cluster_name, "broker": config.broker_name, "node_id": config.node_id}

    def health() -> tuple[int, str, bytes]:
        return json_page(200, group_status(replica.parts))

    def ready() -> tuple[int, str, bytes]:
        status = replica.replicator.status()
        serving = status.ready or bool(status.leader.addr)
        reason = status.detail or ("" if serving else "no leader is known")
        return json_page(200 if serving else 503, {"ready": serving, "role": status.role.value, "reason": reason})

    def metrics() -> tuple[int, str, bytes]:
        status = replica.replicator.status()
        gauges = {
            "trimq_term": float(status.term),
            "trimq_leader": float(status.ready),
            "trimq_log_last_index": float(status.last),
            "trimq_commit_index": float(status.commit),
            "trimq_dispatched_index": float(status.dispatched),
            "trimq_held_pulls": float(len(replica.parts.holds)),
        }
        return 200, "text/plain; version=0.0.4", exposition(labels, gauges, replica.counters).encode()

    def alive() -> tuple[int, str, bytes]:
        return 200, "text/plain", b"ok\n"

    return {"/health": health, "/livez": alive, "/readyz": ready, "/metrics": metrics}
