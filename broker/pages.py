"""What one replica says of itself over HTTP: `/livez`, `/readyz`, `/health`, `/metrics`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import trio

from broker.metrics import exposition
from broker.processor.admin.broker import Parts, group_status
from broker.service.status_page import Page, StatusPage, json_page

if TYPE_CHECKING:
    from trimq.env import Network

__all__ = ["make_pages", "serve_pages"]

log = logging.getLogger(__name__)

STATUS_PAGE_OFFSET = 8
"""Above the client port, unless `metricsPort` says otherwise."""


Gauges = Callable[[], Mapping[str, float]]


async def serve_pages(listeners: trio.Nursery, network: Network, parts: Parts, port: int, more: Gauges = dict) -> None:
    """Start the HTTP pages beside the client `port`. A port in use is a warning here: the broker works without them."""
    config = parts.config
    wanted = config.metrics_port or (port + STATUS_PAGE_OFFSET if config.listen_port else 0)
    page = StatusPage(make_pages(parts, more))
    try:
        await listeners.start(partial(page.serve, network, config.bind_address, wanted))
    except OSError as error:
        log.warning(
            "no status page: its port cannot be bound (metricsPort chooses another, -1 none)",
            extra={"port": wanted, "error": error.strerror or str(error)},
        )


def make_pages(parts: Parts, more: Gauges = dict) -> dict[str, Page]:
    """Health and metrics of one replica; `more` gauges come from outside of it."""
    config, replicator = parts.config, parts.replicator
    labels = {"cluster": config.cluster_name, "broker": config.broker_name, "node_id": config.node_id}

    def health() -> tuple[int, str, bytes]:
        return json_page(200, group_status(parts))

    def ready() -> tuple[int, str, bytes]:
        status = replicator.status()
        serving = status.ready or bool(status.leader.addr)
        reason = status.detail or ("" if serving else "no leader is known")
        return json_page(200 if serving else 503, {"ready": serving, "role": status.role.value, "reason": reason})

    def metrics() -> tuple[int, str, bytes]:
        status = replicator.status()
        gauges = {
            "trimq_term": float(status.term),
            "trimq_leader": float(status.ready),
            "trimq_log_last_index": float(status.last),
            "trimq_commit_index": float(status.commit),
            "trimq_dispatched_index": float(status.dispatched),
            "trimq_held_pulls": float(len(parts.holds)),
            "trimq_groups_subscribed_differently": float(len(parts.members.conflicts)),
            "trimq_client_ids_doubled": float(len(parts.members.doubled)),
            **more(),
        }
        return 200, "text/plain; version=0.0.4", exposition(labels, gauges, parts.counters).encode()

    def alive() -> tuple[int, str, bytes]:
        return 200, "text/plain", b"ok\n"

    return {"/health": health, "/livez": alive, "/readyz": ready, "/metrics": metrics}
