"""Half messages that wait for their end, and those that ended lately: a function of ops 16 to 18.

`open` holds what is undecided, oldest first. `ended` remembers the newest decisions, so that an END_TRANSACTION that is
repeated after a lost answer or a failover gets the first one's answer, and a contradicting one is told so. Memory:
about 200 bytes for each open half message (`OPEN_MAX` at most: senders are refused beyond), and `ENDED_MAX` decisions.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Final, NamedTuple

from broker.metadata.transaction_ops import End, Half, HalfChecked, HalfEnd

__all__ = ["ENDED_MAX", "OPEN_MAX", "Ended", "OpenHalf", "Transactions"]

OPEN_MAX: Final = 1_000_000
ENDED_MAX: Final = 65_536


class OpenHalf(NamedTuple):
    """An undecided half message."""

    position: int
    begun_ms: int
    """Log time of its entry."""
    immunity_ms: int
    checks: int = 0
    checked_ms: int = 0
    """Log time of the newest check."""


class Ended(NamedTuple):
    """A decided one, and where the message lies that came of it (offset -1: none)."""

    end: End
    queue: int
    queue_offset: int
    position: int


class Transactions:
    """Half queue offset → what is known. The leader's view passes overlays in; only the applied table forgets."""

    __slots__ = ("_forgets", "ended", "open")

    def __init__(
        self, open: MutableMapping[int, OpenHalf] | None = None, ended: MutableMapping[int, Ended] | None = None
    ) -> None:
        self._forgets = ended is None
        self.open: MutableMapping[int, OpenHalf] = {} if open is None else open
        self.ended: MutableMapping[int, Ended] = {} if ended is None else ended

    def apply(self, op: Half | HalfEnd | HalfChecked, log_time: int) -> None:
        """Change the table as `op` says."""
        match op:
            case Half():
                self.open[op.offset] = OpenHalf(op.position, log_time, op.immunity_ms)
            case HalfEnd():
                if op.offset in self.open:
                    del self.open[op.offset]
                self.ended[op.offset] = Ended(op.end, op.queue, op.queue_offset, op.position)
                if self._forgets and len(self.ended) > ENDED_MAX:
                    del self.ended[next(iter(self.ended))]
            case HalfChecked(offsets=offsets):
                for offset in offsets:
                    half = self.open.get(offset)
                    if half is not None:
                        self.open[offset] = half._replace(checks=half.checks + 1, checked_ms=log_time)

    def oldest_position(self) -> int | None:
        """Where the oldest undecided half message lies: the log must be kept from there on."""
        half = next(iter(self.open.values()), None)
        return None if half is None else half.position

    def flat(self) -> dict[str, Any]:
        return {"open": dict(self.open), "ended": dict(self.ended)}

    @staticmethod
    def encode(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {name: [[offset, *row] for offset, row in flat[name].items()] for name in ("open", "ended")}

    def restore(self, data: Mapping[str, Any]) -> None:
        self.open.clear()
        self.ended.clear()
        for offset, *row in data["open"]:
            self.open[offset] = OpenHalf(*row)
        for offset, end, *rest in data["ended"]:
            self.ended[offset] = Ended(End(end), *rest)
