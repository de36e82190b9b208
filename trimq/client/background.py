"""Tasks that run beside a block and end with it, without changing what the block raises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc

__all__ = ["open_background"]


@asynccontextmanager
async def open_background() -> AsyncIterator[anyio.abc.TaskGroup]:
    """A task group that is cancelled when the block is left.

    An exception of the block's own comes out as it is: an application catches `NoRoute`, not a group with one in it.
    Only a background task that fails raises a group.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except Exception as error:  # kept out of the task group, which would wrap it
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
