"""Foreign clients that are programs: how each is installed and started, and what it must say.

A program is called `send NAMESRV TOPIC COUNT` or `push NAMESRV TOPIC GROUP COUNT SECONDS`. It sends `body-0`,
`body-1`, ... each with one call of its client's API, so what the client retries inside counts as the client's doing and
an error counts once; it never asks again. JSON lines on standard output: `{"event": "sent", "count": n}` now and then,
`{"event": "error", ...}`, and at the end `{"event": "done", "failed": [body, ...]}`; a consumer says `started`, and at
the end `{"event": "done", "deliveries": n, "bodies": [...]}`.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.interop.chromium import NotToBeHad
from tests.interop.environments import HOME, python_with

__all__ = ["CLIENTS", "Foreign", "Program"]

HERE = Path(__file__).parent
GO_VERSION = "v2.1.3-0.20251226070945-2173d070fd1b"
NODE_VERSION = "3.12.0"


@dataclass(frozen=True, slots=True)
class Foreign:
    """One client."""

    name: str
    version: str
    command: Callable[[], list[str]]
    """Installs it where needed; the command before `send` or `push`. Raises `NotToBeHad`."""
    note: str = ""
    """What is known about how it sends."""


class Program:
    """One that runs: its lines, as they come."""

    def __init__(self, command: list[str], directory: Path, *arguments: object) -> None:
        environment = {
            "HOME": str(directory),  # the native clients log below it
            "PATH": os.environ["PATH"],
            "CLIENT_LOG": str(directory / "client.log"),
        }
        self._complaints = directory / f"{arguments[0]}.err"
        with self._complaints.open("w") as complaints:
            self._process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                env=environment,
                cwd=directory,
            )
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        self.errors: list[str] = []
        """What reached the application."""

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def until(self, event: str, seconds: float, *, count: int = 0) -> dict[str, Any]:
        """The next line of this kind (and with at least this count)."""
        while True:
            line = self._lines.get(timeout=seconds)
            assert line is not None, (
                f"the program ended before {event!r}, status {self._process.wait()}:"
                f" {self._complaints.read_text()[-1000:]}"
            )
            if line["event"] == "error":
                self.errors.append(line["error"])
            elif line["event"] == event and line.get("count", 0) >= count:
                return line

    def close(self) -> None:
        """End it, however it is."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _go() -> list[str]:
    home = HOME / f"go-{GO_VERSION}"
    driver = home / "driver"
    if not driver.exists():
        if not shutil.which("go"):
            raise NotToBeHad("there is no Go on this machine")
        home.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["go", "build", "-mod=readonly", "-o", str(driver), "."], cwd=HERE / "go", capture_output=True, text=True
        )
        if done.returncode:
            raise NotToBeHad(f"go build: {done.stderr.strip()[-300:]}")
    return [str(driver)]


def _node() -> list[str]:
    home = HOME / f"ali-ons-{NODE_VERSION}"
    node = shutil.which("node")
    if not (home / "node_modules" / "ali-ons").exists():
        if not node or not shutil.which("npm"):
            raise NotToBeHad("there is no Node.js with npm on this machine")
        home.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "node" / name, home)
        done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=home, capture_output=True, text=True)
        if done.returncode:
            raise NotToBeHad(f"npm ci: {done.stderr.strip()[-300:]}")
    assert node is not None
    shutil.copy(HERE / "node" / "driver.js", home)
    return [node, str(home / "driver.js")]


def _native(requirement: str) -> Callable[[], list[str]]:
    def command() -> list[str]:
        try:
            return [str(python_with(requirement)), str(HERE / "cpp_client.py")]
        except subprocess.CalledProcessError as error:
            raise NotToBeHad(f"pip install {requirement}: {error}") from error

    return command


CLIENTS = [
    Foreign("rocketmq-client-go (Go)", "2.1.3-0.20251226070945", _go),
    Foreign("ali-ons (npm)", NODE_VERSION, _node, "sends no unique id"),
    Foreign("rocketmq (PyPI, C++)", "0.4.4", _native("rocketmq==0.4.4")),
    Foreign("rocketmq-python-cvs (PyPI, C++)", "2.1.0.3", _native("rocketmq-python-cvs==2.1.0.3")),
]
