"""What a run cost the processes: CPU time and bytes handed to the disk, read from the system before and after."""

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
    _before: dict[str, tuple[float, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = self._read()

    def _read(self) -> dict[str, tuple[float, int]]:
        found = {}
        for role, pid in self.processes.items():
            try:
                process = psutil.Process(pid)
                times = process.cpu_times()
                written = process.io_counters().write_bytes if hasattr(process, "io_counters") else 0
            except psutil.NoSuchProcess:
                continue
            found[role] = (times.user + times.system, written)
        return found

    def spent(self) -> tuple[dict[str, float], int]:
        """Seconds of CPU by role, and bytes written by all of them. Processes that came or went are left out."""
        after = self._read()
        both = [role for role in after if role in self._before]
        cpu = {role: after[role][0] - self._before[role][0] for role in both}
        return cpu, sum(after[role][1] - self._before[role][1] for role in both)


def resident_mb(pid: int) -> float:
    """Resident memory, in units of 10^6 bytes."""
    resident: int = psutil.Process(pid).memory_info().rss
    return resident / 1e6
