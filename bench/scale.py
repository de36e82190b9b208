"""How trimq grows: queues, backlog, log size, start-up. Each measure is a step of the plan and takes its samples."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

import trimq
from bench.peers.base import NotToBeHad, free_ports
from bench.peers.trimq import Trimq, opener
from bench.rocketmq_dialect import Sends
from bench.thin import drive
from bench.usage import Usage, resident_mb
from trimq.errors import TrimqError
from trimq.testing import status

__all__ = ["Measure", "Sizes", "backlog", "connections", "queues", "recovery", "standalone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How far the growth is measured."""

    rounds: int = 5
    seconds: float = 1.5
    topics: int = 500
    """Of 100 queues each."""
    backlog: int = 2_000_000
    log_gib: float = 2.0
    connections: int = 9_000
    """Idle ones; a broker takes 10,000 in all."""


Found = Callable[[str, int, float, str], None]
"""Takes scenario, round, value, unit."""
Measure = Callable[[Path, Sizes, Found], None]
_PER_TOPIC = 100
_IDLE_S = 6.0


def standalone(home: Path, sizes: Sizes, found: Found) -> None:
    """From the start of the process until it says that it is ready, and stored a message; its resident memory then."""
    for at in range(sizes.rounds):
        namesrv, broker = free_ports(2)
        begin = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "trimq.cli", "standalone", "--dir", str(home / str(at)), "--port", str(namesrv),
             "--broker-port", str(broker)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            if not process.stdout.readline().startswith("ready"):
                raise NotToBeHad("trimq standalone does not start")
            found("standalone, ready", at, time.monotonic() - begin, "s")
            _first_send(f"127.0.0.1:{namesrv}", begin + 20)
            found("standalone, first message stored", at, time.monotonic() - begin, "s")
            found("standalone, resident", at, resident_mb(process.pid), "MB")
        finally:
            process.terminate()
            process.wait()


def _first_send(namesrv: str, deadline: float) -> None:
    """Raises NotToBeHad past the deadline."""
    _, _, port = namesrv.rpartition(":")
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(port))).close()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise NotToBeHad("the name server does not listen") from None
            time.sleep(0.005)

    async def main() -> None:
        async with trimq.connect(namesrv) as client:
            while True:
                try:
                    await client.send("first", b"?")
                    return
                except TrimqError:
                    if time.monotonic() > deadline:
                        raise
                    await trio.sleep(0.005)

    trio.run(main)


def queues(home: Path, sizes: Sizes, found: Found) -> None:
    """Idle CPU with 10,000 queues; the send rate over 8, 10,000 and 50,000 of them in turn; memory; start."""
    few = min(sizes.topics, 100)
    with opener("trimq", "")(home) as peer:
        _topics(peer, 0, few)
        time.sleep(1)
        usage = Usage(peer.processes())
        time.sleep(_IDLE_S)
        cpu, _ = usage.spent()
        for role, spent in cpu.items():
            found(f"idle CPU, {few * _PER_TOPIC:,} queues, {role}", 0, spent / _IDLE_S * 100, "% of a core")
        _topics(peer, few, sizes.topics)
        address = peer.address()
        spans = (("bench", 1, 8), ("many", few, _PER_TOPIC), ("many", sizes.topics, _PER_TOPIC))
        for at in range(sizes.rounds):
            for topic, topics, each in spans if at % 2 == 0 else spans[::-1]:
                names = [topic] if topic == "bench" else [f"{topic}{n}" for n in range(topics)]
                places = [(name, queue) for queue in range(each) for name in names]
                run = drive(address, Sends(places, 1024), window=256, seconds=sizes.seconds)
                found(f"1 KiB, 256 in flight, over {len(places):,} queues", at, run.per_second, "msg/s")
        pids = peer.processes()
        called = f"{sizes.topics * _PER_TOPIC:,} queues"
        found(f"resident, {called}", 0, max(map(resident_mb, pids.values())), "MB")
        peer.cluster.kill(*peer.cluster.nodes)
        begin = time.monotonic()
        peer.cluster.start()
        status.wait_ready_blocking(peer.cluster, within_s=60)
        found(f"all nodes killed and started, {called}", 0, time.monotonic() - begin, "s")


def _topics(peer: Trimq, first: int, end: int) -> None:
    async def main() -> None:
        async with trimq.connect(peer.cluster.namesrv_address) as client:
            for number in range(first, end):
                await client.admin.create_topic(f"many{number}", queues=_PER_TOPIC)

    trio.run(main)


def connections(home: Path, sizes: Sizes, found: Found) -> None:
    """The send rate beside idle connections to the same replica, and what each of them takes of its memory."""
    with opener("trimq", "")(home) as peer:
        address, pid = peer.address(), peer.processes()["leader"]
        before = resident_mb(pid)
        for wanted in (0, sizes.connections // 10, sizes.connections):
            with ExitStack() as stack:
                for _ in range(wanted):
                    stack.enter_context(socket.create_connection(address, timeout=5))
                time.sleep(1)
                if wanted:
                    grown = (resident_mb(pid) - before) * 1000 / wanted
                    found(f"memory per idle connection, {wanted:,} of them", 0, grown, "kB")
                for at in range(min(3, sizes.rounds)):
                    run = drive(address, Sends([("bench", 0)], 1024), window=256, seconds=sizes.seconds)
                    found(f"1 KiB, 256 in flight, beside {wanted:,} connections", at, run.per_second, "msg/s")


def backlog(home: Path, sizes: Sizes, found: Found) -> None:
    """The send rate of a cluster that holds a backlog and of an empty one, in turn."""
    with ExitStack() as stack:
        full = stack.enter_context(opener("full", "")(home / "full"))
        empty = stack.enter_context(opener("empty", "")(home / "empty"))
        drive(full.address(), Sends([("bench", 0)], 100, batch=256), window=16, messages=sizes.backlog)
        time.sleep(2)
        names = (
            (full, f"1 KiB, 256 in flight, {sizes.backlog:,} messages there"),
            (empty, "1 KiB, 256 in flight, empty"),
        )
        for at in range(sizes.rounds):
            for peer, name in names if at % 2 == 0 else names[::-1]:
                run = drive(peer.address(), Sends([("bench", 0)], 1024), window=256, seconds=sizes.seconds)
                found(name, at, run.per_second, "msg/s")


def recovery(home: Path, sizes: Sizes, found: Found) -> None:
    """kill -9 of a group of one replica, then from its start until it leads, ready, by size of the log."""
    with opener("one", "", flush="async", nodes=1)(home) as peer:
        filled = 0.0
        for gib in sorted({min(0.25, sizes.log_gib), min(1.0, sizes.log_gib), sizes.log_gib}):
            messages = int((gib - filled) * (1 << 30) / (4096 + 150)) // 32 * 32
            if messages:
                drive(
                    peer.address(),
                    Sends([("bench", q) for q in range(8)], 4096, batch=32),
                    window=16,
                    messages=messages,
                )
            filled = gib
            time.sleep(1)
            for at in range(min(3, sizes.rounds)):
                peer.cluster.kill("n0")
                begin = time.monotonic()
                peer.cluster.start("n0")
                status.wait_ready_blocking(peer.cluster, within_s=120)
                found(f"restart after kill -9, {gib:g} GiB of log", at, time.monotonic() - begin, "s")
        found("resident after the restart", 0, resident_mb(peer.cluster.pids["n0"]), "MB")
