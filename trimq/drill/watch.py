"""The reading side of a drill: consumers under load, and what the cluster says about committed offsets.

Three push consumers share one consumer group. Three further groups only commit: each takes the end of every queue as
its offset again and again, which makes offsets move in four groups while leaders change. After every commit, and in
between, the offset is asked for, one question at a time per group and queue, so that the answers have an order.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from trimq import Client, PullConsumer, Queue, Received, Start
from trimq.drill.history import History, QueueId, read_body
from trimq.errors import TrimqError

CONSUMERS = 3
COMMITTING_GROUPS = 3
READERS_GROUP = "drill-readers"
_ASK_EVERY_S = 0.25
_ANSWER_S = 10.0


async def run_consumer(client: Client, topic: str, history: History, *, task_status: trio.TaskStatus[None]) -> None:
    """One push consumer of the readers' group, until cancelled."""

    async def note(message: Received) -> None:
        value = read_body(message.body)
        if value is not None:
            history.delivered(value)

    async with client.subscribe(topic, group=READERS_GROUP, start=Start.FIRST) as consumer:
        task_status.started()
        await consumer.run(note)


async def watch_offsets(client: Client, queues: Sequence[Queue], history: History, stop: trio.Event) -> None:
    """Ask for, and move, the committed offsets of every group until `stop`."""
    groups = [READERS_GROUP, *(f"drill-committer-{n}" for n in range(COMMITTING_GROUPS))]
    async with trio.open_nursery() as nursery:
        for name in groups:
            nursery.start_soon(_watch_group, client, name, queues, history, stop)


async def _watch_group(client: Client, group: str, queues: Sequence[Queue], history: History, stop: trio.Event) -> None:
    async with client.pull(group) as consumer:
        while not stop.is_set():
            for queue in queues:
                with trio.move_on_after(_ANSWER_S):
                    await _ask(consumer, group, queue, history, moves=group != READERS_GROUP)
            await trio.sleep(_ASK_EVERY_S)


async def _ask(consumer: PullConsumer, group: str, queue: Queue, history: History, *, moves: bool) -> None:
    """One look at one offset, before that a commit if this group commits. Errors are counted, not judged."""
    try:
        if moves:
            _, end = await consumer.bounds(queue)
            await consumer.commit({queue: end})
        told = await consumer.committed(queue)
    except TrimqError:
        history.client_errors += 1
        return
    if told is not None:
        history.told_offsets[group, QueueId(queue.topic, queue.group, queue.id)].append(told)
