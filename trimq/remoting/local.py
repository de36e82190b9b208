"""Who may change configuration or destroy data by request, as long as there are no accounts: who sits at the machine.

A request is local when it comes from a loopback address, or from the very address that it was sent to (a tool on the
server's own host that uses the registered address). Servers take further hosts and networks by name (`adminAllowFrom`),
for operators who work from one known place.

Who came by WebSocket is never local: behind a reverse proxy everybody has the proxy's address, and in a browser on the
server's own host it is some page that asks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

__all__ = ["BY_WEBSOCKET", "host_of", "is_local"]

BY_WEBSOCKET = "ws://"
"""Begins the address at which a WebSocket client reached us."""


def is_local(peer: str, local: str, allowed: Sequence[str] = ()) -> bool:
    """Does the client at `peer` sit at the machine that it reached as `local` (both `host:port`), or in `allowed`?"""
    try:
        address = ipaddress.ip_address(host_of(peer))
    except ValueError:
        return False
    if local.startswith(BY_WEBSOCKET):
        return not address.is_loopback and any(address in ipaddress.ip_network(each) for each in allowed)
    if address.is_loopback or host_of(peer) == host_of(local):
        return True
    return any(address in ipaddress.ip_network(each) for each in allowed)


def host_of(address: str) -> str:
    """The host of `host:port`; an IPv6 host stands in brackets."""
    host = address.rpartition(":")[0]
    return host.removeprefix("[").removesuffix("]")
