"""Handlers: the workers that call them, what they have in hand, and the wait for their end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import anyio
import anyio.abc

from trimq.client.received import Received
from trimq.errors import BadRequest

__all__ = ["InProcess", "check_concurrency", "run_handlers"]

CLOSE_GRACE_S = 5.0
"""How long leaving a consumer's block waits for messages that are being processed."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def check_concurrency(concurrency: int) -> None:
    """Raises `BadRequest`."""
    if concurrency < 1:
        raise BadRequest(f"concurrency={concurrency}: at least one handler has to run")


async def run_handlers(
    messages: AsyncIterator[Received],
    handler: Callable[[Received], Awaitable[object]],
    *,
    concurrency: int,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    """Call `handler` for every message in its block, up to `concurrency` at a time, until there are no more."""

    async def worker() -> None:
        async for message in messages:
            async with message:
                await handler(message)

    async with anyio.create_task_group() as tasks:
        for _ in range(concurrency):
            tasks.start_soon(worker)
        task_status.started()


class InProcess(Generic[K, V]):
    """What is in a message's block now."""

    def __init__(self) -> None:
        self.held: dict[K, V] = {}
        self._quiet = anyio.Event()

    def enter(self, key: K, value: V) -> None:
        self.held[key] = value

    def leave(self, key: K) -> None:
        self.held.pop(key, None)
        if not self.held:
            self._quiet.set()

    async def let_end(self) -> None:
        """Wait a little for them."""
        if self.held:
            self._quiet = anyio.Event()
            with anyio.move_on_after(CLOSE_GRACE_S):
                await self._quiet.wait()
