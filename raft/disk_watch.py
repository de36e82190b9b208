"""Tells the core what the disk does not do: full, failed, slow (2 E), hung (3 E), stalled (5 s), and the end of it."""

from __future__ import annotations

from raft.core import RaftCore
from raft.core.types import StorageFault
from raft.writer import LogWriter

__all__ = ["STALLED_S", "DiskWatch"]

STALLED_S = 5.0


class DiskWatch:
    """One per life of a core; each change is told once, and nothing ends `FAILED`."""

    def __init__(self, election_ms: int) -> None:
        self._slow_s = 2 * election_ms / 1000
        self._hung_s = 3 * election_ms / 1000
        self._told: StorageFault | None = None

    def look(self, core: RaftCore, writer: LogWriter, now: float, now_ms: int) -> None:
        """Now and then: how long has the present write been under way?"""
        fault = writer.fault
        if fault is None:
            busy = writer.busy_for_s(now)
            if busy > STALLED_S:
                fault = StorageFault.STALLED
            elif busy > self._hung_s:
                fault = StorageFault.HUNG
            elif busy > self._slow_s:
                fault = StorageFault.SLOW
        self.tell(core, fault, now_ms)

    def tell(self, core: RaftCore, fault: StorageFault | None, now_ms: int) -> None:
        """What is the case now; None: all is well."""
        if fault is self._told or self._told is StorageFault.FAILED:
            return
        self._told = fault
        if fault is None:
            core.storage_recovered(now_ms)
        else:
            core.storage_failed(fault, now_ms)
