"""Apache RocketMQ's Java programs, as Maven has them: built once, run as subprocesses whose lines are JSON.

`tests/interop/java` is a Maven project with a module per version; each module writes its class path. What the registry
does not have cannot be run here, and the tests that need it say so.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).with_name("java")
STAMP = Path(__file__).resolve().parents[2] / ".interop" / "java-built"
BUILD_S = 540
_QUIET = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
"""Two cores are shared by everything under test: no parallel collector, no optimising compiler."""

VERSIONS = {"client4": "4.9.8", "client5": "5.3.3", "server4": "4.9.7", "server5": "5.3.3"}
"""Pinned in the modules' pom.xml (a test compares). Maven Central has no broker of 4.9.8: its server is 4.9.7."""


class NotToBeHad(Exception):
    """Java, Maven or the packages are not to be had on this machine; the message says which and why."""


@lru_cache(maxsize=1)
def built() -> None:
    """Compile the driver against every version, unless that was done for these very sources. Raises `NotToBeHad`."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            raise NotToBeHad(f"no {program} on this machine")
    digest = _digest()
    if STAMP.exists() and STAMP.read_text() == digest and all((_home(m) / "classpath.txt").exists() for m in VERSIONS):
        return
    done = subprocess.run(
        ["mvn", "-B", "-q", "compile"], cwd=PROJECT, capture_output=True, text=True, timeout=BUILD_S, check=False
    )
    if done.returncode != 0:
        text = done.stdout + done.stderr
        if "COMPILATION ERROR" in text:
            raise AssertionError(text)
        raise NotToBeHad(f"Maven cannot have them: {' '.join(text.split())[:600]}")
    STAMP.parent.mkdir(parents=True, exist_ok=True)
    STAMP.write_text(digest)


def _digest() -> str:
    found = hashlib.sha256()
    for path in sorted(p for p in PROJECT.rglob("*") if p.suffix in (".java", ".xml") and "target" not in p.parts):
        found.update(path.read_bytes())
    return found.hexdigest()


def _home(module: str) -> Path:
    return PROJECT / module / "target"


def command(
    module: str, main: str, arguments: Sequence[object], *, home: Path, heap_mb: int = 192, fast: bool = False
) -> list[str]:
    """The command line of a Java program of a module, with its log files and settings under `home`.

    `fast`: with Java's own choice of collector and compiler, for those who measure it (`bench/`).
    """
    path = (_home(module) / "classpath.txt").read_text().strip()
    return [
        "java",
        *(() if fast else _QUIET),
        f"-Xmx{heap_mb}m",
        f"-Duser.home={home}",
        f"-Drocketmq.home.dir={home}",
        f"-Drocketmq.client.logRoot={home}/logs",
        f"-Djava.io.tmpdir={home}",
        "-cp",
        f"{_home(module) / 'classes'}:{path}",
        main,
        *map(str, arguments),
    ]


class Program:
    """A running driver, whose lines are kept as they come."""

    def __init__(self, arguments: list[str], log: Path, home: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                arguments, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.PIPE, cwd=home, text=True
            )
        self.events: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith("{"):
                continue  # a library that greets on standard output
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def of(self, event: str) -> list[dict[str, Any]]:
        """The lines of one kind so far."""
        with self._changed:
            return [each for each in self.events if each["event"] == event]

    def until(self, event: str, seconds: float, fits: Callable[[dict[str, Any]], bool] = lambda each: True) -> Any:
        """Wait for a line. Raises AssertionError with the program's last words when it does not come in time."""
        end = time.monotonic() + seconds
        at = 0
        with self._changed:
            while True:
                for each in self.events[at:]:
                    if each["event"] == event and fits(each):
                        return each
                at = len(self.events)
                left = end - time.monotonic()
                if self._ended or left <= 0:
                    break
                self._changed.wait(left)
        raise AssertionError(f"no {event!r} within {seconds:g} s{self._last_words()}")

    def _last_words(self) -> str:
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        said = "\n".join(map(str, self.events[-3:]))
        return f"; ended: {self._ended}\n{said}\n" + "\n".join(text.splitlines()[-12:])

    def done(self, seconds: float) -> dict[str, Any]:
        """Its summary."""
        found: dict[str, Any] = self.until("done", seconds)
        return found

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass


class Driver:
    """Starts programs of one module against one name server; ends them all when the block ends."""

    def __init__(self, module: str, namesrv: str, home: Path) -> None:
        self.module = module
        self.version = VERSIONS[module]
        self.namesrv = namesrv
        self.home = home
        self._running: list[Program] = []

    def start(self, what: str, **options: object) -> Program:
        """Start a command of `interop.Main`; it runs until it is done."""
        words = [what, f"namesrv={self.namesrv}", *(f"{key}={value}" for key, value in options.items())]
        return self._start("interop.Main", words, what)

    def admin(self) -> Program:
        """Start mqadmin (`interop.Admin`), which takes command lines with `tell`."""
        (self.home / "conf").mkdir(exist_ok=True)
        (self.home / "conf" / "logback_tools.xml").write_text("<configuration/>\n")  # 4.9 does not start without it
        return self._start("interop.Admin", [], "mqadmin")

    def _start(self, main: str, words: list[str], log: str) -> Program:
        program = Program(command(self.module, main, words, home=self.home), self.home / f"{log}.stderr", self.home)
        self._running.append(program)
        return program

    def stop(self) -> None:
        for program in self._running:
            program.stop()
        self._running.clear()


@contextmanager
def driver(module: str, namesrv: str, home: Path) -> Iterator[Driver]:
    made = Driver(module, namesrv, home)
    try:
        yield made
    finally:
        made.stop()
