"""Ports for servers that listen on more than one."""

from __future__ import annotations

import socket

from trimq.remoting.websocket import PORT_OFFSET


def port_with_gateway() -> int:
    """A free port whose gateway's port is free as well: a gateway that finds its port taken is only a warning."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + PORT_OFFSET)).close()
            except (OSError, OverflowError):
                continue
            return port
