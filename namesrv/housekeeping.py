"""Brokers that fell silent leave the routes.

The usual way out is a closed connection, noticed at once; this loop is for machines that vanished without a word.
"""

from __future__ import annotations

import logging
from typing import NoReturn

import trio

from namesrv.route_info import RouteTable

__all__ = ["expire_silent_brokers"]

log = logging.getLogger(__name__)


async def expire_silent_brokers(table: RouteTable, every_s: float) -> NoReturn:
    """Look every `every_s` seconds, for ever."""
    while True:
        await trio.sleep(every_s)
        for replica in table.expire(trio.current_time()):
            extra = {"addr": replica.addr, "id": replica.broker_id, "silent_s": replica.heartbeat_s}
            log.warning("broker removed: no sign of life", extra=extra)
