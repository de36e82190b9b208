"""What is passed into the broker: time, network, disk and chance. The simulator passes its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.store.fs import FileSystem
    from trimq.env import Clock, Network

__all__ = ["Env"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Env:
    """The world as a broker process sees it."""

    clock: Clock
    network: Network
    open_fs: Callable[[str], AbstractAsyncContextManager[FileSystem]]
    """A file system rooted at a `storePathRootDir` and held alone: in the real world `store.fs.open_file_system`."""
    seed: str
    """Every component draws from a stream of its own. A new life of a process needs a new seed: store ids, message
    ids and election timeouts come from it."""
    connections_max: int = 10_000
    """Clients that one replica accepts; the process knows its descriptor limit."""
    boot_id: str = ""
    """Changes with every start of the machine: what was written but not synced before may be gone. "": not known."""
    memory_bytes: int = 4 << 30
    """Of the machine: consumers that lack more than a share of it are far behind."""
    pid: int = 0
    """Process id, for operators; 0 when it means nothing."""

    def rng(self, node: str, purpose: str) -> random.Random:
        """The random stream of one purpose at one node: independent of all others, repeatable."""
        return random.Random(f"{self.seed}/{node}/{purpose}")
