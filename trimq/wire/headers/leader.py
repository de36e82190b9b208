"""Ours: who leads a replica group, as any answer of a replica may say it in three ext fields.

A client follows such a hint only when its term is not older than the newest it has seen for that group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from trimq.errors import ProtocolError
from trimq.wire.headers.base import I64, Header

__all__ = ["LeaderHint", "SequenceResponse"]


class LeaderHint(Header, frozen=True, kw_only=True):
    leader_addr: str
    """`ip:port` for clients."""
    leader_id: str = ""
    leader_term: I64

    @classmethod
    def find(cls, ext: Mapping[str, str]) -> Self | None:
        """The hint in an answer's ext fields, or None when there is none that can be used."""
        if "leaderAddr" not in ext:
            return None
        try:
            return cls.from_ext(ext)
        except ProtocolError:
            return None


class SequenceResponse(Header, frozen=True, kw_only=True):
    """With codes 9103 and 9104: the sequence that the log expects next from this producer."""

    next: I64
