"""What the drivers of this package are given: streams, a network, files.

The shapes are declared here once more (structural typing) so that the package imports nothing of its host. Waiting is
Trio's: `trio.current_time()` and cancel scopes, which a test clock drives. Chance arrives as a `random.Random`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import trio

__all__ = ["BROKEN", "File", "FileSystem", "Network", "Prompt", "Stream", "StreamHandler"]

BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""Everything a link may raise when it is gone."""


class Stream(Protocol):
    """A byte stream in both directions."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """At least one byte; `b""` at the end."""
        ...

    async def send_all(self, data: bytes) -> None: ...

    async def aclose(self) -> None: ...


@runtime_checkable
class Prompt(Protocol):
    """A stream that can also send from where nothing may wait."""

    def send_now(self, data: bytes) -> int:
        """Send what goes out at once; returns how many bytes that was, perhaps none. Never fails.

        Not while a `send_all` is under way.
        """
        ...


StreamHandler = Callable[[Stream], Awaitable[None]]


class Network(Protocol):
    """Where streams come from."""

    async def connect(self, host: str, port: int) -> Stream:
        """Raises `OSError` (`ConnectionRefusedError` when the host answers that nobody listens)."""
        ...

    async def serve(self, handler: StreamHandler, host: str, port: int, *, task_status: Any) -> None:  # Any: TaskStatus
        """Accept until cancelled; `started(bound port)`. Raises `OSError` when the address cannot be bound."""
        ...


class File(Protocol):
    """One open file; offsets and sizes in bytes."""

    async def write(self, at: int, parts: Sequence[bytes], *, sync: bool) -> None:
        """Write all parts and, if asked, force them to the disk; else `OSError`."""
        ...

    async def pread(self, at: int, size: int) -> bytes:
        """Shorter than `size` only at the end of the file."""
        ...

    async def aclose(self) -> None: ...


class FileSystem(Protocol):
    """A folder; paths are relative to it."""

    async def open(self, path: str, *, create: bool = False) -> File: ...

    async def sync_dir(self, path: str) -> None: ...
