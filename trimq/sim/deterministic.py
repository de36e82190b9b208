"""Trio made repeatable and quick, and the trace that proves it.

**Repeatable.** Trio shuffles each batch of runnable tasks. Two private switches make that shuffle a function of the
seed: the first sorts the batch, the second seeds the shuffle; one without the other gives a new trace each run. A test
runs the same seed in two processes with different hash seeds, so a release of Trio that drops the hook is noticed.

**Quick.** Time is a number that moves when nothing can run (`VirtualClock`): no thread, socket or file may be inside.
What the simulated disk and network do later, and every `trio.sleep`, is an entry in the clock's own heap instead of a
cancel scope with a deadline; nothing polls the kernel, and there are no instruments. That is twice as quick as
`trio.testing.MockClock` and changes nothing that a task can see.

**Hosts.** A task belongs to the host that is set in the context it was started from (`HOST`). The tasks of a paused
host are not run: what would have woken them has happened when they go on, as with SIGSTOP. A host's clock may be fast
or slow: its sleeps and its Raft time pass at that rate.
"""

from __future__ import annotations

import gc
import hashlib
import heapq
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import trio
import trio._core._run as trio_run  # private: the only place in the tree that touches it

import raft.node

__all__ = ["HOST", "Trace", "VirtualClock", "run_deterministic", "wait_s"]

HOST: ContextVar[str] = ContextVar("HOST", default="")
"""Where a task runs; "" is nowhere in particular, and never paused."""


class Trace:
    """Everything observable, in order, as one digest. With `keep`, the lines as well."""

    def __init__(self, keep: Callable[[str], object] | None = None) -> None:
        self._hash = hashlib.sha256()
        self._keep = keep
        self.count = 0

    def __call__(self, *parts: object) -> None:
        line = f"{trio.current_time():.9f} {' '.join(map(str, parts))}\n"
        self._hash.update(line.encode())
        self.count += 1
        if self._keep is not None:
            self._keep(line)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


class _RunQueue(deque[Any]):
    """Trio's queue of runnable tasks, without those of paused hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.paused: set[str] = set()  # membership only
        self._held: list[tuple[str, Any]] = []

    def append(self, task: Any) -> None:
        if self.paused:
            host = task.context.get(HOST, "")
            if host in self.paused:
                self._held.append((host, task))
                return
        super().append(task)

    def resume(self, host: str) -> None:
        self.paused.discard(host)
        held, self._held = self._held, []
        for where, task in held:
            if where == host:
                super().append(task)
            else:
                self._held.append((where, task))


class VirtualClock(trio.abc.Clock):
    """Time that stands still while a task can run, and then jumps to whatever comes next."""

    def __init__(self) -> None:
        self.now = 0.0
        self.over = False
        self.rates: dict[str, float] = {}
        """How fast a host's monotonic clock runs; 1.0 when it is not in here."""
        self.runq: _RunQueue = _RunQueue()
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = 0

    def pause(self, host: str) -> None:
        """Run none of the host's tasks until `resume`."""
        self.runq.paused.add(host)

    def resume(self, host: str) -> None:
        self.runq.resume(host)

    def rate(self) -> float:
        """Of the host whose task asks."""
        return self.rates.get(HOST.get(), 1.0) if self.rates else 1.0

    def now_ms(self) -> int:
        """Raft's reading of the monotonic clock on the host that asks."""
        return int(self.now * self.rate() * 1000)

    def at(self, when: float, call: Callable[[], object]) -> None:
        """Call `call` when nothing can run and it is `when`; equal times in the order of asking."""
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, call))

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Trio asks only when no task can run: the moment to move on."""
        heap = self._heap
        due = heap[0][0] if heap else math.inf
        if due > deadline:
            self.now = max(self.now, deadline)
            return 0.0
        if due == math.inf:
            if self.over:
                return math.inf  # Trio's own last steps go through a real pipe
            raise RuntimeError("every task waits, and nothing will ever happen")
        self.now = now = max(self.now, due)
        while heap and heap[0][0] <= now:
            heapq.heappop(heap)[2]()
        return 0.0


async def wait_s(clock: VirtualClock, seconds: float) -> None:
    """Wait without being cancelled, as a call in a thread does."""
    task = trio.lowlevel.current_task()
    clock.at(clock.now + seconds, lambda: trio.lowlevel.reschedule(task))
    await trio.lowlevel.wait_task_rescheduled(_not_now)


def _not_now(_raise: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


def _inside(clock: VirtualClock) -> bool:
    """Is it the simulated run that calls? Another thread of the process may have a loop of its own."""
    runner = getattr(trio_run.GLOBAL_RUN_CONTEXT, "runner", None)
    return runner is not None and runner.clock is clock


class _Chance:
    """Trio's source of chance: the seed's for the simulated run, the usual one for every other."""

    def __init__(self, clock: VirtualClock, ours: random.Random, theirs: random.Random) -> None:
        self._clock = clock
        self._ours = ours
        self._theirs = theirs

    def __getattr__(self, name: str) -> Any:  # Any: whatever Trio asks of a random.Random
        return getattr(self._ours if _inside(self._clock) else self._theirs, name)


def _sleepers(clock: VirtualClock) -> dict[str, Any]:
    """`trio.current_time`, `trio.sleep` and `trio.sleep_until` on the clock's heap, for the simulated run alone."""
    their_time, their_sleep, their_sleep_until = trio.current_time, trio.sleep, trio.sleep_until

    def current_time() -> float:
        return clock.now if _inside(clock) else their_time()

    async def sleep_until(deadline: float) -> None:
        if not _inside(clock):
            await their_sleep_until(deadline)
            return
        task = trio.lowlevel.current_task()
        waits = True

        def wake() -> None:
            if waits:
                trio.lowlevel.reschedule(task)

        def abort(_raise: object) -> trio.lowlevel.Abort:
            nonlocal waits
            waits = False
            return trio.lowlevel.Abort.SUCCEEDED

        if deadline < math.inf:
            clock.at(clock.now + (deadline - clock.now) / clock.rate() if clock.rates else deadline, wake)
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def sleep(seconds: float) -> None:
        if not _inside(clock):
            await their_sleep(seconds)
            return
        if seconds < 0 or math.isnan(seconds):
            raise ValueError(f"`seconds` must be non-negative, not {seconds}")
        if seconds == 0:
            await trio.lowlevel.checkpoint()
        else:
            await sleep_until(clock.now + seconds)

    return {"current_time": current_time, "sleep": sleep, "sleep_until": sleep_until}


class _NoPolling:
    """Trio's I/O manager, which there is nothing to ask; signals (Ctrl-C) are looked for now and then."""

    EVERY = 4096

    def __init__(self, real: Any) -> None:  # Any: private to Trio
        self._real = real
        self._calls = 0

    def get_events(self, timeout: float) -> Any:
        self._calls += 1
        if self._calls % self.EVERY:
            return ()
        return self._real.get_events(0)

    def process_events(self, events: Any) -> None:
        if events:
            self._real.process_events(events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@contextmanager
def _switched(seed: int, clock: VirtualClock) -> Iterator[None]:
    ours: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (
            vars(trio_run),
            {
                "_ALLOW_DETERMINISTIC_SCHEDULING": True,
                "_r": _Chance(clock, random.Random(f"{seed}/scheduling"), vars(trio_run)["_r"]),
            },
        ),
        (vars(trio), _sleepers(clock)),
    ]
    saved = [(where, {name: where[name] for name in names}) for where, names in ours]
    for where, names in ours:
        where.update(names)
    now_ms = vars(raft.node.RaftNode)["now_ms"]
    their_ms = raft.node.RaftNode.now_ms
    raft.node.RaftNode.now_ms = staticmethod(  # type: ignore[method-assign]
        lambda: clock.now_ms() if _inside(clock) else their_ms()
    )
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # finalisers would run at moments that depend on what ran before
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        raft.node.RaftNode.now_ms = now_ms  # type: ignore[method-assign]
        for where, names in saved:
            where.update(names)


def run_deterministic(main: Callable[[VirtualClock], Awaitable[None]], seed: int) -> None:
    """Run `main` under a clock of its own, which begins at 0."""
    clock = VirtualClock()

    async def run() -> None:
        runner = trio_run.GLOBAL_RUN_CONTEXT.runner
        clock.runq.extend(runner.runq)
        runner.runq = clock.runq
        runner.instruments = {}  # type: ignore[assignment]  # a plain dict: asked five times a step
        polling = runner.io_manager
        runner.io_manager = _NoPolling(polling)  # type: ignore[assignment]
        try:
            await main(clock)
        finally:
            runner.io_manager = polling
            clock.over = True

    with _switched(seed, clock):
        trio.run(run, clock=clock)
