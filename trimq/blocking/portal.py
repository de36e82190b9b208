"""The way into the background thread, where the real client runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TypeVar, TypeVarTuple, cast

import anyio
from anyio.from_thread import BlockingPortal

__all__ = ["Portal"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Portal:
    """Runs there what is asked here, and waits for it."""

    def __init__(self, portal: BlockingPortal) -> None:
        self.portal = portal
        """For what does not wait for its end."""

    def call(self, work: Callable[[], Awaitable[T]], timeout: float | None = None) -> T:
        """Await `work`. Raises `TimeoutError` when it takes longer than `timeout` seconds."""
        if timeout is None:
            return self.portal.call(work)

        async def bounded() -> T:
            with anyio.fail_after(timeout):
                return await work()

        return self.portal.call(bounded)

    def act(self, act: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a plain function: what it touches belongs to the loop's thread."""
        return self.portal.call(act, *args)

    def open(self, manager: AbstractAsyncContextManager[T]) -> AbstractContextManager[T]:
        """An `async with` block, entered and left from here."""
        return self.portal.wrap_async_context_manager(manager)

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items of an asynchronous iterator, each asked for when it is wanted."""
        end = object()

        async def following() -> object:
            return await anext(items, end)

        while (item := self.portal.call(following)) is not end:
            yield cast(T, item)
