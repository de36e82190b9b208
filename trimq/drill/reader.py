"""The final read of a drill: every queue from 0 to its end, through every node."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from trimq import Client, Queue
from trimq.drill.history import History, QueueId, Stored, read_body
from trimq.errors import TrimqError
from trimq.testing.local_cluster import LocalCluster

_PER_READ = 256
_QUEUE_DEADLINE_S = 60.0
_NO_PROGRESS_S = 60.0
"""Not for a queue as a whole: a busy machine may take minutes for a long one, and a verdict must not hang on that."""


async def read_everything(
    client: Client,
    cluster: LocalCluster,
    queues: Sequence[Queue],
    history: History,
    nodes: Sequence[str] | None = None,
) -> None:
    """Fill `history.reads`, through all nodes of the cluster unless told which still belong to it.

    A node that gives nothing more of a queue for a minute shows as lost messages.
    """
    async with client.pull() as consumer:
        ends: dict[Queue, int] = {}
        for queue in queues:
            with trio.fail_after(_QUEUE_DEADLINE_S):
                _, ends[queue] = await consumer.bounds(queue)

        async def through(node: str) -> None:
            for queue in queues:
                found = history.reads[node, QueueId(queue.topic, queue.group, queue.id)]
                address = cluster.client_address(node, queue.group)
                offset = 0
                with trio.move_on_after(_NO_PROGRESS_S) as patience:
                    while offset < ends[queue]:
                        try:
                            batch = await consumer.read(queue, offset, max=_PER_READ, wait=0.5, replica=address)
                        except TrimqError:
                            await trio.sleep(0.1)
                            continue
                        found += (Stored(message.offset, read_body(message.body)) for message in batch.messages)
                        if batch.next_offset > offset:
                            patience.deadline = trio.current_time() + _NO_PROGRESS_S
                        offset = batch.next_offset

        async with trio.open_nursery() as nursery:
            for node in cluster.nodes if nodes is None else nodes:
                nursery.start_soon(through, node)
