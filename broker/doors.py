"""The other ports by which clients reach a replica; behind all of them stands the `RemotingServer` of its main port.

- `listenPort` + 4: the WebSocket gateway. In use already: a warning, since the broker works without it.
- `listenPort` - 2: the VIP channel, when asked. RocketMQ keeps a listener apart there, so that sends do not queue up
  behind pulls; here nothing queues behind pulls, and the port is for old clients that were told to use it. In use
  already: no start, since those clients would be lost without a word.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from trimq.remoting.gateway import Gateway, GatewayStatistics
from trimq.remoting.websocket import PORT_OFFSET

if TYPE_CHECKING:
    from broker.config import BrokerConfig
    from trimq.env import Network
    from trimq.remoting.server import RemotingServer

__all__ = ["VIP_OFFSET", "Doors", "open_doors"]

log = logging.getLogger(__name__)

VIP_OFFSET = -2


class Doors:
    """Which of them are open."""

    def __init__(self, web_socket_port: int, gateway: Gateway) -> None:
        self.web_socket_port = web_socket_port
        """0: none."""
        self._gateway = gateway

    def statistics(self) -> GatewayStatistics:
        return self._gateway.statistics()

    def gauges(self) -> dict[str, float]:
        """For the metrics page."""
        statistics = self._gateway.statistics()
        return {
            "trimq_websocket_connections": float(statistics.connections),
            "trimq_websocket_refused": float(statistics.refused),
        }


async def open_doors(
    listeners: trio.Nursery, network: Network, server: RemotingServer, config: BrokerConfig, port: int
) -> Doors:
    """Start the listeners beside the client `port` in `listeners`. Raises `OSError` when the VIP port is in use."""
    gateway = Gateway(server.handle, allowed_origins=config.web_socket_origins, frame_max_bytes=config.max_frame_bytes)
    web_socket_port = 0
    if config.web_socket:
        try:
            web_socket_port = await listeners.start(
                partial(gateway.serve, network, config.bind_address, port + PORT_OFFSET)
            )
        except OSError as error:
            log.warning(
                "no WebSocket gateway: its port cannot be bound (webSocketEnable=false does without)",
                extra={"port": port + PORT_OFFSET, "error": error.strerror or str(error)},
            )
    if config.vip_channel:
        vip_port = port + VIP_OFFSET
        try:
            await listeners.start(partial(network.serve, server.handle, config.bind_address, vip_port))
        except OSError as error:
            raise OSError(0, f"vipChannelEnable needs port {vip_port} (listenPort - 2): {error.strerror}") from error
    return Doors(web_socket_port, gateway)
