"""Take one figure: one scenario, one subject."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.peers.base import Peer
from bench.plan import Scenario
from bench.thin import Refused, Run, drive
from bench.usage import Usage

__all__ = ["take"]

ROOT = Path(__file__).resolve().parents[1]
_BEFORE_FAULT_S = 1.0
_AFTER_FAULT_S = 1.5


def take(peer: Peer, scenario: Scenario, seconds: float) -> tuple[float, str, dict[str, float]]:
    """Value, unit and further facts. Raises NotToBeHad for what the peer does not offer, Refused for a failed run."""
    seconds = scenario.seconds or seconds
    if scenario.is_fault:
        return _fault(peer, scenario, seconds)
    usage = Usage(peer.processes())
    if scenario.kind == "library":
        found = _library(peer, scenario, seconds)
    else:
        found = _thin(peer, scenario, seconds)
        usage = found.pop("usage", usage)
    cpu, written = usage.spent()
    total = found.pop("all_messages")
    facts = {key: value for key, value in found.items() if key.endswith("_ms")}
    facts |= {f"cpu_us:{role}": spent / total * 1e6 for role, spent in cpu.items()}
    facts |= {"cpu_us:client": found["cpu_s"] / total * 1e6} if "cpu_s" in found else {}
    if scenario.kind != "pull":
        facts["written_per_message"] = written / total
    if scenario.rate:
        return found["p99_ms"], "ms", facts
    return found["messages"] / found["seconds"], "msg/s", facts


def _thin(peer: Peer, scenario: Scenario, seconds: float) -> dict[str, Any]:
    if scenario.kind == "pull":
        address, dialect = peer.pulls(scenario.body_bytes, batch=scenario.batch, messages=scenario.messages)
    else:
        address, dialect = peer.sends(scenario.body_bytes, batch=scenario.batch, queues=scenario.queues)
    usage = Usage(peer.processes())
    before = time.process_time()
    if scenario.kind == "pull":
        run: Run = drive(address, dialect, window=scenario.window, messages=scenario.messages)
    else:
        run = drive(address, dialect, window=scenario.window, seconds=seconds)
    return {
        "messages": run.messages, "seconds": run.seconds, "all_messages": run.all_messages, "p50_ms": run.p50_ms,
        "p99_ms": run.p99_ms, "cpu_s": time.process_time() - before, "usage": usage,
    }  # fmt: skip


def _client(peer: Peer, scenario: Scenario, seconds: float, *more: str) -> subprocess.Popen[str]:
    words = ["--body", scenario.body_bytes, "--window", scenario.window, "--seconds", seconds, "--rate", scenario.rate]
    return subprocess.Popen(
        [sys.executable, "-m", *peer.library(), *map(str, words), *more],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _answer(client: subprocess.Popen[str], within_s: float) -> Mapping[str, Any]:  # Any: numbers and lists
    try:
        said, errors = client.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        client.kill()
        client.communicate()
        raise Refused(f"the client did not end within {within_s:g} s") from None
    if client.returncode != 0:
        raise Refused(f"the client failed: {' '.join(errors.split())[-300:]}")
    found: Mapping[str, Any] = json.loads(said.splitlines()[-1])
    return found


def _library(peer: Peer, scenario: Scenario, seconds: float) -> dict[str, Any]:
    return dict(_answer(_client(peer, scenario, seconds), seconds + 40))


def _fault(peer: Peer, scenario: Scenario, seconds: float) -> tuple[float, str, dict[str, float]]:
    """The longest stretch without an OK while 64 workers send and the leading node fails."""
    client = _client(peer, scenario, seconds + _BEFORE_FAULT_S, "--gap")
    assert client.stdout is not None
    if client.stdout.readline().strip() != "ready":
        _answer(client, 5)
        raise Refused("the client did not begin")
    time.sleep(_BEFORE_FAULT_S)
    failed = time.monotonic()
    back = peer.fail(scenario.kind)
    try:
        found = _answer(client, seconds + 40)
    finally:
        back()
    time.sleep(_AFTER_FAULT_S)
    gap = max((length for began, length in found["gaps"] if began + length > failed), default=0.0)
    open_end = float(gap == found["gaps"][-1][1])
    """1: the run ended before the next OK, so it took at least so long."""
    return gap, "s", {"errors": found["errors"], "messages": found["messages"], "at_least": open_end}
