"""Which parts a replica is made of, and who knows whom. Construction only: `broker.replica` opens and closes.

Order matters in one place: processors and services get the store, the intake and the replicator, never each other's
insides; what has to be told of something hangs itself on a list of callables.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from broker.config import BrokerConfig, BrokerRole, FlushDiskType, Strategy
from broker.metadata.clients import ClientTable
from broker.metadata.state import GroupState
from broker.metrics import Counters, Rates
from broker.processor.ack_message import AckProcessor
from broker.processor.admin.broker import BrokerAdmin, Parts
from broker.processor.admin.clients import ClientAdmin
from broker.processor.admin.groups import GroupAdmin
from broker.processor.admin.inspection import Inspection
from broker.processor.admin.master_slave import MasterSlaveAdmin
from broker.processor.admin.offsets import OffsetAdmin
from broker.processor.admin.progress import ProgressAdmin
from broker.processor.admin.replication import ReplicationAdmin, TakeGroup
from broker.processor.admin.routes import Administration
from broker.processor.admin.topics import TopicAdmin
from broker.processor.admin.upkeep import Upkeep
from broker.processor.assignment import AssignmentProcessor
from broker.processor.atomic import AtomicProcessor
from broker.processor.client_manage import ClientProcessor
from broker.processor.consumer_manage import ConsumerProcessor
from broker.processor.end_transaction import TransactionProcessor
from broker.processor.leaderless import Leaderless
from broker.processor.offsets import OffsetCommits
from broker.processor.plain_sends import PlainSends
from broker.processor.pop_message import PopProcessor
from broker.processor.pop_questions import PopQuestions
from broker.processor.pull_message import PullProcessor
from broker.processor.query_message import QueryProcessor
from broker.processor.redirect import Redirect
from broker.processor.registry import Dispatcher
from broker.processor.reply_message import ReplyProcessor
from broker.processor.routes import Lanes, Processors, make_routes
from broker.processor.send_back import SendBackProcessor
from broker.processor.send_message import SendProcessor
from broker.processor.timers import TimerProcessor
from broker.replication.base import GroupFailed, Replicator
from broker.replication.ha.config import HaConfig
from broker.replication.intake import Intake, IntakeConfig
from broker.replication.local import LocalConfig, LocalReplicator
from broker.replication.pending_offsets import PendingCollector
from broker.replication.raft_group import GroupConfig, RaftReplicator
from broker.replication.raft_group import Peer as RaftPeer
from broker.replication.relay import Relay
from broker.service.client_calls import ClientCalls
from broker.service.client_reach import ClientReach
from broker.service.goodbyes import Goodbyes
from broker.service.hold import HoldTable
from broker.service.housekeeping import Housekeeping
from broker.service.joining import log_in_sync
from broker.service.leases import Leases
from broker.service.live_config import LiveConfig, creation_rules, retention_rules
from broker.service.long_polling import LongPolling
from broker.service.members import INHERIT_S, Members
from broker.service.offset_resets import OffsetResets
from broker.service.placing import Placing
from broker.service.pop_revive import PopRevive
from broker.service.registration import Registration
from broker.service.schedule import ScheduleService
from broker.service.statistics import Statistics
from broker.service.system_topics import create_system_topics
from broker.service.terms import Terms
from broker.service.timer import TimerService
from broker.service.transaction import TransactionChecks
from broker.service.wheel import Wheel
from broker.store.message_store import MessageStore, StoreConfig
from trimq.errors import BadRequest
from trimq.message.ids import IdSource, host_bytes
from trimq.remoting.server import Connection

if TYPE_CHECKING:
    from broker.env import Env
    from broker.replication.forward import Forwarder
    from broker.store.fs import FileSystem
    from raft.node import RaftNode

__all__ = ["Service", "Wired", "Wiring", "make_intake", "make_replicator", "store_config"]

Service = Callable[..., Awaitable[None]]
"""Runs until cancelled; reports by `task_status` when it works."""

GUARD_S = 1.0


def store_config(config: BrokerConfig, boot_id: str = "") -> StoreConfig:
    """The store's part of the configuration."""
    return StoreConfig(
        retention=retention_rules(config),
        cluster=config.cluster_name,
        group=config.broker_name,
        boot_id=boot_id,
    )


def make_intake(config: BrokerConfig, env: Env, state: GroupState, store: MessageStore, address: str) -> Intake:
    """What forms entries out of requests while this replica leads."""
    node = f"{config.broker_name}/{config.node_id}"
    ids = IdSource(env.rng(node, "ids"), env.clock)
    return Intake(
        state,
        store.log,
        store.queues,
        store.keys,
        env.clock,
        IntakeConfig(
            store_host=_host_bytes(address),
            region=config.region_id,
            creation=creation_rules(config),
        ),
        ids,
    )


def _host_bytes(address: str) -> bytes:
    """What records say of where they were stored. A host name has no room in them: its port alone is kept."""
    try:
        return host_bytes(address)
    except BadRequest:
        return host_bytes(f"0.0.0.0:{address.rpartition(':')[2]}")


def make_replicator(
    config: BrokerConfig,
    env: Env,
    node: RaftNode | None,
    store: MessageStore,
    intake: Intake,
    fs: FileSystem,
    address: str,
    ha_address: str,
) -> Replicator:
    """The strategy that the configuration asks for."""
    rng = env.rng(f"{config.broker_name}/{config.node_id}", "replication")
    if config.replication is Strategy.LOCAL:
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
    assert node is not None, "a replicated group needs the process's Raft node"
    ha_host, _, ha_port = ha_address.rpartition(":")
    own = RaftPeer(config.node_id, ha_host, int(ha_port))
    return RaftReplicator(
        node,
        store,
        intake,
        GroupConfig(
            cluster=config.cluster_name,
            group=config.broker_name,
            node_id=config.node_id,
            peers=(own,) if config.master_slave else tuple(RaftPeer(p.id, p.host, p.port) for p in config.peers),
            client_addr=address,
            segment_bytes=config.segment_bytes,
            preferred_leader=config.preferred_leader,
            listen_host=config.bind_address if config.master_slave else None,
            strategy=config.replication.value,
            ha=HaConfig(
                founds=config.broker_role is not BrokerRole.SLAVE,
                rank=config.broker_id,
                wanted=config.in_sync_replicas,
                least=config.min_in_sync_replicas,
                lowers=config.auto_in_sync,
                flush_sync=config.flush_disk_type is FlushDiskType.SYNC_FLUSH,
                slave_timeout_s=config.slave_timeout_s,
                flush_timeout_s=config.flush_timeout_s,
                gap_bytes=config.gap_bytes,
            ),
            boot_id=env.boot_id,
            unsafe_async_flush=config.unsafe_async_flush,
        ),
        fs,
        rng,
    )


@dataclass(frozen=True, slots=True)
class Wired:
    """What `Wiring.build` made."""

    dispatcher: Dispatcher
    services: Sequence[Service]
    """To be started in this order."""
    on_close: Sequence[Callable[[Connection], None]]
    """To be told of every connection that ends."""
    clients: ClientTable
    parts: Parts


@dataclass(slots=True)
class Wiring:
    """Puts processors and services together."""

    config: BrokerConfig
    env: Env
    fs: FileSystem
    state: GroupState
    store: MessageStore
    intake: Intake
    replicator: Replicator
    address: str
    take_group: TakeGroup | None = None
    """How the process takes another group by command; None: it does not."""

    def build(self, registration: Registration) -> Wired:
        """Everything between the store and the listener; nothing runs yet."""
        config, state, store, intake, replicator = self.config, self.state, self.store, self.intake, self.replicator
        counters, rates = Counters(), Rates()
        clients, lanes = ClientTable(), Lanes.of(config.lane_queue)
        forwarder: Forwarder | None = getattr(replicator, "forwarder", None)
        goodbyes = Goodbyes(forwarder, trio.current_time, INHERIT_S)
        members = Members(clients, state, intake, replicator, goodbyes, notify=config.notify_ids_changed)
        intake.on_flush.append(members.log_sets)
        leases, calls = Leases(intake, members), ClientCalls()
        statistics = Statistics(config.cluster_name, state, store.queues, counters)
        pending = PendingCollector(intake, replicator, forwarder)
        relay = Relay(replicator, forwarder)
        reach = ClientReach(clients, calls, relay)
        holds = HoldTable(total_max=config.held_pulls_max)
        schedule = ScheduleService(config.delay_levels_ms, state, store, intake, replicator, self.env.clock, counters)
        wheel = Wheel(config.timer_roll_s * 1000)
        placing = Placing(config, intake, wheel, self.env.clock)
        timer = TimerService(wheel, state, store, intake, replicator, self.env.clock, counters)
        checks = TransactionChecks(config, state, store, intake, replicator, clients, self.env.clock, counters)
        commits = OffsetCommits(intake, counters)
        redirect = Redirect(config, state, replicator, self.env.memory_bytes)
        pulls = PullProcessor(
            config, state, store, intake, replicator, clients, commits, holds, lanes.disk, counters, redirect
        )
        polling = LongPolling(holds, pulls.look)
        revive = PopRevive(store, intake, replicator, self.env.clock, counters)
        pops = PopProcessor(config, store, intake, replicator, revive, lanes.disk, self.env.clock, counters)
        parts = Parts(
            config=config,
            state=state,
            store=store,
            fs=self.fs,
            replicator=replicator,
            clock=self.env.clock,
            counters=counters,
            rates=rates,
            holds=holds,
            members=members,
            schedule=schedule,
            lanes={"send": lanes.client, "pull": lanes.disk, "ack": lanes.admin, "query": lanes.query},
            address=lambda: self.address,
            pid=self.env.pid,
            started_ms=self.env.clock.wall_ms(),
        )
        timers = TimerProcessor(config, state, store, intake, replicator, timer, self.env.clock, counters)
        processors = Processors(
            send=SendProcessor(config, intake, placing, counters, timers.cancel_by_send),
            plain=PlainSends(config, intake, counters),
            atomic=AtomicProcessor(config, state, store, intake, counters),
            pull=pulls,
            pop=pops,
            pop_questions=PopQuestions(config, store, intake, pops.choosing, pops.waits),
            acks=AckProcessor(config, store, intake, revive, pops.waking, counters),
            assignments=AssignmentProcessor(state, intake, members, registration),
            offsets=commits,
            send_back=SendBackProcessor(
                config,
                store,
                intake,
                replicator,
                counters,
                self.env.rng(f"{config.broker_name}/{config.node_id}", "send-back"),
            ),
            timers=timers,
            transactions=TransactionProcessor(store, intake, replicator, placing, self.env.clock, counters),
            clients=ClientProcessor(config, clients, members, intake, replicator, registration),
            consumers=ConsumerProcessor(config, state, store, intake, replicator, members, leases, pending),
            query=QueryProcessor(state, store, replicator),
            replies=ReplyProcessor(config, intake, reach, self.env.clock, counters, lambda: self.address),
            admin=self._administration(parts, clients, reach, members, polling, statistics, registration),
            admin_allow=config.admin_allow,
        )
        leaderless = Leaderless(state, intake, replicator, forwarder, members.consumer_ids)
        leaderless.unpack(store.log.marks.values.pending)
        store.pending = leaderless.pack
        dispatcher = Dispatcher(replicator, forwarder, make_routes(processors, lanes), leaderless, calls.answered)
        state.on_touched += [polling.touched, schedule.touched, timer.touched, pops.waking.touched]
        store.waiting += [schedule.oldest_position, timer.oldest_position, checks.oldest_position]
        state.on_topics.append(pops.waking.topics_changed)
        state.on_topic_removed.append(store.queues.drop_topic)
        on_close: list[Callable[[Connection], None]] = [
            processors.clients.closed,
            holds.closed,
            pops.waits.closed,
            calls.closed,
        ]
        if forwarder is not None:
            on_close.append(forwarder.closed)
        terms = Terms(
            replicator,
            begin=[leases.begin_term],
            end=[leases.end_term, members.end_term, pending.end_term, revive.end_term],
            services=[
                pending.run_term,
                partial(create_system_topics, config, intake),
                schedule.run_term,
                timer.run_term,
                checks.run_term,
                revive.run_term,
                members.run_term,
                members.expire_inherited,
                partial(log_in_sync, state, intake, replicator),
            ],
            observers=[
                registration.role_changed,
                lambda event: polling.role_changed(),
                leaderless.role_changed,
                pops.role_changed,
            ],
        )
        housekeeping = Housekeeping(clients, members, counters, rates, self.env.clock)
        guard: list[Service] = [] if isinstance(replicator, RaftReplicator) else [partial(_guard_disk, store)]
        services: list[Service] = [
            *guard,
            *(lane.run for lane in lanes.all()),
            processors.atomic.run,
            timers.run,
            relay.run,
            pulls.run,
            polling.run,
            pops.waking.run,
            terms.run,
            registration.run,
            housekeeping.run,
            statistics.run,
        ]
        return Wired(dispatcher, services, on_close, clients, parts)

    def _administration(
        self,
        parts: Parts,
        clients: ClientTable,
        reach: ClientReach,
        members: Members,
        polling: LongPolling,
        statistics: Statistics,
        registration: Registration,
    ) -> Administration:
        config, state, store, intake, replicator = self.config, self.state, self.store, self.intake, self.replicator
        clock = self.env.clock
        resets = OffsetResets(config, intake, clients, reach, members.consumer_ids, polling.touched)
        return Administration(
            topics=TopicAdmin(config, state, store, intake, replicator, clients, registration),
            groups=GroupAdmin(config, state, store, intake, replicator, clients, statistics, members),
            progress=ProgressAdmin(config, state, store, intake, clients, clock),
            offsets=OffsetAdmin(config, state, store, intake, clients, reach, resets),
            clients=ClientAdmin(config, store, replicator, clients, reach, members.consumer_ids, clock),
            inspection=Inspection(config, state, store, replicator, clients, statistics),
            broker=BrokerAdmin(parts, LiveConfig(config, state, store, intake), intake),
            upkeep=Upkeep(store),
            replicas=MasterSlaveAdmin(config, replicator),
            replication=ReplicationAdmin(config.broker_name, replicator, self.take_group),
        )


async def _guard_disk(store: MessageStore, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """A local group whose log cannot be written any more has to be opened anew. (A Raft group sees to it itself.)"""
    task_status.started()
    while True:
        await trio.sleep(GUARD_S)
        fault = store.log.fault
        if fault is not None and fault.kind == "impaired":
            raise GroupFailed(fault.detail)
