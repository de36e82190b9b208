"""One seed: start, fault phase, healing, final read, verdict."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import trio

import broker.store.message_store
import broker.wiring
from broker.config import BrokerConfig
from broker.replica import Replica
from broker.replication.base import GroupFailed
from broker.replication.raft_group import RaftReplicator
from broker.store.entry import Entry
from broker.store.errors import EntryDamaged, StoreError
from broker.store.message_store import StoreConfig
from raft.core import InvariantBroken, RaftCore
from tests.sim.features.mix import Mix, settings_of
from tests.sim.history import Outcome, SimHistory, judge
from tests.sim.nemesis import Nemesis
from tests.sim.oracle import Oracle, SafetyViolation, observed
from tests.sim.plan import Plan
from tests.sim.workload import Workload
from tests.sim.world import SimNode, World
from trimq.sim.deterministic import Trace, VirtualClock, run_deterministic

__all__ = ["Result", "simulate"]

HEALED_S = 45.0
"""After healing everything has to be equal and ready within this."""
LIMIT_S = 600.0
"""Start, healing and final read together take less on any plan."""
PROGRESS_BAR_S = 5.0
"""And a fresh message acknowledged within this (I10)."""
MENDED_TRIES = 5
LOOK_EVERY_S = 0.5
SNAPSHOT_EVERY_S = 4.0
RETENTION_EVERY_S = 2.0
"""Where retention is part of the plan, time is short: the product's own are 60 s and 10 s."""


@dataclass(slots=True)
class Result:
    """What one run showed."""

    seed: int
    seconds: float = 0.0
    digest: str = ""
    violations: list[str] = field(default_factory=list)
    reached: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    acked: int = 0
    unknown: int = 0
    faults: list[str] = field(default_factory=list)
    history: SimHistory | None = None


Patch = Callable[[], Any]
"""Makes a context manager within which a planted bug is in place."""


def simulate(
    plan: Plan,
    *,
    core_type: type[RaftCore] = RaftCore,
    prepare: Callable[[World], None] | None = None,
    patch: Patch | None = None,
    keep: Callable[[str], object] | None = None,
) -> Result:
    """Run one plan. `core_type`, `prepare` and `patch` are for planted bugs, `keep` gets every line of the trace."""
    trace, oracle = Trace(keep), Oracle()
    result = Result(plan.seed)
    run = _Run(plan, trace, oracle, result, prepare)
    with ExitStack() as stack:
        stack.enter_context(observed(oracle, core_type))
        stack.enter_context(_logs_into(trace, oracle))
        stack.enter_context(_quick_times(plan))
        if patch is not None:
            stack.enter_context(patch())
        try:
            run_deterministic(run.main, plan.seed)
        except BaseExceptionGroup as group:
            result.violations.append(_text(group))
        except (Exception, SafetyViolation) as error:
            result.violations.append(_text(error))
    result.violations += [v for v in oracle.violations if not any(v in known for known in result.violations)]
    result.digest = trace.digest
    result.reached = oracle.reached
    return result


class _Run:
    def __init__(
        self, plan: Plan, trace: Trace, oracle: Oracle, result: Result, prepare: Callable[[World], None] | None
    ) -> None:
        self.plan, self.trace, self.oracle, self.result, self.prepare = plan, trace, oracle, result, prepare

    async def main(self, clock: VirtualClock) -> None:
        begun = trio.current_time()
        try:
            with trio.fail_after(self.plan.fault_s + LIMIT_S), trio.CancelScope() as scope:
                self.oracle.stop = scope.cancel  # nothing that follows a violation is worth its time
                await self._all(clock)
        finally:
            self.result.seconds = trio.current_time() - begun

    async def _all(self, clock: VirtualClock) -> None:
        async with trio.open_nursery() as nursery:
            world = World(clock, self.plan, self.trace, self.oracle, nursery, settings_of(self.plan))
            if self.prepare is not None:
                self.prepare(world)
            await world.start()
            nursery.start_soon(self._look_round, world)
            async with AsyncExitStack() as stack:
                workload = Workload(world, stack)
                self.result.history = workload.history
                await workload.open()
                mix = Mix(world, stack)
                await mix.open()
                async with trio.open_nursery() as readers:
                    await self._faults(world, workload, mix, readers)
                    await self._check(world, workload, mix)
                    readers.cancel_scope.cancel()
            nursery.cancel_scope.cancel()

    async def _faults(self, world: World, workload: Workload, mix: Mix, readers: trio.Nursery) -> None:
        nemesis = Nemesis(world)
        self.result.faults = nemesis.done
        async with trio.open_nursery() as load:
            load.start_soon(workload.run, readers)
            load.start_soon(mix.run, readers)
            await nemesis.run()
            workload.stop()
            mix.stop()
        self.result.kills = world.kills

    async def _look_round(self, world: World) -> None:
        while True:
            await trio.sleep(LOOK_EVERY_S)
            for node in world.nodes:
                for each in node.replicas():
                    assert isinstance(each.replicator, RaftReplicator)
                    self.oracle.look_round(each, each.replicator._core)

    async def _check(self, world: World, workload: Workload, mix: Mix) -> None:
        violations = self.result.violations
        if not await self._equal(world):
            violations.append(f"I10: not equal and ready {HEALED_S:.0f} s after healing: {_marks(world)}")
            return
        if not await workload.send_fresh(PROGRESS_BAR_S):
            violations.append(f"I10: a fresh message is not acknowledged within {PROGRESS_BAR_S:.0f} s")
            return
        delivered = await workload.all_delivered()
        popped = await workload.all_popped()
        violations += await mix.finish()
        if not await self._equal(world):
            violations.append(f"I6: replicas do not converge: {_marks(world)}")
            return
        self._compare_states(world)
        await workload.read_everything()
        await self._compare_logs(world)
        history = workload.history
        self.result.acked, self.result.unknown = history.count(Outcome.OK), history.count(Outcome.UNKNOWN)
        violations += judge(history, delivered=delivered, popped=popped)[:10]
        for value, outcome in workload.outcomes():
            self.trace("outcome", value, outcome.value)

    async def _equal(self, world: World) -> bool:
        """All replicas run, one leads and is ready, all have dispatched the same end."""
        deadline = trio.current_time() + HEALED_S
        while trio.current_time() < deadline:
            if all(self._group_equal(world, group) for group in world.groups):
                return True
            await trio.sleep(0.05)
        return False

    def _group_equal(self, world: World, group: str) -> bool:
        found = self._replicas(world, group)
        if len(found) < len(world.nodes) or world.leader(group) is None:
            return False
        ends = {(r.store.log.last.index, r.store.dispatched, r.store.log.last.crc) for r in found}
        return len(ends) == 1 and all(r.store.dispatched == r.store.log.last.index for r in found)

    def _replicas(self, world: World, group: str) -> list[Replica]:
        found = [world.replica(node, group) for node in world.nodes]
        return [replica for replica in found if replica is not None]

    def _compare_states(self, world: World) -> None:
        """S7: what was applied up to one entry is one state, on every replica and in every life."""
        for group in world.groups:
            states: dict[int, tuple[str, bytes]] = {}
            for each in self._replicas(world, group):
                found = each.state.snapshot()()
                name, known = states.setdefault(each.state.applied_index, (str(each.config.self_id), found))
                if known != found:
                    self.result.violations.append(
                        f"S7: {group}: the state at {each.state.applied_index} of {each.config.self_id} is not {name}'s"
                    )
            if len(states) == 1:
                self.oracle.reached["states compared"] += 1

    async def _compare_logs(self, world: World) -> None:
        """I6: byte-equal logs, as far as each replica still has them."""
        for group in world.groups:
            seen: dict[int, tuple[int, bytes]] = {}
            for node in world.nodes:
                if not await self._compare_log(world, node, group, seen):
                    return
            self.trace("log", group, len(seen), [crc for crc, _ in seen.values()])

    async def _compare_log(self, world: World, node: SimNode, group: str, seen: dict[int, tuple[int, bytes]]) -> bool:
        """One replica's log. Rot that nobody had read yet is found here; then it has to be mended as well."""
        for _ in range(MENDED_TRIES):
            replica = world.replica(node, group)
            if replica is None:
                self.result.violations.append(f"{node.name} lost its replica of {group} during the final read")
                return True
            log = replica.store.log
            index = log.first_index
            try:
                while index <= log.last.index:
                    entries: list[Entry] = await log.read(index, 1 << 20)
                    for entry in entries:
                        known = seen.setdefault(entry.index, (entry.crc, bytes(entry.data)))
                        if known != (entry.crc, bytes(entry.data)):
                            self.result.violations.append(f"I6: {group} entry {entry.index} differs on {node.name}")
                            return False
                    index = entries[-1].index + 1
            except EntryDamaged as error:
                if not node.disks[group].rotted:
                    raise
                self.oracle.reached["rot found at the end"] += 1
                self.trace("rot found", node.name, group, error)
                await trio.sleep(1.0)
                if not await self._equal(world):
                    self.result.violations.append(f"I10: rot is not mended {HEALED_S:.0f} s later: {_marks(world)}")
                    return False
            else:
                return True
        self.result.violations.append(f"I10: {node.name} cannot read its log of {group}, again and again")
        return False


def _marks(world: World) -> str:
    lines = []
    for node in world.nodes:
        for each in node.replicas():
            s = each.replicator.status()
            lines.append(
                f"{node.name}/{each.config.broker_name}: {s.role.value} term {s.term} ready {s.ready} "
                f"health {s.health.value} last {s.last} commit {s.commit} dispatched {s.dispatched} {s.detail}"
            )
        if not node.replicas():
            failures = node.broker.failures if node.broker is not None else ()
            lines.append(f"{node.name}: up {node.up}, no replica {failures}")
    return "; ".join(lines + world.failures)


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _text(error: BaseException) -> str:
    cause = _cause(error)
    return f"{type(cause).__name__}: {cause}"


# -- what the logs say ------------------------------------------------------------------------------------------------

REACHED_BY_LOG: Mapping[str, str] = {
    "segments removed": "segments removed",
    "installed from a peer": "installed",
    "the log was installed from a peer": "installation finished at the start",
    "disk is full; nothing is acknowledged until there is space": "disk full",
    "the log cannot be written any more": "disk failed",
    "damaged entries replaced from peers": "damage mended",
    "a copy of the hard state was damaged; mended from the other one": "hard state mended",
    "index file is built again": "index mended",
    "snapshot damaged; an older one is used": "older snapshot used",
    "log damaged; asking peers": "damaged",
    "handing over to the preferred leader": "rebalanced",
    "leader is ready": "leader ready",
}
"""Log lines that name a state which a campaign should reach."""
OUR_MISTAKES = (
    "group failed; it is stopped, the process goes on",
    "a replica failed by our own mistake",
    "dispatch stopped",
)
"""Log lines behind which there is a bug, unless the disk's error is the cause."""


class _IntoTrace(logging.Handler):
    """Log lines are part of what must be repeatable; some of them are states that a campaign must reach."""

    def __init__(self, trace: Trace, oracle: Oracle) -> None:
        super().__init__(logging.INFO)
        self._trace, self._oracle = trace, oracle

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self._trace("log", record.levelname, record.name, message)
        state = REACHED_BY_LOG.get(message)
        if state is not None:
            self._oracle.reached[state] += 1
        if record.name == "broker.store.commit_log" and message == "log recovered":
            self._oracle.reached[f"recovered: {getattr(record, 'verdict', '')}"] += 1
        if record.exc_info is not None and record.exc_info[1] is not None:
            cause = _cause(record.exc_info[1])
            self._trace("error", _text(cause))
            if message in OUR_MISTAKES and not isinstance(cause, OSError | StoreError | GroupFailed | SafetyViolation):
                kind = "invariant" if isinstance(cause, InvariantBroken) else "bug"
                self._oracle.note(f"{kind}: {message}: {_text(cause)}")


@contextmanager
def _logs_into(trace: Trace, oracle: Oracle) -> Iterator[None]:
    """Log lines go into the trace and nowhere else."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    handler = _IntoTrace(trace, oracle)
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def _quick_times(plan: Plan) -> Iterator[None]:
    """Snapshots and retention at the pace of a short run, where the plan has retention."""
    made = broker.wiring.store_config

    def store_config(config: BrokerConfig, boot_id: str = "") -> StoreConfig:
        return replace(
            made(config, boot_id),
            snapshot_every_s=SNAPSHOT_EVERY_S,
            snapshot_every_bytes=max(4096, plan.segment_bytes // 2),
        )

    store = vars(broker.store.message_store)
    wiring = vars(broker.wiring)
    every_s = store["RETENTION_EVERY_S"]
    if plan.retention_s:
        wiring["store_config"] = store_config
        store["RETENTION_EVERY_S"] = RETENTION_EVERY_S
    try:
        yield
    finally:
        wiring["store_config"] = made
        store["RETENTION_EVERY_S"] = every_s
