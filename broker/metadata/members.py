"""Logged member sets of consumer groups: a function of op 9.

Who is connected is known by heartbeats (`broker.metadata.clients`). The log keeps the set as well, so that a new leader
can answer consumer lists at once and nobody takes queues that have an owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

__all__ = ["Members"]


class Members:
    """Consumer group id → client ids, sorted."""

    __slots__ = ("sets",)

    def __init__(self, sets: MutableMapping[int, tuple[str, ...]] | None = None) -> None:
        self.sets: MutableMapping[int, tuple[str, ...]] = {} if sets is None else sets

    def get(self, gid: int) -> tuple[str, ...]:
        return self.sets.get(gid, ())

    def all(self) -> Iterable[tuple[int, tuple[str, ...]]]:
        return self.sets.items()

    def put(self, gid: int, clients: Iterable[str]) -> None:
        """Replace the member set; an empty one is forgotten."""
        members = tuple(sorted(clients))
        if members:
            self.sets[gid] = members
        else:
            self.sets.pop(gid, None)

    def drop_group(self, gid: int) -> None:
        self.sets.pop(gid, None)

    def flat(self) -> dict[str, Any]:
        return {"sets": dict(self.sets)}

    @staticmethod
    def encode(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {"sets": {gid: list(members) for gid, members in flat["sets"].items()}}

    def restore(self, data: Mapping[str, Any]) -> None:
        self.sets.clear()
        for gid, members in data["sets"].items():
            self.put(gid, members)
