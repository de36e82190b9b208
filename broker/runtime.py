"""The broker process: opens its replicas in order and closes them in the opposite order.

Promise: inside `async with open_broker(...)` every listener is bound and every store is recovered; on the way out the
listeners go first, leadership is handed over, and the stores close last, flushed. Several configurations make one
process host several groups (RocketMQ's broker container); each group has its own failure domain.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.config import BrokerConfig

if TYPE_CHECKING:
    from broker.store.fs import FileSystem
    from trimq.env import Clock, Network

__all__ = ["Broker", "Env", "Replica", "open_broker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Env:
    """What is passed in: time, network, disk and chance. The simulator passes its own."""

    clock: Clock
    network: Network
    open_fs: Callable[[str], FileSystem]
    """A file system rooted at a `storePathRootDir` (created when missing)."""
    seed: str
    """Every component draws from its own stream, `seed/node/purpose`."""

    def rng(self, node: str, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}/{node}/{purpose}")


class Replica:
    """One replica of one group, running."""

    config: BrokerConfig
    port: int
    """The bound client port."""
    address: str
    """`ip:port` that clients are told."""

    @property
    def ready(self) -> bool:
        """Whether this replica leads its group and is ready."""
        raise NotImplementedError

    async def wait_ready(self) -> None:
        """Until the *group* has a ready leader that this replica knows (which may be itself)."""
        raise NotImplementedError


class Broker:
    """The running process: its replicas, in the order of their configurations."""

    replicas: tuple[Replica, ...]

    async def wait_ready(self) -> None:
        """Until every group has a ready leader known here."""
        raise NotImplementedError


@asynccontextmanager
async def open_broker(configs: Sequence[BrokerConfig], env: Env) -> AsyncIterator[Broker]:
    """Run the replicas of `configs` for as long as the block runs.

    Entering returns when all stores are recovered and all listeners are bound; a group may still be electing. Raises
    `StartError` with one clear sentence: port in use, store of another cluster or of a newer format, unbuilt strategy.
    Leaving stops gracefully: hand over leadership, answer what is in flight, flush, close.
    """
    raise NotImplementedError
    yield
