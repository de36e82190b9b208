"""Topics of one replica group: a function of ops 1 and 2.

Names are looked up as the bytes that records and requests carry, so the hot path decodes nothing. A topic id is never
used twice: a deleted topic's name gets a new id, and with it new queues that start at 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, TypeAlias

from broker.metadata.ops import TopicPut

__all__ = ["MULTI_TAG", "TopicInfo", "Topics"]

MULTI_TAG = 1
"""Filter type of a topic whose messages carry several tags."""

TopicInfo: TypeAlias = TopicPut
"""What is known of a topic is what op 1 says."""


class Topics:
    """Every topic, by name and by id."""

    __slots__ = ("by_id", "by_name", "highest")

    def __init__(
        self,
        by_name: MutableMapping[bytes, TopicInfo] | None = None,
        by_id: MutableMapping[int, TopicInfo] | None = None,
        highest: int = 0,
    ) -> None:
        self.by_name: MutableMapping[bytes, TopicInfo] = {} if by_name is None else by_name
        self.by_id: MutableMapping[int, TopicInfo] = {} if by_id is None else by_id
        self.highest = highest
        """The highest topic id ever given; the next one is one more."""

    def get(self, name: bytes) -> TopicInfo | None:
        return self.by_name.get(name)

    def names(self) -> Iterable[bytes]:
        """Names as the wire carries them, in the order of creation."""
        return self.by_name.keys()

    def all(self) -> Iterable[TopicInfo]:
        return self.by_id.values()

    def put(self, info: TopicInfo) -> None:
        known = self.by_id.get(info.tid)
        if known is not None and known.name != info.name:
            # A topic id means one name for ever: the records of the log rely on it.
            raise ValueError(f"topic id {info.tid} is {known.name!r}, cannot become {info.name!r}")
        self.by_name[info.name.encode()] = info
        self.by_id[info.tid] = info
        self.highest = max(self.highest, info.tid)

    def delete(self, tid: int) -> TopicInfo | None:
        """Forget a topic; None when there is none (deleting twice is harmless)."""
        info = self.by_id.get(tid)
        if info is None:
            return None
        del self.by_id[tid]
        del self.by_name[info.name.encode()]
        return info

    def flat(self) -> dict[str, Any]:
        """A copy that does not change any more, for the snapshot."""
        return {"highest": self.highest, "topics": list(self.by_id.values())}

    @staticmethod
    def encode(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {"highest": flat["highest"], "topics": [info.fields() for info in flat["topics"]]}

    def restore(self, data: Mapping[str, Any]) -> None:
        self.by_name.clear()
        self.by_id.clear()
        self.highest = 0
        for fields in data["topics"]:
            self.put(TopicPut.read(fields))
        self.highest = data["highest"]
