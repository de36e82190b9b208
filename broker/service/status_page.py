"""Health and metrics over HTTP: `/livez`, `/readyz` (with the reason), `/health` (JSON), `/metrics` (Prometheus text).

HTTP/1.1 by h11, one request per connection, read by a small task each; nothing here touches the hot path. Bounded: a
request head of 16 KiB, 5 s, and 64 connections at once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping

import h11
import trio

from trimq.env import Network, Stream, TaskStatus
from trimq.remoting.broken import BROKEN

__all__ = ["Page", "StatusPage"]

log = logging.getLogger(__name__)

REQUEST_S = 5.0
HEAD_MAX_BYTES = 16 << 10
CONNECTIONS_MAX = 64

Page = Callable[[], tuple[int, str, bytes]]
"""Status, content type, body."""


def json_page(status: int, content: Mapping[str, object]) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(content, sort_keys=True).encode() + b"\n"


class StatusPage:
    """A listener that answers GET for a fixed table of pages."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._connections = 0

    async def serve(
        self, network: Network, host: str, port: int, *, task_status: TaskStatus = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled; `started(bound port)`. Raises `OSError` when the address cannot be bound."""
        await network.serve(self._handle, host, port, task_status=task_status)

    async def _handle(self, stream: Stream) -> None:
        if self._connections >= CONNECTIONS_MAX:
            return
        self._connections += 1
        try:
            with trio.move_on_after(REQUEST_S):
                await self._answer(stream)
        except (*BROKEN, h11.ProtocolError) as error:
            log.debug("status request failed", extra={"error": str(error)})
        finally:
            self._connections -= 1

    async def _answer(self, stream: Stream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES)
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(4096))
        if not isinstance(event, h11.Request):
            return
        path = event.target.decode("ascii", "replace").partition("?")[0]
        page = self._pages.get(path)
        if event.method not in (b"GET", b"HEAD"):
            status, kind, body = 405, "text/plain", b"only GET is served here\n"
        elif page is None:
            listed = " ".join(sorted(self._pages)).encode()
            status, kind, body = 404, "text/plain", b"pages: " + listed + b"\n"
        else:
            status, kind, body = page()
        headers = [("content-type", kind), ("content-length", str(len(body))), ("connection", "close")]
        parts = [connection.send(h11.Response(status_code=status, headers=headers))]
        if event.method != b"HEAD":
            parts.append(connection.send(h11.Data(data=body)))
        await stream.send_all(b"".join(part for part in parts if part))
