"""The names of the faults that a drill can do: what its command line offers."""

from __future__ import annotations

from enum import Enum

__all__ = ["FAULTS", "Fault"]


class Fault(Enum):
    """What a round does to its victim, the leader. All but `restart` are mended after 1-3 s."""

    KILL = "kill"
    """kill -9, then started again."""
    PAUSE = "pause"
    """SIGSTOP, then SIGCONT: a leader that still believes."""
    RESTART = "restart"
    """kill -9 of all nodes at once, then all are started."""
    PARTITION = "partition"
    """Links between the nodes are cut, in a pattern that changes from round to round (`PATTERNS`)."""
    KERNEL_PARTITION = "kernel-partition"
    """The same patterns, cut by the kernel: each node has a network namespace of its own."""
    DISK_FULL = "disk-full"
    """Nothing new fits on the disk."""
    DISK_ERROR = "disk-error"
    """fdatasync fails with EIO."""
    DISK_SLOW = "disk-slow"
    """Every fdatasync takes 200 ms longer."""
    DISK_HANG = "disk-hang"
    """No write comes back."""
    STALL = "stall"
    """The event loop stands still for 1.5 s."""
    CLOCK = "clock"
    """The wall clock jumps by an hour, forwards and backwards in turn, and back again."""

    @property
    def is_trouble(self) -> bool:
        """Whether it needs a troubled cluster."""
        return self not in (Fault.KILL, Fault.PAUSE, Fault.RESTART, Fault.KERNEL_PARTITION)


FAULTS = tuple(fault.value for fault in Fault)
