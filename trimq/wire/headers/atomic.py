"""Code 9021 (ours): messages of several topics of one replica group, stored as one entry of its log."""

from __future__ import annotations

from typing import Self

from trimq.errors import ProtocolError
from trimq.wire.headers.base import I32, I64, Header

__all__ = ["AtomicHeader"]

_U64_MAX = 2**64 - 1


class AtomicHeader(Header, frozen=True, kw_only=True):
    """The messages are the body (`trimq.wire.body.atomic`). Sequences as in a send."""

    quiet = frozenset({"pe", "ps", "pf", "again"})

    producer_group: str = ""
    born_timestamp: I64
    bname: str = ""
    pid: str = ""
    pe: I32 = -1
    ps: I64 = -1
    """Of the first message; the others follow it."""
    pf: I64 = -1
    again: bool = False

    @property
    def sequence(self: Self) -> tuple[int, int, int, int] | None:
        """(producer id, epoch, first, floor), None without; `ProtocolError` when it is malformed."""
        if not self.pid:
            return None
        try:
            pid = int(self.pid, 16)
        except ValueError:
            pid = -1
        if not 0 <= pid <= _U64_MAX or self.pe < 0 or self.ps < 0 or not 0 <= self.pf <= self.ps:
            raise ProtocolError(f"AtomicHeader: bad sequence pid={self.pid!r:.40} ps={self.ps} pf={self.pf}")
        return pid, self.pe, self.ps, self.pf
