"""Apache RocketMQ itself, from its own packages: a name server and two brokers on loopback, for our client to use.

Small heaps, temporary folders, free ports; every process is ended by its pid when the block ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import trio

import trimq
from tests.interop.bench import SHORT_LEVELS
from tests.interop.java_home import VERSIONS, built, command
from trimq.errors import TrimqError

OPENED = (
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-exports=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-exports=java.base/jdk.internal.ref=ALL-UNNAMED",
    "-XX:MaxDirectMemorySize=256m",
)
"""What these releases reach into, written for Java 8, with the JDK of today."""
START_S = 90.0


@dataclass(slots=True)
class Apache:
    """Running servers of one release."""

    module: str
    home: Path
    namesrv_port: int
    ports: dict[str, int]
    """Broker name → its port."""
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return VERSIONS[self.module]

    @property
    def namesrv(self) -> str:
        return f"127.0.0.1:{self.namesrv_port}"

    def start(self, name: str) -> None:
        """Start the name server (`namesrv`) or a broker by its name."""
        home = self.home / name
        (home / "conf").mkdir(parents=True, exist_ok=True)
        for file in ("logback_namesrv.xml", "logback_broker.xml"):
            (home / "conf" / file).write_text("<configuration/>\n")  # 4.9 does not start without them
        settings = self._namesrv(home) if name == "namesrv" else self._broker(name, home)
        (home / "server.conf").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        kind = "namesrv.NamesrvStartup" if name == "namesrv" else "broker.BrokerStartup"
        line = command(self.module, f"org.apache.rocketmq.{kind}", ["-c", home / "server.conf"], home=home, heap_mb=320)
        line[1:1] = OPENED
        with (home / "out.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                line,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=home,
                env={**os.environ, "HOME": str(home)},
                start_new_session=True,
            )

    def _namesrv(self, home: Path) -> dict[str, object]:
        return {
            "listenPort": self.namesrv_port,
            "kvConfigPath": home / "kvConfig.json",
            "configStorePath": home / "namesrv.properties",
        }

    def _broker(self, name: str, home: Path) -> dict[str, object]:
        return {
            "brokerClusterName": "DefaultCluster",
            "brokerName": name,
            "brokerId": 0,
            "brokerRole": "ASYNC_MASTER",
            "flushDiskType": "ASYNC_FLUSH",
            "brokerIP1": "127.0.0.1",
            "brokerIP2": "127.0.0.1",
            "listenPort": self.ports[name],
            "namesrvAddr": self.namesrv,
            "storePathRootDir": home / "store",
            "storePathCommitLog": home / "store" / "commitlog",
            "mapedFileSizeCommitLog": 16 << 20,
            "mappedFileSizeCommitLog": 16 << 20,
            "maxIndexNum": 100_000,
            "maxHashSlotNum": 50_000,
            "diskMaxUsedSpaceRatio": 95,
            "autoCreateTopicEnable": "true",
            "enablePropertyFilter": "true",
            "messageDelayLevel": SHORT_LEVELS,
            "transactionCheckInterval": 2000,
            "transactionTimeOut": 1000,
            "timerWheelEnable": "true",
            "mappedFileSizeTimerLog": 4 << 20,
        }

    def kill(self, name: str) -> None:
        """kill -9."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for name in list(self._processes):
            self.kill(name)

    def wait_ready(self) -> None:
        """Until every broker is in the name server's cluster table and takes a message."""

        async def main() -> None:
            with trio.fail_after(START_S):
                while True:
                    self._check_alive()
                    try:
                        async with trimq.connect(self.namesrv) as client:
                            with anyio.fail_after(10):
                                found = await client.admin.cluster()
                                if {group.name for group in found.groups} >= set(self.ports):
                                    await client.admin.create_topic("READY", queues=1)
                                    await client.send("READY", b"?")
                                    return
                    except (TrimqError, TimeoutError, OSError):
                        pass
                    await trio.sleep(0.5)

        trio.run(main)

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                said = (self.home / name / "out.log").read_text(errors="replace")
                raise AssertionError(f"Apache's {name} ended:\n{said[-3000:]}")


def _free_port(taken: set[int]) -> int:
    """A free port whose neighbours are free too: brokers also listen on port - 2 and port + 1."""
    for port in range(21_000 + (time.monotonic_ns() // 1000) % 5000, 32_000, 10):
        if port in taken:
            continue
        try:
            for each in (port - 2, port, port + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
        except OSError:
            continue
        taken.add(port)
        return port
    raise AssertionError("no free port")


@contextmanager
def apache(module: str, home: Path) -> Iterator[Apache]:
    """Servers of a release, ready to work. Raises `NotToBeHad`."""
    built()
    taken: set[int] = set()
    servers = Apache(module, home, _free_port(taken), {name: _free_port(taken) for name in ("broker-a", "broker-b")})
    try:
        for name in ("namesrv", *servers.ports):
            servers.start(name)
        servers.wait_ready()
        yield servers
    finally:
        servers.stop()
