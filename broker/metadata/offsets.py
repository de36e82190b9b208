"""Consumer offsets as the log has them: a function of ops 5 and 6 (and of what deletes topics and groups).

Which updates may enter the log at all is decided before, by the leader (`broker.replication.offset_intake`); what is in
the log is applied as it stands. Kept per consumer group, so that listing one group does not walk all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from broker.metadata.ops import tid_of
from broker.metadata.overlay import OverlayDict, Stamp

__all__ = ["FENCE_MS", "Offsets", "OffsetsOverlay", "OffsetsView"]

FENCE_MS = 60_000
"""For so long after a reset other commits of that queue are ignored, unless its consumer was seen at the new place."""


class OffsetsView(Protocol):
    """What applied offsets and the leader's overlay have in common."""

    def get(self, gid: int, key: int) -> int | None: ...
    def put(self, gid: int, key: int, offset: int) -> None: ...
    def reset(self, gid: int, key: int, offset: int, log_time: int) -> None: ...
    def fence(self, gid: int, key: int) -> tuple[int, int] | None: ...
    def expire(self, log_time: int) -> None: ...
    def drop_topic(self, tid: int) -> None: ...
    def drop_group(self, gid: int) -> None: ...


class Offsets:
    """The applied offsets: consumer group id → queue key → next offset to consume."""

    __slots__ = ("_fences", "_groups")

    def __init__(self) -> None:
        self._groups: dict[int, dict[int, int]] = {}
        self._fences: dict[tuple[int, int], tuple[int, int]] = {}

    def get(self, gid: int, key: int) -> int | None:
        queues = self._groups.get(gid)
        return None if queues is None else queues.get(key)

    def of_group(self, gid: int) -> Mapping[int, int]:
        """All offsets of a consumer group by queue key. Do not change it."""
        return self._groups.get(gid, {})

    def groups_of_topic(self, tid: int) -> list[int]:
        """Ids of the consumer groups that have an offset in a topic, ascending."""
        return sorted(gid for gid, queues in self._groups.items() if any(tid_of(key) == tid for key in queues))

    def put(self, gid: int, key: int, offset: int) -> None:
        queues = self._groups.get(gid)
        if queues is None:
            self._groups[gid] = {key: offset}
        else:
            queues[key] = offset

    def reset(self, gid: int, key: int, offset: int, log_time: int) -> None:
        """Set an offset and remember when (log time), so that late commits of the old place can be told."""
        self.put(gid, key, offset)
        self._fences[gid, key] = (offset, log_time)

    def expire(self, log_time: int) -> None:
        """Forget resets that are over."""
        for old in [each for each, (_, since) in self._fences.items() if log_time - since >= FENCE_MS]:
            del self._fences[old]

    def fence(self, gid: int, key: int) -> tuple[int, int] | None:
        """The last reset of this queue as (offset, log time), as long as it may still matter."""
        return self._fences.get((gid, key))

    @property
    def any_fence(self) -> bool:
        return bool(self._fences)

    def drop_topic(self, tid: int) -> None:
        for queues in self._groups.values():
            for key in [each for each in queues if tid_of(each) == tid]:
                del queues[key]
        for fence in [each for each in self._fences if tid_of(each[1]) == tid]:
            del self._fences[fence]

    def drop_group(self, gid: int) -> None:
        self._groups.pop(gid, None)
        for fence in [each for each in self._fences if each[0] == gid]:
            del self._fences[fence]

    def flat(self) -> dict[str, Any]:
        return {"groups": {gid: dict(queues) for gid, queues in self._groups.items()}, "fences": dict(self._fences)}

    @staticmethod
    def encode(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "groups": [[gid, list(queues), list(queues.values())] for gid, queues in flat["groups"].items()],
            "fences": [[gid, key, offset, since] for (gid, key), (offset, since) in flat["fences"].items()],
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        self._groups = {gid: dict(zip(keys, values, strict=True)) for gid, keys, values in data["groups"]}
        self._fences = {(gid, key): (offset, since) for gid, key, offset, since in data["fences"]}


class OffsetsOverlay:
    """Offsets in entries that are not applied yet, over the applied ones.

    Deleting needs no trace here: ids are never used again, so nobody asks for a deleted topic's offsets.
    """

    __slots__ = ("_base", "_fences", "_rows")

    def __init__(self, base: Offsets, stamp: Stamp) -> None:
        self._base = base
        no_rows: Mapping[tuple[int, int], int] = {}
        self._rows: OverlayDict[tuple[int, int], int] = OverlayDict(no_rows, stamp)
        no_fences: Mapping[tuple[int, int], tuple[int, int]] = {}
        self._fences: OverlayDict[tuple[int, int], tuple[int, int]] = OverlayDict(no_fences, stamp)

    def get(self, gid: int, key: int) -> int | None:
        own = self._rows.find((gid, key))
        return self._base.get(gid, key) if own is None else own

    def put(self, gid: int, key: int, offset: int) -> None:
        self._rows[gid, key] = offset

    def reset(self, gid: int, key: int, offset: int, log_time: int) -> None:
        self._rows[gid, key] = offset
        self._fences[gid, key] = (offset, log_time)

    def fence(self, gid: int, key: int) -> tuple[int, int] | None:
        return self._fences.find((gid, key)) or self._base.fence(gid, key)

    @property
    def any_fence(self) -> bool:
        """Whether any reset may still matter."""
        return self._fences.own_count > 0 or self._base.any_fence

    def expire(self, log_time: int) -> None:
        """Nothing to do: what is old is applied, and forgotten there."""

    def drop_topic(self, tid: int) -> None:
        for row in [each for each in self._rows if tid_of(each[1]) == tid]:
            del self._rows[row]

    def drop_group(self, gid: int) -> None:
        for row in [each for each in self._rows if each[0] == gid]:
            del self._rows[row]

    def forget(self, applied: int) -> None:
        self._rows.forget(applied)
        self._fences.forget(applied)
