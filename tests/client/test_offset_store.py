"""Committing consumer offsets: what is sent again, and what is not."""

from __future__ import annotations

from typing import cast

import anyio
import pytest

from trimq.client.broker_api import BrokerApi
from trimq.client.model import Queue
from trimq.client.offset_store import OffsetStore

QUEUE = Queue("T", "broker-a", 0)


class SlowApi:
    """Answers every update with "taken", a moment later."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.answer = anyio.Event()

    async def commit(self, group: str, queue: Queue, offset: int) -> None:
        self.asked.append(offset)
        await self.answer.wait()


async def _overtaken() -> None:
    """The commit of the old place was ignored by the brokers and answered; the new one has to be sent."""
    api, consumed = SlowApi(), {QUEUE: 10}
    store = OffsetStore(cast(BrokerApi, api), "g", lambda: consumed)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.flush)
        await anyio.wait_all_tasks_blocked()
        store.assume(QUEUE, 0)  # the brokers moved the group, and ignore what is on its way
        api.answer.set()
    await store.flush()  # everything was consumed once more
    assert api.asked == [10, 10]
    await store.flush()
    assert api.asked == [10, 10], "what is committed is not sent twice"
    store.forget(QUEUE)  # a pull was answered "moved": what is committed is not known
    await store.flush()
    assert api.asked == [10, 10, 10]


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_reset_that_overtakes_a_commit_does_not_leave_the_group_at_the_reset(backend: str) -> None:
    anyio.run(_overtaken, backend=backend)
