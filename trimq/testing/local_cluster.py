"""A cluster of real processes on this machine: one name server, three broker nodes, state in one folder.

`deploy/run3.sh`, the drills and the tests of applications all use this one class. The folder is the truth:
`cluster.json` holds the ports, the command lines and the pids, so that every later command, in any other process,
finds the cluster again. Processes run detached and survive the one that started them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimq.remoting.websocket import PORT_OFFSET, SCHEME
from trimq.testing import processes
from trimq.testing.layout import Layout, free_layout, taken_port
from trimq.testing.namespaces import Namespaces
from trimq.testing.trouble import Trouble, write_trouble

STATE_FILE = "cluster.json"
_VERSION = 1
_TERM_GRACE_S = 10.0
_SHARED = ("webSocketEnable", "webSocketAllowedOrigins")
"""Keys that name server and brokers have in common."""
_SEGMENT_BYTES = 64 * 1024 * 1024
_LOOPBACK = "127.0.0.1"


def node_names(count: int) -> list[str]:
    """What the nodes of a cluster of this size are called."""
    return [f"n{i}" for i in range(count)]


class ClusterError(Exception):
    """What went wrong with a local cluster and what to do about it, in one line."""


@dataclass(slots=True)
class LocalCluster:
    """One local cluster, running or not. Made by `create` or found again by `load`."""

    directory: Path
    layout: Layout
    groups: list[str]
    nodes: list[str]
    strategy: str
    flush: str
    token: str
    extra: dict[str, str] = field(default_factory=dict)
    """Broker configuration keys written into every replica's file as they stand."""
    troubled: bool = False
    """The nodes run in a world that breaks on command (`trouble`)."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Process name to the address it is reached at; loopback for those not named."""
    namespaces: Namespaces | None = None
    """Where the nodes run, if each has a network of its own. Lasts as long as who made it; not part of the state."""
    pids: dict[str, int] = field(default_factory=dict)
    """Process name (`namesrv` or a node) to pid, for what was started and not yet stopped."""

    # --- made and found -------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        directory: Path,
        *,
        base_port: int,
        groups: int = 3,
        nodes: int = 3,
        strategy: str = "raft",
        flush: str = "sync",
        extra: dict[str, str] | None = None,
        troubled: bool = False,
        namespaces: Namespaces | None = None,
    ) -> LocalCluster:
        """Write the configuration of a new cluster. `base_port` 0 finds a free block.

        Raises ClusterError when a port is taken; nothing is started.
        """
        if base_port == 0:
            layout = free_layout(nodes=nodes, groups=groups)
        else:
            layout = Layout(base_port=base_port, nodes=nodes, groups=groups)
            taken = taken_port(layout)
            if taken is not None:
                raise ClusterError(
                    f"port {taken} is in use; stop what holds it, or choose another block with --base-port "
                    "(0 finds a free one)"
                )
        directory.mkdir(parents=True, exist_ok=True)
        cluster = cls(
            directory=directory.resolve(),
            layout=layout,
            groups=[f"broker-{chr(ord('a') + j)}" for j in range(groups)],
            nodes=node_names(nodes),
            strategy=strategy,
            flush=flush,
            token=f"{directory.resolve()}:{layout.base_port}",
            extra=dict(extra or {}),
            troubled=troubled,
            hosts=dict(namespaces.hosts) if namespaces else {},
            namespaces=namespaces,
        )
        cluster.write_configuration()
        cluster.save()
        return cluster

    @classmethod
    def load(cls, directory: Path) -> LocalCluster:
        """The cluster whose state stands in `directory`. Raises ClusterError when there is none."""
        path = directory / STATE_FILE
        try:
            state: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            raise ClusterError(f"no cluster in {directory}: start one with deploy/run3.sh up") from None
        except (OSError, ValueError) as error:
            raise ClusterError(f"{path} cannot be read ({error}); deploy/run3.sh wipe starts afresh") from error
        if state.get("version") != _VERSION:
            raise ClusterError(f"{path} was written by another version of trimq; deploy/run3.sh wipe starts afresh")
        return cls(
            directory=directory.resolve(),
            layout=Layout(base_port=state["base_port"], nodes=len(state["nodes"]), groups=len(state["groups"])),
            groups=state["groups"],
            nodes=state["nodes"],
            strategy=state["strategy"],
            flush=state["flush"],
            token=state["token"],
            extra=state["extra"],
            troubled=state.get("troubled", False),
            hosts=state.get("hosts", {}),
            pids=state["pids"],
        )

    def save(self) -> None:
        """Write the state file, whole or not at all."""
        state = {
            "version": _VERSION,
            "namesrv": self.namesrv_address,
            "base_port": self.layout.base_port,
            "groups": self.groups,
            "nodes": self.nodes,
            "strategy": self.strategy,
            "flush": self.flush,
            "token": self.token,
            "extra": self.extra,
            "troubled": self.troubled,
            "hosts": self.hosts,
            "pids": self.pids,
        }
        temporary = self.directory / f"{STATE_FILE}.tmp"
        temporary.write_text(json.dumps(state, indent=2) + "\n")
        temporary.replace(self.directory / STATE_FILE)

    # --- addresses ------------------------------------------------------------------------------------------------

    def host(self, process: str) -> str:
        """The address at which `namesrv` or a node is reached."""
        return self.hosts.get(process, _LOOPBACK)

    @property
    def namesrv_address(self) -> str:
        return f"{self.host('namesrv')}:{self.layout.namesrv}"

    @property
    def websocket_address(self) -> str:
        """The name server's WebSocket gateway, as `trimq.connect` takes it."""
        return f"{SCHEME}{self.host('namesrv')}:{self.layout.namesrv + PORT_OFFSET}"

    def client_address(self, node: str, group: str) -> str:
        """Where the replica of `group` on `node` serves clients."""
        return f"{self.host(node)}:{self.layout.client(self.nodes.index(node), self.groups.index(group))}"

    # --- configuration --------------------------------------------------------------------------------------------

    def configuration_path(self, node: str, group: str) -> Path:
        return self.directory / "conf" / f"{node}-{group}.conf"

    def store_path(self, node: str, group: str) -> Path:
        return self.directory / "store" / node / group

    def log_path(self, process: str) -> Path:
        return self.directory / "logs" / f"{process}.log"

    def trouble_path(self, node: str) -> Path:
        return self.directory / "trouble" / f"{node}.json"

    def trouble(self, node: str, trouble: Trouble) -> None:
        """What is wrong around a node from now on; a healthy `Trouble()` mends it. For a troubled cluster only."""
        assert self.troubled, "the nodes of this cluster live in the plain world"
        write_trouble(self.trouble_path(self.check_process(node)), trouble)

    def write_configuration(self) -> None:
        """One file per replica, in RocketMQ's own keys."""
        for folder in ("conf", "logs", "store"):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        kv_path = self.directory / "store" / "namesrv" / "kvConfig.json"
        (self.directory / "conf" / "namesrv.conf").write_text(
            f"kvConfigPath={kv_path}\n" + "".join(f"{key}={self.extra[key]}\n" for key in _SHARED if key in self.extra)
        )
        peers = ";".join(f"{node}-{self.host(node)}:{self.layout.peer(i)}" for i, node in enumerate(self.nodes))
        for j, group in enumerate(self.groups):
            for i, node in enumerate(self.nodes):
                settings = {
                    "brokerClusterName": "DefaultCluster",
                    "brokerName": group,
                    "brokerIP1": self.host(node),
                    "listenPort": str(self.layout.client(i, j)),
                    "namesrvAddr": self.namesrv_address,
                    "storePathRootDir": str(self.store_path(node, group)),
                    "mapedFileSizeCommitLog": str(_SEGMENT_BYTES),
                    "flushDiskType": "ASYNC_FLUSH" if self.flush == "async" else "SYNC_FLUSH",
                    "dLegerSelfId": node,
                    **(self._raft_settings(group, j, peers) if self.strategy == "raft" else self._slave_settings(i, j)),
                    **self.extra,
                }
                text = "".join(f"{key}={value}\n" for key, value in settings.items())
                self.configuration_path(node, group).write_text(text)

    def _raft_settings(self, group: str, j: int, peers: str) -> dict[str, str]:
        return {
            "enableDLegerCommitLog": "true",
            "dLegerGroup": group,
            "dLegerPeers": peers,
            "preferredLeaderId": self.nodes[j % len(self.nodes)],
            **({"raftUnsafeAsyncFlush": "true"} if self.flush == "async" else {}),
        }

    def _slave_settings(self, i: int, j: int) -> dict[str, str]:
        """Group j's master is on node j, its slaves on the nodes after it; a node's replicas share a peer port."""
        broker_id = (i - j) % len(self.nodes)
        role = "SLAVE" if broker_id else "SYNC_MASTER" if self.strategy == "sync" else "ASYNC_MASTER"
        return {"brokerId": str(broker_id), "brokerRole": role, "haListenPort": str(self.layout.peer(i))}

    def command(self, process: str) -> list[str]:
        """The command line of `namesrv` or of a node."""
        if process == "namesrv":
            path = str(self.directory / "conf" / "namesrv.conf")
            return [sys.executable, "-m", "namesrv", "-p", str(self.layout.namesrv), "-c", path]
        command = [sys.executable, "-m", "broker"]
        if self.troubled:
            command = [sys.executable, "-m", "trimq.testing.troubled_broker", str(self.trouble_path(process))]
        for group in self.groups:
            command += ["-c", str(self.configuration_path(process, group))]
        if self.namespaces:
            return self.namespaces.prefix(process) + command
        if process in self.hosts:
            raise ClusterError(f"the network namespace of {process} ended with its drill; start another cluster")
        return command

    # --- processes ------------------------------------------------------------------------------------------------

    @property
    def processes(self) -> list[str]:
        """Every process of the cluster, in start order."""
        return ["namesrv", *self.nodes]

    def check_process(self, name: str) -> str:
        if name not in self.processes:
            raise ClusterError(f"no process {name!r} here; there are {', '.join(self.processes)}")
        return name

    def running(self, process: str) -> bool:
        pid = self.pids.get(process)
        return pid is not None and processes.alive(pid, self.token)

    def start(self, *names: str) -> None:
        """Start the named processes (all when none is named) that do not run yet."""
        for name in names or self.processes:
            self.check_process(name)
            if self.running(name):
                continue
            cwd = self.directory
            log = self.log_path(name)
            log.parent.mkdir(parents=True, exist_ok=True)
            self.pids[name] = processes.start(self.command(name), token=self.token, log=log, cwd=cwd)
        self.save()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a running process of the cluster."""
        self.check_process(name)
        pid = self.pids.get(name)
        if pid is None or not processes.send_signal(pid, self.token, number):
            raise ClusterError(f"{name} does not run")

    def kill(self, *names: str) -> None:
        """kill -9, and wait until the processes are gone."""
        for name in names:
            self.signal(name, signal.SIGKILL)
        self.await_gone(*names)

    def await_gone(self, *names: str) -> None:
        """Wait until processes that were signalled are gone. Raises ClusterError when they stay."""
        left = self._reap(names, timeout_s=_TERM_GRACE_S)
        if left:
            raise ClusterError(f"{', '.join(left)} did not end")

    def stop(self, *names: str, grace_s: float = _TERM_GRACE_S) -> None:
        """End processes in good order (SIGTERM); after the grace they are killed. Those that do not run are skipped."""
        running = [name for name in names or reversed(self.processes) if self.running(self.check_process(name))]
        for name in running:
            processes.send_signal(self.pids[name], self.token, signal.SIGCONT)
            processes.send_signal(self.pids[name], self.token, signal.SIGTERM)
        for name in self._reap(running, timeout_s=grace_s):
            processes.send_signal(self.pids[name], self.token, signal.SIGKILL)
        left = self._reap(running, timeout_s=_TERM_GRACE_S)
        if left:
            raise ClusterError(f"{', '.join(left)} did not end even when killed")
        for name in running:
            self.pids.pop(name, None)
        self.save()

    def pause(self, name: str) -> None:
        self.signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self.signal(name, signal.SIGCONT)

    def _reap(self, names: Sequence[str], *, timeout_s: float) -> list[str]:
        waiting = [(self.pids[name], self.token) for name in names if name in self.pids]
        left = set(processes.wait_gone(waiting, timeout_s=timeout_s))
        return [name for name in names if self.pids.get(name) in left]

    def last_words(self, process: str, *, lines: int = 15) -> str:
        """The end of a process's log, for an error message."""
        try:
            text = self.log_path(process).read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def inside_another_broker() -> str | None:
    """The path of a foreign top-level package `broker` that hides ours, or None: the name is a common one."""
    import importlib.util

    spec = importlib.util.find_spec("broker")
    if spec is None or spec.origin is None:
        return "nowhere"
    ours = Path(os.path.dirname(spec.origin)) / "replication"
    return None if ours.is_dir() else spec.origin
