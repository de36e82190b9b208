"""The loops of every Python client that is measured: the same for all of them, on whichever loop they need.

Each client is a program, `python -m bench.clients.NAME`, with the arguments of `parser` beside its own; it prints one
JSON object. Run as a process of its own, so that its CPU time can be told apart.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic

import anyio

from bench.thin import percentile

__all__ = ["parser", "run"]

Send = Callable[[], Awaitable[object]]
WORKERS = 64
"""Of the failover workload."""
_WARM_UP_SHARE = 0.2
_ATTEMPT_S = 10.0
_GAP_S = 0.02
"""Shorter ones are no stretches."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    made.add_argument("--body", type=int, default=1024)
    made.add_argument("--window", type=int, default=256)
    made.add_argument("--seconds", type=float, default=3.0)
    made.add_argument("--rate", type=float, default=0.0, help="Open loop: messages a second, 0 for a closed loop.")
    made.add_argument("--gap", action="store_true", help="Send through faults; print the longest time without an OK.")
    return made


async def run(args: argparse.Namespace, send: Send) -> None:
    """Run the workload that the arguments ask for and print what it reached."""
    found: Mapping[str, object]
    if args.gap:
        found = await _gap(send, args.seconds)
    elif args.rate:
        found = await _open_loop(send, args.rate, args.seconds)
    else:
        found = await _closed_loop(send, args.window, args.seconds)
    times = os.times()
    print(json.dumps({**found, "cpu_s": times.user + times.system}), flush=True)


async def _closed_loop(send: Send, window: int, seconds: float) -> dict[str, float]:
    waits: list[float] = []
    begin = monotonic()
    count_from, end = begin + seconds * _WARM_UP_SHARE, begin + seconds
    total = 0

    async def worker() -> None:
        nonlocal total
        while (called := monotonic()) < end:
            await send()
            total += 1
            now = monotonic()
            if count_from <= now <= end:
                waits.append(now - called)

    async with anyio.create_task_group() as group:
        for _ in range(window):
            group.start_soon(worker)
    return _figures(waits, end - count_from, total)


async def _open_loop(send: Send, rate: float, seconds: float) -> dict[str, float]:
    """Messages begin when they are due, whatever became of those before; waiting is counted from when they were due."""
    waits: list[float] = []
    begin = monotonic()
    count_from = begin + seconds * _WARM_UP_SHARE

    async def one(due: float) -> None:
        await send()
        if due >= count_from:
            waits.append(monotonic() - due)

    async with anyio.create_task_group() as group:
        for number in range(int(rate * seconds)):
            due = begin + number / rate
            if (early := due - monotonic()) > 0:
                await anyio.sleep(early)
            group.start_soon(one, due)
    return _figures(waits, seconds * (1 - _WARM_UP_SHARE), int(rate * seconds))


def _figures(waits: list[float], seconds: float, total: int) -> dict[str, float]:
    waits.sort()
    return {
        "messages": len(waits),
        "all_messages": total,
        "seconds": seconds,
        "p50_ms": percentile(waits, 0.5) * 1e3,
        "p99_ms": percentile(waits, 0.99) * 1e3,
        "p999_ms": percentile(waits, 0.999) * 1e3,
        "max_ms": (waits[-1] if waits else float("nan")) * 1e3,
    }


async def _gap(send: Send, seconds: float) -> dict[str, object]:
    """All stretches in which no worker got an OK, [when it began on the system's monotonic clock, seconds]."""
    end = monotonic() + seconds
    last_ok = 0.0
    gaps: list[tuple[float, float]] = []
    counted = errors = 0
    print("ready", flush=True)

    async def worker() -> None:
        nonlocal last_ok, counted, errors
        while monotonic() < end:
            try:
                with anyio.fail_after(_ATTEMPT_S):
                    await send()
            except Exception:  # whatever a client of another project raises during a failover: it is tried again
                errors += 1
                await anyio.sleep(0.02)
                continue
            now = monotonic()
            if last_ok and now - last_ok > _GAP_S:
                gaps.append((last_ok, now - last_ok))
            last_ok = now
            counted += 1

    async with anyio.create_task_group() as group:
        for _ in range(WORKERS):
            group.start_soon(worker)
    gaps.append((last_ok, monotonic() - last_ok))  # perhaps it goes on
    return {"gaps": gaps, "messages": counted, "errors": errors}
