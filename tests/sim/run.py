"""One seed: start, fault phase, healing, final read, verdict."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field

import trio

from broker.store.entry import Entry
from raft.core import RaftCore
from tests.sim.deterministic import Trace, VirtualClock, run_deterministic
from tests.sim.nemesis import Nemesis
from tests.sim.oracle import Oracle, SafetyViolation, observed
from tests.sim.plan import Plan
from tests.sim.workload import Workload
from tests.sim.world import World
from trimq.drill.verdict import Verdict, judge

__all__ = ["MUST_BE_REACHED", "Result", "simulate"]

MUST_BE_REACHED = (
    "elected",
    "kill",
    "power cut",
    "cut",
    "slow disk",
    "sync error",
    "transfer done",
    "leader lost with a tail",
    "entry overwritten",
    "crash with unsynced bytes",
    "recovered: crash",
    "recovered: torn",
    "barrier lost",
)
"""States that a campaign must reach somewhere."""

HEALED_S = 30.0
"""After healing everything has to be equal and ready within this."""
LIMIT_S = 400.0
"""Start, healing and final read together take less on any plan."""
PROGRESS_BAR_S = 5.0
"""And a fresh message acknowledged within this (I10)."""


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
    verdict: Verdict | None = None
    faults: list[str] = field(default_factory=list)


def simulate(
    plan: Plan,
    *,
    core_type: type[RaftCore] = RaftCore,
    prepare: Callable[[World], None] | None = None,
    keep: Callable[[str], object] | None = None,
) -> Result:
    """Run one plan. `core_type` and `prepare` are for planted bugs, `keep` gets every line of the trace."""
    trace, oracle = Trace(keep), Oracle()
    result = Result(plan.seed)
    run = _Run(plan, trace, oracle, result, prepare)
    with observed(oracle, core_type), _logs_into(trace, oracle):
        try:
            run_deterministic(run.main, plan.seed)
        except BaseExceptionGroup as group:
            result.violations.append(_first(group))
        except (Exception, SafetyViolation) as error:
            result.violations.append(f"{type(error).__name__}: {error}")
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
            with trio.fail_after(self.plan.fault_s + LIMIT_S):
                await self._all(clock)
        finally:
            self.result.seconds = trio.current_time() - begun

    async def _all(self, clock: VirtualClock) -> None:
        async with trio.open_nursery() as nursery:
            world = World(clock, self.plan, self.trace, self.oracle, nursery)
            if self.prepare is not None:
                self.prepare(world)
            await world.start()
            async with AsyncExitStack() as stack:
                workload = Workload(world, stack)
                await workload.open()
                await self._faults(world, workload)
                await self._check(world, workload)
            nursery.cancel_scope.cancel()

    async def _faults(self, world: World, workload: Workload) -> None:
        nemesis = Nemesis(world)
        async with trio.open_nursery() as readers:
            async with trio.open_nursery() as load:
                load.start_soon(workload.run, readers)
                await nemesis.run()
                workload.stop()
            readers.cancel_scope.cancel()
        self.result.faults = nemesis.done
        self.result.kills = world.kills

    async def _check(self, world: World, workload: Workload) -> None:
        if not await self._equal(world):
            self.result.violations.append(f"I10: not equal and ready {HEALED_S:.0f} s after healing: {_marks(world)}")
            return
        if not await workload.send_fresh(PROGRESS_BAR_S):
            self.result.violations.append(f"I10: a fresh message is not acknowledged within {PROGRESS_BAR_S:.0f} s")
            return
        if not await self._equal(world):
            self.result.violations.append(f"I6: replicas do not converge: {_marks(world)}")
            return
        await workload.read_everything()
        await self._compare_logs(world)
        verdict = judge(workload.history)
        self.result.verdict = verdict
        self.result.acked, self.result.unknown = verdict.acked, verdict.unknown
        if verdict.violations:
            self.result.violations += verdict.examples
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
        replicas = [world.replica(node, group) for node in world.nodes]
        found = [replica for replica in replicas if replica is not None]
        if len(found) < len(replicas) or world.leader(group) is None:
            return False
        ends = {(r.store.log.last.index, r.store.dispatched, r.store.log.last.crc) for r in found}
        return len(ends) == 1 and all(r.store.dispatched == r.store.log.last.index for r in found)

    async def _compare_logs(self, world: World) -> None:
        """I6: byte-equal logs, as far as each replica still has them."""
        for group in world.groups:
            seen: dict[int, tuple[int, bytes]] = {}
            for node in world.nodes:
                replica = world.replica(node, group)
                if replica is None:
                    self.result.violations.append(f"{node.name} lost its replica of {group} during the final read")
                    continue
                log = replica.store.log
                index = log.first_index
                while index <= log.last.index:
                    entries: list[Entry] = await log.read(index, 1 << 20)
                    for entry in entries:
                        known = seen.setdefault(entry.index, (entry.crc, bytes(entry.data)))
                        if known != (entry.crc, bytes(entry.data)):
                            self.result.violations.append(f"I6: {group} entry {entry.index} differs on {node.name}")
                            return
                    index = entries[-1].index + 1
            self.trace("log", group, len(seen), [crc for crc, _ in seen.values()])


def _marks(world: World) -> str:
    lines = []
    for node in world.nodes:
        for replica in node.replicas():
            s = replica.replicator.status()
            lines.append(
                f"{node.name}/{replica.config.broker_name}: {s.role.value} term {s.term} ready {s.ready} "
                f"health {s.health.value} last {s.last} commit {s.commit} dispatched {s.dispatched} {s.detail}"
            )
        if not node.replicas():
            failures = node.broker.failures if node.broker is not None else ()
            lines.append(f"{node.name}: up {node.up}, no replica {failures}")
    return "; ".join(lines + world.failures)


def _first(group: BaseExceptionGroup) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


class _IntoTrace(logging.Handler):
    """Log lines are part of what must be repeatable; some of them are states that a campaign must reach."""

    def __init__(self, trace: Trace, oracle: Oracle) -> None:
        super().__init__(logging.INFO)
        self._trace, self._oracle = trace, oracle

    def emit(self, record: logging.LogRecord) -> None:
        self._trace("log", record.levelname, record.name, record.getMessage())
        if record.name == "broker.store.commit_log" and record.getMessage() == "log recovered":
            self._oracle.reached[f"recovered: {getattr(record, 'verdict', '')}"] += 1
        if record.exc_info is not None and record.exc_info[1] is not None:
            self._trace("error", _exception(record.exc_info[1]))


def _exception(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


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
