"""What the harness asks of a broker under test, ours and the peers alike, and the processes behind it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from bench.thin import Dialect

__all__ = ["Address", "NotToBeHad", "Open", "Peer", "Processes", "free_ports", "until"]

Address = tuple[str, int]


class NotToBeHad(Exception):
    """This peer, or this of its features, is not to be had on this machine; one line says why."""


class Peer(Protocol):
    """Three running nodes of one broker on loopback, every message replicated to all three."""

    name: str
    about: str
    """Version, and when a message is acknowledged."""

    def processes(self) -> Mapping[str, int]:
        """Role → pid, the one that leads first."""

    def sends(self, body_bytes: int, *, batch: int = 1, queues: int = 1) -> tuple[Address, Dialect]:
        """Where and how a thin client sends. Raises NotToBeHad."""

    def pulls(self, body_bytes: int, *, batch: int, messages: int) -> tuple[Address, Dialect]:
        """Where and how a thin client reads; that many messages are there by then. Raises NotToBeHad."""

    def library(self) -> Sequence[str]:
        """Arguments of `python -m` that run this broker's Python client (`bench.clients`). Raises NotToBeHad."""

    def fail(self, fault: str) -> Callable[[], None]:
        """`kill` or `pause` the leading node now; what is returned brings it back. Raises NotToBeHad."""


Open = Callable[[Path], AbstractContextManager[Peer]]
"""Starts a peer with its state below a folder; ready when the block begins."""


class Processes:
    """Child processes, each with a log file, all ended by their pids."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[object], *, env: Mapping[str, str] | None = None) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._running.items()}

    def signal(self, name: str, number: int) -> None:
        self._running[name].send_signal(number)

    def check(self) -> None:
        """Raises NotToBeHad with the last words of one that ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                said = (self.home / f"{name}.log").read_text(errors="replace").split()
                raise NotToBeHad(f"{name} ended: {' '.join(said)[-400:]}")

    def stop(self) -> None:
        for process in self._running.values():
            if process.poll() is None:
                process.kill()
        for process in self._running.values():
            process.wait()
        self._running.clear()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, their two neighbours on both sides free too (RocketMQ takes some of those)."""
    found: list[int] = []
    for port in range(20_000 + time.monotonic_ns() // 1000 % 900 * 10, 32_000, 10):
        if all(_free(port + near) for near in (-2, -1, 0, 1, 2)):
            found.append(port)
            if len(found) == count:
                return found
    raise NotToBeHad("no free ports")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def until(what: str, ready: Callable[[], bool], processes: Processes, *, within_s: float = 60.0) -> None:
    """Wait for it. Raises NotToBeHad when it does not come, or a process ends."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        processes.check()
        if ready():
            return
        time.sleep(0.1)
    raise NotToBeHad(f"{what}: not within {within_s:g} s")
