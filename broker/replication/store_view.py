"""What a replicator needs of the store it works on (`broker.store.message_store.MessageStore` is one)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from broker.store.commit_log import CommitLog
    from broker.store.fs import FileSystem
    from trimq.env import Clock

__all__ = ["ReplicatedStore"]


class ReplicatedStore(Protocol):
    """A log, and a dispatcher that follows it as far as it is allowed to."""

    @property
    def log(self) -> CommitLog: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def dispatched(self) -> int:
        """Index of the newest entry whose effects can be read."""
        ...

    @property
    def dispatched_end(self) -> int:
        """Position at which that entry ends."""
        ...

    def allow(self, index: int) -> None:
        """Entries up to `index` are committed: dispatch them as far as they are durable here."""
        ...

    async def wait_dispatched(self, index: int) -> None:
        """Return when `dispatched` has reached `index`."""
        ...

    @property
    def failure(self) -> Exception | None:
        """What ended dispatch for good, None while it runs."""
        ...

    # What an installation reads (`broker.store.install.ExportSource`).

    pins: list[int]

    @property
    def fs(self) -> FileSystem: ...

    async def snapshot(self) -> None: ...
