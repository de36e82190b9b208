"""The broker process: its replicas, opened together and supervised one by one.

Promise: inside `async with open_broker(...)` every listener is bound and every store is recovered; on the way out each
replica hands leadership over, answers what is in flight, and its store closes last, flushed. Several configurations
make one process host several groups (RocketMQ's broker container). What cannot start stops the start, with one clear
sentence; what fails later ends its own replica, which is opened again after a pause, and never the other groups.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from broker.config import BrokerConfig, ConfigError, Strategy
from broker.env import Env
from broker.metadata.ops import NewerVersion
from broker.processor.admin.replication import TakeGroup
from broker.replica import Replica, open_replica
from broker.replication.base import GroupFailed, ReopenPlanned
from broker.replication.requests import Refused
from broker.store.errors import StoreError, StoreRefused
from broker.taken_groups import TakenGroup, load_taken, save_taken
from raft.node import NodeConfig, RaftNode
from trimq.errors import BadName
from trimq.message import names
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.group import CreateGroupHeader

__all__ = ["Broker", "Env", "Replica", "StartError", "explain", "open_broker"]

log = logging.getLogger(__name__)

REOPEN_FIRST_S = 1.0
REOPEN_MAX_S = 30.0
"""Pause before a replica that failed is opened again; it doubles each time ..."""
CALM_S = 10.0
"""... unless the replica had run for so long: longer than one whose disk fails at once stays open."""
TICKS_PER_ELECTION = 20
TICK_MIN_MS, TICK_MAX_MS = 10, 50
"""The clock's grain: 20 ms at the default raftElectionMs of 400; patient clusters need not look so often."""


PORT_STRIDE, PORT_TRIES = 20, 100
"""Where a group taken by command looks for a client port, from the first replica's on."""


class StartError(Exception):
    """The broker cannot start; the text says why and what to do."""


class Broker:
    """The running process."""

    def __init__(self, count: int) -> None:
        self.stop = trio.Event()
        self.scopes: list[trio.CancelScope] = []
        self._replicas: list[Replica | None] = [None] * count
        self._failures = [""] * count

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The replicas that run now, in the order of their configurations."""
        return tuple(replica for replica in self._replicas if replica is not None)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why replicas that do not run failed last."""
        return tuple(failure for failure in self._failures if failure)

    def add(self) -> int:
        """Room for one more replica; returns its number."""
        self._replicas.append(None)
        self._failures.append("")
        return len(self._replicas) - 1

    async def wait_ready(self) -> None:
        """Until every group has a leader known here; a leader among these replicas is ready."""
        for replica in self.replicas:
            await replica.wait_ready()

    def abort(self) -> None:
        """End all replicas at once, without handing over or flushing: what a test does instead of kill -9."""
        for replica in self.replicas:
            replica.aborted = True
        for scope in self.scopes:
            scope.cancel()

    def entered(self, number: int, replica: Replica) -> None:
        self._replicas[number] = replica
        self._failures[number] = ""

    def left(self, number: int, failure: str) -> None:
        self._replicas[number] = None
        self._failures[number] = failure


@asynccontextmanager
async def open_broker(configs: Sequence[BrokerConfig], env: Env) -> AsyncIterator[Broker]:
    """Run the replicas of `configs` for as long as the block runs.

    Entering returns when all stores are recovered and all listeners are bound; a group may still be electing. Raises
    `StartError` with one sentence: port in use, store of another cluster or of a newer format, unbuilt strategy.
    Leaving stops gracefully: hand over leadership, answer what is in flight, flush, close.
    """
    _check(configs)
    broker = Broker(len(configs))
    failure: StartError | None = None
    async with trio.open_nursery() as nursery:
        node_scope = trio.CancelScope(shield=True)
        node = await _start_node(configs, env, nursery, node_scope)
        try:
            # Leaving this nursery waits for the replicas: each is shielded, and bounds its own stop.
            async with trio.open_nursery() as supervised:
                try:
                    growth = Growth(broker, configs, node, env, supervised)
                    supervisors = [
                        _Supervisor(broker, number, config, node, env, growth.take)
                        for number, config in enumerate(configs)
                    ]
                    for supervisor in supervisors:
                        supervised.start_soon(supervisor.run)
                    for supervisor in supervisors:
                        await supervisor.settled.wait()
                        failure = failure or supervisor.failure
                    if failure is None:
                        await growth.reopen()
                        yield broker
                finally:
                    broker.stop.set()
        finally:
            node_scope.cancel()
    if failure is not None:
        raise failure


async def _start_node(
    configs: Sequence[BrokerConfig], env: Env, nursery: trio.Nursery, scope: trio.CancelScope
) -> RaftNode | None:
    """The process's part in all its replicated groups: one tick, one listener, one link per pair of nodes."""
    grouped = [config for config in configs if config.replication is not Strategy.LOCAL]
    if not grouped:
        return None
    first = grouped[0]
    node = RaftNode(
        env.network,
        env.rng(first.node_id, "raft"),
        NodeConfig(
            tick_ms=max(TICK_MIN_MS, min(TICK_MAX_MS, first.election_ms // TICKS_PER_ELECTION)),
            beat_ms=first.heartbeat_ms,
            election_ms=first.election_ms,
        ),
    )

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await node.run(task_status=task_status)

    await nursery.start(run)
    return node


def _check(configs: Sequence[BrokerConfig]) -> None:
    """What can be known to be wrong before anything is opened."""
    if not configs:
        raise StartError("no configuration: give at least one -c FILE")
    seen: dict[tuple[str, str], int] = {}
    for number, config in enumerate(configs):
        try:
            config.check()
        except ConfigError as error:
            raise StartError(str(error)) from None
        for what, value in (
            ("storePathRootDir", config.store_dir),
            ("listenPort", str(config.listen_port) if config.listen_port else ""),
        ):
            before = seen.setdefault((what, value), number) if value else number
            if before != number:
                raise StartError(
                    f"{what} = {value} is used by {configs[before].broker_name} and {config.broker_name}:"
                    " every replica needs its own"
                )
        same = [each for each in configs if each.replication is not Strategy.LOCAL]
        if len({(each.heartbeat_ms, each.election_ms) for each in same}) > 1:
            raise StartError("raftHeartbeatMs and raftElectionMs must be equal in all files of one process")


class Growth:
    """Groups that the process takes while it runs (`broker.taken_groups`)."""

    def __init__(
        self, broker: Broker, configs: Sequence[BrokerConfig], node: RaftNode | None, env: Env, nursery: trio.Nursery
    ) -> None:
        self._broker = broker
        self._base = configs[0]
        self._ports = {config.listen_port for config in configs}
        self._node = node
        self._env = env
        self._nursery = nursery
        self._one_at_a_time = trio.Lock()

    async def reopen(self) -> None:
        """At the start: what was taken in an earlier life. One that does not open is logged and costs no other."""
        try:
            taken = await load_taken(self._broker.replicas[0].parts.fs)
        except (OSError, ValueError, TypeError) as error:
            log.error("groups taken by command are not remembered", extra={"error": str(error)})
            return
        for each in taken:
            self._ports.add(each.port)
            try:
                await self._open(each.config(self._base))
            except (ConfigError, StartError) as error:
                log.error("a group taken by command is not opened", extra={"group": each.group, "error": str(error)})

    async def take(self, header: CreateGroupHeader) -> str:
        """Open a replica of a new group here; returns its client address. Raises Refused."""
        async with self._one_at_a_time:
            with trio.CancelScope(shield=True):  # waits for the disk, and for the recovery of an empty store
                address = await self._take(header)
        return address

    async def _take(self, header: CreateGroupHeader) -> str:
        for replica in self._broker.replicas:
            if replica.config.broker_name == header.group:
                if str(replica.config.self_id) == header.node:
                    return replica.address  # asked again
                raise Refused(
                    ResponseCode.ILLEGAL_OPERATION, f"this process has a replica of group {header.group} already"
                )
        if not self._broker.replicas or self._broker.replicas[0].config is not self._base:
            raise Refused(ResponseCode.SYSTEM_BUSY, "the first replica of this process does not run: try again later")
        try:
            names.check_group(header.group)
        except BadName as error:
            raise Refused(ResponseCode.INVALID_PARAMETER, f"bad group name: {error}") from None
        fs = self._broker.replicas[0].parts.fs
        taken = await load_taken(fs)
        others = [each for each in taken if each.group != header.group]
        number = max((each.number for each in taken), default=0) + 1
        number = next((each.number for each in taken if each.group == header.group), number)
        reason = ""
        for port in [header.port] if header.port else self._free_ports():
            new = TakenGroup(
                group=header.group,
                node=header.node,
                peers=header.peers,
                preferred=header.preferred,
                port=port,
                number=number,
            )
            try:
                config = new.config(self._base)
            except ConfigError as error:
                raise Refused(ResponseCode.INVALID_PARAMETER, str(error)) from None
            await save_taken(fs, [*others, new])
            try:
                address = await self._open(config)
            except StartError as error:
                reason = str(error)
                await save_taken(fs, others)
                if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EADDRINUSE:
                    break
            else:
                self._ports.add(port)
                log.info("group taken", extra={"group": header.group, "node": header.node, "address": address})
                return address
        raise Refused(ResponseCode.SYSTEM_ERROR, f"group {header.group} was not taken: {reason}")

    def _free_ports(self) -> list[int]:
        first = self._base.listen_port
        wanted = [first + PORT_STRIDE * step for step in range(1, PORT_TRIES + 1)]
        return [port for port in wanted if port not in self._ports and port < 65_500]

    async def _open(self, config: BrokerConfig) -> str:
        """Raises StartError."""
        number = self._broker.add()
        supervisor = _Supervisor(self._broker, number, config, self._node, self._env, self.take)
        self._nursery.start_soon(supervisor.run)
        await supervisor.settled.wait()
        if supervisor.failure is not None:
            raise supervisor.failure
        return next(r.address for r in self._broker.replicas if r.config is config)


class _Supervisor:
    """Keeps one replica open."""

    def __init__(
        self,
        broker: Broker,
        number: int,
        config: BrokerConfig,
        node: RaftNode | None,
        env: Env,
        take_group: TakeGroup,
    ) -> None:
        self._broker = broker
        self._number = number
        self._take_group = take_group
        self._config = config
        self._node = node
        self._env = env
        self._stop = broker.stop
        self.settled = trio.Event()
        """The replica runs, or `failure` says why it cannot."""
        self.failure: StartError | None = None

    async def run(self) -> None:
        """Open the replica, and again when it failed, until the broker stops."""
        # Shielded, so that whoever cancels the broker gets the graceful stop: the event ends it from within.
        with trio.CancelScope(shield=True) as scope:
            self._broker.scopes.append(scope)
            await self._keep_open()

    async def _keep_open(self) -> None:
        pause = REOPEN_FIRST_S
        opened = trio.current_time()
        while not self._stop.is_set():
            failure: BaseException | None = None
            try:
                async with open_replica(self._config, self._node, self._env, self._take_group) as replica:
                    self._broker.entered(self._number, replica)
                    opened = trio.current_time()
                    self.settled.set()
                    await self._stop.wait()
                return
            except Exception as error:
                # The failure domain of one group ends here, whatever broke in it.
                failure = _cause(error)
            self._broker.left(self._number, str(failure))
            if not isinstance(failure, OSError | StoreError | GroupFailed | NewerVersion):
                log.error("a replica failed by our own mistake", exc_info=failure)
            if not self.settled.is_set():
                self.failure = StartError(explain(failure, self._config))
                self.failure.__cause__ = failure
                self.settled.set()
                return
            if isinstance(failure, NewerVersion | StoreRefused):
                log.error("group stopped for good", extra={"broker": self._config.broker_name, "error": str(failure)})
                await self._stop.wait()
                return
            if isinstance(failure, ReopenPlanned):
                log.info("group is opened anew", extra={"broker": self._config.broker_name, "reason": str(failure)})
                continue
            if trio.current_time() - opened > CALM_S:
                pause = REOPEN_FIRST_S
            log.error(
                "group failed, it is opened again after a pause",
                extra={"broker": self._config.broker_name, "error": str(failure), "pause_s": pause},
                exc_info=failure,
            )
            with trio.move_on_after(pause):
                await self._stop.wait()
            pause = min(pause * 2, REOPEN_MAX_S)


def _cause(error: BaseException) -> BaseException:
    """The first real failure within nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def explain(error: BaseException, config: BrokerConfig) -> str:
    """One sentence for the operator: what is wrong with this replica, and what to do."""
    name = config.broker_name
    if isinstance(error, StoreRefused | NewerVersion):
        return f"{name}: the store in {config.store_dir} cannot be used: {error}"
    if isinstance(error, BlockingIOError):
        return f"{name}: {error.strerror}: stop that process, or choose another storePathRootDir"
    if isinstance(error, OSError):
        return f"{name}: {_os_error(error, config)}"
    if isinstance(error, StoreError | GroupFailed):
        return f"{name}: {error}"
    return f"{name}: {type(error).__name__}: {error}"


def _os_error(error: OSError, config: BrokerConfig) -> str:
    if error.errno == errno.EADDRINUSE:
        peer = f", or dLegerPeers' own port {config.own_peer.port}" if config.own_peer is not None else ""
        if config.master_slave and (config.ha_listen_port or config.listen_port):
            peer = f", or {config.ha_listen_port or config.listen_port + 1} (haListenPort)"
        return f"port {config.listen_port} (listenPort){peer} is in use: stop what listens there, or choose another"
    if error.errno in (errno.EADDRNOTAVAIL, errno.EACCES) and error.filename is None:
        return f"cannot listen on {config.bind_address}:{config.listen_port}: {error.strerror}"
    if error.errno == 0:  # ours, a whole sentence
        return str(error.strerror)
    if error.errno == errno.ENOSPC:
        return f"the disk of {config.store_dir} is full: make room"
    return f"{config.store_dir}: {error.strerror or error}"
