"""A listener and the task that looks after its connections, for whatever is spoken on them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from trimq.env import Network, StreamHandler, TaskStatus

__all__ = ["serve_streams"]


async def serve_streams(
    network: Network,
    host: str,
    port: int,
    handle: StreamHandler,
    *,
    look_after: Callable[[], Awaitable[None]],
    task_status: TaskStatus = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen until cancelled, with `look_after` beside it; `started(bound port)`.

    Raises `OSError`, in no group, when the address cannot be bound.
    """
    bind_error: OSError | None = None
    async with trio.open_nursery() as nursery:
        try:
            bound = await nursery.start(partial(network.serve, handle, host, port))
        except OSError as error:
            bind_error = error
        else:
            nursery.start_soon(look_after)
            task_status.started(bound)
    if bind_error is not None:
        raise bind_error
