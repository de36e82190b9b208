"""A replica's store: synced now and then where nobody waits for it, and watched, because what failed ends the group.

A failed disk is final for the open log, dispatch that ended is final for the open store; only opening it anew, with
verification, helps. Damage in the log is neither: that is mended (`mending`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import trio

from broker.replication.base import GroupFailed
from broker.replication.limits import (
    FLUSH_INTERVAL_S,
    IMPAIRED_S,
)
from broker.replication.store_view import ReplicatedStore
from broker.store.errors import LogUnusable
from raft.core.types import NOBODY, StorageFault
from raft.group import RaftGroup

__all__ = ["StoreWatch"]

log = logging.getLogger(__name__)

IMPAIRED_LED_S = 1.0
"""Seconds in place of `IMPAIRED_S` while another one leads: clients read there, and until this one is back the group is
a replica short."""


class StoreWatch:
    """One per replica."""

    def __init__(self, group: str, store: ReplicatedStore, wants_sync: Callable[[], bool]) -> None:
        self._name = group
        self._store = store
        self._log = store.log
        self._wants_sync = wants_sync
        self._failed_since = math.inf

    async def flush(self) -> None:
        """Where entries count as soon as they are written: sync them now and then."""
        while True:
            await trio.sleep(FLUSH_INTERVAL_S)
            if self._log.formed and self._log.fault is None and not self._wants_sync():
                try:
                    await self._log.sync()
                except (OSError, LogUnusable) as error:
                    log.error(
                        "the log cannot be synced", extra={"group": self._name, "error": str(error)}
                    )  # the log is impaired by it: the writer's next write says so

    def look(self, group: RaftGroup, now: float) -> None:
        """In a sweep. Raises GroupFailed, or what ended dispatch: the store has to be opened anew."""
        self._look_at_disk(group, now)
        failure = self._store.failure  # of dispatch; mended before it is opened anew, if it met damage
        if failure is not None and self._log.fault is None:
            raise failure

    def _look_at_disk(self, group: RaftGroup, now: float) -> None:
        """A disk that failed is final for the open log; for a while this replica still serves what is committed.

        The writer may not be the one that met it: files are made ahead in the background, and a core that starts on a
        log which has failed already never writes.
        """
        fault, reason = group.fault
        log_fault = self._log.fault
        if fault is not StorageFault.FAILED:
            if log_fault is None or log_fault.damage is not None:
                return
            reason = log_fault.detail
        self._failed_since = min(self._failed_since, now)
        core = group.core
        led = core is not None and core.leader not in (NOBODY, core.id)
        if now - self._failed_since > (IMPAIRED_LED_S if led else IMPAIRED_S):
            raise GroupFailed(f"disk error: {reason}")
