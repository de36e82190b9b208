"""Which slaves are in sync: connected, heard from, and not too far behind.

Pure: the master's driver asks once per sweep and says what it sees. A slave enters when it holds everything up to the
confirmed end, so that adding it takes nothing back from consumers; it leaves when its link has been down for a moment,
when it has been silent, or when it lacks more than `haMaxGapNotInSync`. Whether the master waits for a slave hangs on
nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["LINK_GRACE_S", "SILENT_S", "InSync", "SlaveView"]

LINK_GRACE_S: Final = 0.5
SILENT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class SlaveView:
    """One voter, as the master sees it now."""

    id: str
    connected: bool
    healthy: bool
    match: int
    """Last entry that it is known to hold."""
    lag_bytes: int
    silent_s: float


class InSync:
    """The set of one mastership."""

    def __init__(self, me: str, slaves: Iterable[SlaveView], now: float) -> None:
        """Whoever is connected when the mastership begins is waited for until it turns out that it lags."""
        self._me = me
        self._members: dict[str, float] = {slave.id: now for slave in slaves if slave.connected}
        """In sync, with the time when its link was last seen up."""

    @property
    def members(self) -> tuple[str, ...]:
        """Sorted, the master included."""
        return tuple(sorted((self._me, *self._members)))

    def update(self, slaves: Iterable[SlaveView], *, confirmed: int, gap_bytes: int, now: float) -> bool:
        """Look at all voters but the master; True when the set changed."""
        before = self.members
        seen = {slave.id: slave for slave in slaves}
        for node in [node for node in self._members if node not in seen]:
            del self._members[node]
        for node, slave in seen.items():
            if node in self._members:
                if slave.connected:
                    self._members[node] = now
                down = now - self._members[node] >= LINK_GRACE_S
                if down or not slave.healthy or slave.silent_s >= SILENT_S or slave.lag_bytes > gap_bytes:
                    del self._members[node]
            elif (
                slave.connected
                and slave.healthy
                and slave.silent_s < SILENT_S
                and slave.match >= max(1, confirmed)
                and slave.lag_bytes <= gap_bytes
            ):
                self._members[node] = now
        return self.members != before
