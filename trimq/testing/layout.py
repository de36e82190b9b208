"""Where the parts of a local cluster listen: every port follows from one base port.

One rule keeps several clusters side by side on a machine: with base N the name server has N (and N+4 for WebSocket),
the peers of node i have N+10+i, and the replica of group j on node i has N+100+20*(nodes*j+i) with the usual offsets
above it (HA +1, WebSocket +4, metrics +8). All of it lies within N..N+1000, and all of it is tried before the start.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trimq.remoting.websocket import PORT_OFFSET

DEFAULT_BASE_PORT = 9876
BLOCK_PORTS = 1000
"""No cluster reaches further above its base port than this."""

_STRIDE = 20
_OFFSETS = (0, 1, PORT_OFFSET, 8)
"""Client, HA, WebSocket and metrics ports of one replica, from its client port."""
_FALLBACK_EPHEMERAL_START = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The ports of one local cluster."""

    base_port: int
    nodes: int = 3
    groups: int = 3

    @property
    def namesrv(self) -> int:
        return self.base_port

    def peer(self, node: int) -> int:
        """The Raft peer port of a node, shared by all its replicas."""
        return self.base_port + 10 + node

    def client(self, node: int, group: int) -> int:
        """The port on which the replica of `group` on `node` serves clients."""
        return self.base_port + 100 + _STRIDE * (self.nodes * group + node)

    def all_ports(self) -> Iterator[int]:
        """Every port that the cluster may open."""
        yield self.namesrv
        yield self.namesrv + PORT_OFFSET
        for node in range(self.nodes):
            yield self.peer(node)
        for group in range(self.groups):
            for node in range(self.nodes):
                for offset in _OFFSETS:
                    yield self.client(node, group) + offset


def taken_port(layout: Layout) -> int | None:
    """The first port of the layout that something else holds, or None when all are free."""
    for port in layout.all_ports():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    return port
                raise
    return None


def free_layout(*, nodes: int, groups: int, start: int = 12_000) -> Layout:
    """A layout whose ports are all free now, below the ephemeral range: what `--base-port 0` means.

    Below that range no outgoing connection of anybody can take a port between this look and the start. The block is
    drawn, not the first one: two clusters that are made at the same moment would look at the same block, find it free,
    and one of them would not start.
    """
    limit = _ephemeral_start() - BLOCK_PORTS
    blocks = list(range(start, limit, BLOCK_PORTS))
    random.Random().shuffle(blocks)
    for base in [*blocks, *range(2_000, start, BLOCK_PORTS)]:
        layout = Layout(base_port=base, nodes=nodes, groups=groups)
        if taken_port(layout) is None:
            return layout
    raise OSError(errno.EADDRINUSE, f"no free block of {BLOCK_PORTS} ports below {limit}")


def _ephemeral_start() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _FALLBACK_EPHEMERAL_START
