"""The name server as a service: `serve_namesrv` runs it until cancelled.

Requests are answered in the pass that reads them; the one exception, key-value changes, go through a single writer
task, one after the other, so that an answer always means "on the disk" and the file is never written twice at once.
Several name servers know nothing of each other: brokers tell all of them everything.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NoReturn

import trio

from namesrv.config import NamesrvConfig
from namesrv.housekeeping import expire_silent_brokers
from namesrv.kv_config import KVConfig, KVFull, KVStore
from namesrv.processor import KVChange, Processor, Request
from trimq.env import Network, TaskStatus
from trimq.remoting.gateway import Gateway
from trimq.remoting.server import Connection, Limits, RemotingServer
from trimq.remoting.websocket import PORT_OFFSET
from trimq.wire.codes import ResponseCode
from trimq.wire.command import Command, decode, response_to

__all__ = ["NameServer", "serve_namesrv"]

log = logging.getLogger(__name__)

KV_WAITING_MAX = 100
"""Key-value changes that may wait for the disk; administrators make them by hand."""


class NameServer:
    """Connects the processor with connections and with the disk."""

    def __init__(self, config: NamesrvConfig, kv: KVStore | None) -> None:
        self.processor = Processor(config)
        self._kv_store = kv
        self._kv_send, self._kv_receive = trio.open_memory_channel[tuple[Connection, Command, KVChange]](KV_WAITING_MAX)

    def on_frames(self, conn: Connection, frames: Sequence[bytes]) -> None:
        now = trio.current_time()
        for frame in frames:
            command = decode(frame)
            if command.is_response:
                continue  # nobody asked
            answer = self.processor.process(Request(command, conn.id, conn.peer, now, conn.local))
            if isinstance(answer, KVChange):
                self._queue_kv(conn, command, answer)
            elif not command.is_oneway:
                conn.send(answer)

    def on_closed(self, conn: Connection) -> None:
        for replica in self.processor.table.connection_closed(conn.id):
            extra = {"addr": replica.addr, "id": replica.broker_id, "reason": conn.close_reason}
            log.info("broker removed: connection closed", extra=extra)

    def _queue_kv(self, conn: Connection, command: Command, change: KVChange) -> None:
        try:
            self._kv_send.send_nowait((conn, command, change))
        except trio.WouldBlock:
            conn.send(response_to(command, ResponseCode.SYSTEM_BUSY, remark="too many key-value changes at once"))

    async def load_kv(self) -> None:
        """Read the key-value settings. Raises `OSError`, or `ValueError` for a file that is no such table."""
        data = await self._kv_store.load() if self._kv_store is not None else None
        if data is not None:
            self.processor.change_kv(KVConfig.decode(data))

    async def write_kv(self) -> NoReturn:
        """Make key-value changes durable, one after the other, and answer them."""
        async for conn, command, change in self._kv_receive:
            code, remark = await self._change_kv(change)
            if not command.is_oneway:
                conn.send(response_to(command, code, remark=remark))
        raise AssertionError("the sending side is never closed")

    async def _change_kv(self, change: KVChange) -> tuple[int, str]:
        try:
            changed = self.processor.kv.changed(change.namespace, change.key, change.value)
            if self._kv_store is not None:
                await self._kv_store.save(changed.encode())
        except KVFull as error:
            return ResponseCode.SYSTEM_ERROR, str(error)
        except OSError as error:
            log.error("key-value settings not saved", extra={"error": str(error)})
            return ResponseCode.SYSTEM_ERROR, f"not saved: {error.strerror}"
        self.processor.change_kv(changed)
        return ResponseCode.SUCCESS, ""


async def _open_gateway(
    nursery: trio.Nursery, config: NamesrvConfig, network: Network, remoting: RemotingServer, port: int
) -> None:
    """Browsers ask for routes here. A port in use is a warning: everybody else is served without it."""
    gateway = Gateway(remoting.handle, allowed_origins=config.web_socket_allowed_origins)
    try:
        await nursery.start(gateway.serve, network, config.bind_address, port + PORT_OFFSET)
    except OSError as error:
        log.warning(
            "no WebSocket gateway: its port cannot be bound (webSocketEnable=false does without)",
            extra={"port": port + PORT_OFFSET, "error": error.strerror or str(error)},
        )


async def serve_namesrv(
    config: NamesrvConfig,
    network: Network,
    *,
    kv: KVStore | None = None,
    limits: Limits | None = None,
    task_status: TaskStatus = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a name server until cancelled; `started(bound port)` once it answers.

    Without `kv` the key-value settings live in memory only. Raises `OSError` when the address cannot be bound or the
    settings cannot be read, `ValueError` when they are damaged.
    """
    server = NameServer(config, kv)
    await server.load_kv()
    failure: OSError | None = None
    async with trio.open_nursery() as nursery:
        remoting = RemotingServer(server, limits=limits or Limits())
        try:
            port = await nursery.start(remoting.serve, network, config.bind_address, config.listen_port)
        except OSError as error:
            failure = error
        else:
            nursery.start_soon(server.write_kv)
            nursery.start_soon(
                expire_silent_brokers, server.processor.table, config.scan_not_active_broker_interval / 1000
            )
            if config.web_socket_enable:
                await _open_gateway(nursery, config, network, remoting, port)
            log.info("name server ready", extra={"address": config.bind_address, "port": port})
            task_status.started(port)
    if failure is not None:
        raise failure
