"""What master-slave needs to know beside the members."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HaConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HaConfig:
    """One replica's settings. They count while its group is under `sync` or `async`, whatever it was formed with."""

    founds: bool = True
    """brokerRole is a master's: an empty store may found the group, once it is known that nobody else has its data."""
    rank: int = 0
    """brokerId, below 256: the low byte of the epochs that this replica may open."""
    wanted: int = 2
    """inSyncReplicas: replicas, the master included, that must hold an entry before it is acknowledged under `sync`."""
    least: int = 1
    """minInSyncReplicas: with fewer in sync nothing is taken."""
    lowers: bool = False
    """enableAutoInSyncReplicas: `wanted` sinks to what is in sync, not below `least`."""
    flush_sync: bool = False
    """flushDiskType=SYNC_FLUSH; the master's word counts for all."""
    slave_timeout_s: float = 3.0
    """slaveTimeout: after it an entry that too few replicas hold is answered FLUSH_SLAVE_TIMEOUT."""
    flush_timeout_s: float = 5.0
    """syncFlushTimeout: after it an entry that the own disk does not hold is answered FLUSH_DISK_TIMEOUT."""
    gap_bytes: int = 256 << 20
    """haMaxGapNotInSync: a slave that lacks more is not in sync."""

    @property
    def required(self) -> int:
        """How many replicas surely hold whatever is acknowledged under `sync`: what a promotion counts on."""
        return self.least if self.lowers else self.wanted
