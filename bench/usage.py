"""What a run cost: CPU time by process, and bytes written to the disks, read from the system before and after.

The bytes are the disks' own counters, whoever wrote: a process's counter takes a whole page-cache folio for every small
write into it (2 MiB for 1 KiB, on a file that was filled ahead), which says nothing. Right only on a quiet machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

__all__ = ["Usage", "resident_mb"]


@dataclass(slots=True)
class Usage:
    """Started when made, read with `spent`."""

    processes: Mapping[str, int]
    """Role in the table → pid."""
    _before: dict[str, float] = field(default_factory=dict)
    _written: int = 0

    def __post_init__(self) -> None:
        self._written = _disks()
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        found = {}
        for role, pid in self.processes.items():
            try:
                process = psutil.Process(pid)
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            found[role] = times.user + times.system
        return found

    def spent(self) -> tuple[dict[str, float], int]:
        """Seconds of CPU by role, and bytes written to the disks. Processes that came or went are left out."""
        after = self._read()
        return {role: after[role] - self._before[role] for role in after if role in self._before}, (
            _disks() - self._written
        )


def _disks() -> int:
    counters = psutil.disk_io_counters()
    return 0 if counters is None else counters.write_bytes


def resident_mb(pid: int) -> float:
    """Resident memory, in units of 10^6 bytes."""
    resident: int = psutil.Process(pid).memory_info().rss
    return resident / 1e6
