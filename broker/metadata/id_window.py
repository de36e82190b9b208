"""The id window: by which a foreign client's repeated send is recognised. A function of the log.

For every record that a client sent without a producer sequence and that has a UNIQ_KEY, the window keeps a 64-bit hash
of topic, UNIQ_KEY and reconsume count → position of the record. The hash only finds a suspect: the leader compares the
record in full (`broker.replication.once`). Records the broker appended itself are not entered: a delayed or retried
message keeps its id on purpose.

Two generations, turned by log time or count, so an id is remembered for one to two periods, for less only when more
ids than `COUNT_MAX` came in it. Turning happens between entries, so it is the same on every replica.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.store.columns import Columns
    from trimq.message.record import Buffer

try:
    from trimq.message._fast import enter_ids
except ImportError:  # installed without a compiler
    _fast_enter = None
else:
    _fast_enter = enter_ids

__all__ = ["COUNT_MAX", "PERIOD_MS", "IdWindow", "enter_carefully", "id_key"]

PERIOD_MS = 30_000
COUNT_MAX = 131_072


def id_key(topic: bytes, uniq_key: bytes, reconsume_times: int) -> int:
    """The 64-bit key of a message. NUL separates: it stands in no topic name."""
    text = b"%b\0%b\0%d" % (topic, uniq_key, reconsume_times)
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


def enter_carefully(fresh: dict[int, int], found: Columns, covered: Buffer) -> None:
    """What `enter_ids` does where it is not compiled."""
    for topic, uniq, again, position, mark in zip(
        found.topics, found.uniques, found.reconsumes, found.positions, covered, strict=True
    ):
        if uniq and not mark:
            fresh[id_key(topic, uniq, again)] = position


class IdWindow:
    """Recent message ids → positions."""

    __slots__ = ("_count_max", "_fresh", "_old", "_period_ms", "_turned_ms")

    def __init__(self, *, period_ms: int = PERIOD_MS, count_max: int = COUNT_MAX) -> None:
        self._period_ms = period_ms
        """0 turns the window off: nothing is entered or found."""
        self._count_max = count_max
        self._fresh: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._turned_ms = 0

    @property
    def enabled(self) -> bool:
        return self._period_ms > 0

    def __len__(self) -> int:
        return len(self._fresh) + len(self._old)

    def get(self, key: int) -> int | None:
        """Position of the record with this key, None when it is not in the window."""
        found = self._fresh.get(key)
        return self._old.get(key) if found is None else found

    def turn(self, log_time_ms: int) -> None:
        """Called with the log time of each entry before its ids are entered."""
        if log_time_ms - self._turned_ms < self._period_ms and len(self._fresh) < self._count_max:
            return
        # After a long silence both generations are over.
        silent = log_time_ms - self._turned_ms >= 2 * self._period_ms
        self._old = {} if silent else self._fresh
        self._fresh = {}
        self._turned_ms = log_time_ms

    def enter(self, key: int, position: int) -> None:
        """The newest record of a key counts: it is the one that a repeat would repeat."""
        self._fresh[key] = position

    def enter_all(self, found: Columns, covered: Buffer) -> None:
        """Enter an entry's records that have an id and no mark in `covered`, which has one byte each."""
        if _fast_enter is None:
            enter_carefully(self._fresh, found, covered)
            return
        _fast_enter(self._fresh, found.topics, found.uniques, found.reconsumes, found.positions, covered, id_key)

    def flat(self) -> dict[str, Any]:
        return {"fresh": dict(self._fresh), "old": dict(self._old), "turned": self._turned_ms}

    @staticmethod
    def encode(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "turned": flat["turned"],
            **{name: [_column(flat[name].keys()), _column(flat[name].values())] for name in ("fresh", "old")},
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        self._turned_ms = data["turned"]
        self._fresh, self._old = ({**_pairs(*data[name])} for name in ("fresh", "old"))


def _column(values: Any) -> bytes:  # Any: a view of a dict's keys or values
    """Unsigned 64-bit big-endian, back to back."""
    column = array("Q", values)
    if _LITTLE:
        column.byteswap()
    return column.tobytes()


def _pairs(keys: bytes, values: bytes) -> dict[int, int]:
    columns = []
    for raw in (keys, values):
        column = array("Q")
        column.frombytes(raw)
        if _LITTLE:
            column.byteswap()
        columns.append(column)
    return dict(zip(*columns, strict=True))


_LITTLE = array("H", [1]).tobytes() == b"\x01\x00"
