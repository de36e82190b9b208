"""Opening a replica of a Raft group: its log as the core's storage, its vote, its listener, and what mends the log.

In this order: the log first, since it says whether the store may take part at all; then the vote, which an empty store
must not lack; then whether the last stop can have cost entries; the listener last, since whoever is heard is counted.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from broker.replication.ha.rules import RAFT, SYNC, GroupRules
from broker.replication.ha.trust import Trust
from broker.replication.membership import GroupDetail
from broker.replication.mending import Mending
from broker.replication.raft_config import GroupConfig
from broker.replication.raft_storage import open_raft_storage
from broker.replication.store_view import ReplicatedStore
from broker.store.fs import FileSystem
from raft.group import GroupSettings, RaftGroup, WrongStore
from raft.hard_state import HardStateFile
from raft.host import GroupHost
from raft.node import RaftNode

__all__ = ["open_group"]

LOCAL = "local"
HARD_STATE_PATH = "hard-state"


@asynccontextmanager
async def open_group(
    node: RaftNode,
    store: ReplicatedStore,
    fs: FileSystem,
    config: GroupConfig,
    rules: GroupRules,
    trust: Trust,
    host: GroupHost,
    rng: random.Random,
    *,
    founds: Callable[[], bool],
    commit: Callable[[], int],
    sync: Callable[[], bool],
) -> AsyncIterator[tuple[RaftGroup, Mending]]:
    """A group and its mending, neither of which runs yet. Raises OSError, WrongStore.

    `founds`: may an empty store form the group; `commit`: the newest committed index; `sync`: does a write count only
    when it is on the disk.
    """
    storage = await open_raft_storage(
        store.log,
        fs,
        _detail(config),
        wall_ms=store.clock.wall_ms,
        committed=lambda: store.dispatched,
        sync=sync,
    )
    if storage.strategy == LOCAL:
        raise WrongStore(
            f"this store was formed with replicationStrategy=local and cannot be moved to {config.strategy}"
            " in place: start it with that key again, and see docs/operations.md, section 8"
        )
    hard = await HardStateFile.open(fs, HARD_STATE_PATH, store_empty=not store.log.formed)
    await trust.judge(store.log)
    try:
        settings = GroupSettings(
            cluster=config.cluster,
            group=config.group,
            node_id=config.node_id,
            peers=config.members(),
            client_address=config.client_addr,
            listen_host=config.listen_host,
            rules=rules,
            founds=founds,
            joins=config.strategy != RAFT,
        )
        transport = await node.transport(settings.own_address, settings.listen_host)
        group = RaftGroup(node, transport, settings, storage, hard, host, rng)
        mending = Mending(group, storage, hard, store, commit, rng.getrandbits(48))
        store.log.on_fault = lambda _fault: group.wake()  # whoever read or wrote it, the loop has to know
        yield group, mending
    finally:
        store.log.on_fault = None
        with trio.CancelScope(shield=True):  # waits for the disk only
            await hard.aclose()


def _detail(config: GroupConfig) -> GroupDetail:
    """What a group that is formed here is."""
    plain = config.strategy == RAFT
    return GroupDetail(
        strategy=config.strategy,
        master="" if plain else config.node_id,
        required=0 if plain else config.ha.required if config.strategy == SYNC else 1,
        flush_sync=plain or config.ha.flush_sync,
        segment_bytes=config.segment_bytes,
    )
