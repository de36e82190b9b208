"""Trio made repeatable, and the trace that proves it.

Trio shuffles each batch of runnable tasks. Two private switches make that shuffle a function of the seed: the first
sorts the batch, the second seeds the shuffle; one without the other gives a new trace each run. A test runs the same
seed in two processes with different hash seeds, so a release of Trio that drops the hook is noticed.

The clock jumps as soon as every task waits, so no thread, socket or file may be inside.
"""

from __future__ import annotations

import gc
import hashlib
import random
from collections.abc import Awaitable, Callable

import trio
import trio._core._run as trio_run  # private: the only place in the tree that touches it
import trio.testing

__all__ = ["Trace", "run_deterministic"]


class Trace:
    """Everything observable, in order, as one digest. With `keep`, the lines as well."""

    def __init__(self, keep: Callable[[str], object] | None = None) -> None:
        self._hash = hashlib.sha256()
        self._keep = keep
        self.count = 0

    def __call__(self, *parts: object) -> None:
        line = f"{trio.current_time():.9f} " + " ".join(map(str, parts)) + "\n"
        self._hash.update(line.encode())
        self.count += 1
        if self._keep is not None:
            self._keep(line)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


def run_deterministic(main: Callable[[], Awaitable[None]], seed: int) -> None:
    """Run `main` under a clock of its own, which begins at 0."""
    switches = vars(trio_run)
    saved = {name: switches[name] for name in ("_ALLOW_DETERMINISTIC_SCHEDULING", "_r")}
    switches.update(_ALLOW_DETERMINISTIC_SCHEDULING=True, _r=random.Random(f"{seed}/scheduling"))
    gc.collect()
    gc.disable()  # finalisers would run at moments that depend on what ran before
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        gc.enable()
        switches.update(saved)
