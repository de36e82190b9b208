"""Consumer groups of one replica group: a function of ops 3 and 4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, TypeAlias

from broker.metadata.ops import GroupPut

__all__ = ["GroupInfo", "Groups"]

GroupInfo: TypeAlias = GroupPut
"""What op 3 says of a consumer group: gid, name, settings (keys of RocketMQ's SubscriptionGroupConfig)."""


class Groups:
    """Every consumer group, by name and by id."""

    __slots__ = ("by_id", "by_name", "highest", "retired")

    def __init__(
        self,
        by_name: MutableMapping[str, GroupInfo] | None = None,
        by_id: MutableMapping[int, GroupInfo] | None = None,
        retired: MutableMapping[str, int] | None = None,
        highest: int = 0,
    ) -> None:
        self.by_name: MutableMapping[str, GroupInfo] = {} if by_name is None else by_name
        self.by_id: MutableMapping[int, GroupInfo] = {} if by_id is None else by_id
        self.retired: MutableMapping[str, int] = {} if retired is None else retired
        """Names of deleted groups whose offsets were kept, with the id under which they are found again."""
        self.highest = highest

    def get(self, name: str) -> GroupInfo | None:
        return self.by_name.get(name)

    def all(self) -> Iterable[GroupInfo]:
        return self.by_id.values()

    def next_id(self, name: str) -> int:
        """The id that a new group of this name gets."""
        return self.retired.get(name, self.highest + 1)

    def put(self, info: GroupInfo) -> None:
        self.by_name[info.name] = info
        self.by_id[info.gid] = info
        self.retired.pop(info.name, None)
        self.highest = max(self.highest, info.gid)

    def delete(self, gid: int, *, drop_offsets: bool) -> GroupInfo | None:
        """Forget a group; None when there is none."""
        info = self.by_id.get(gid)
        if info is None:
            return None
        del self.by_id[gid]
        del self.by_name[info.name]
        if not drop_offsets:
            self.retired[info.name] = gid
        return info

    def flat(self) -> dict[str, Any]:
        return {"highest": self.highest, "retired": dict(self.retired), "groups": list(self.by_id.values())}

    @staticmethod
    def encode(flat: Mapping[str, Any]) -> dict[str, Any]:
        return {**flat, "groups": [info.fields() for info in flat["groups"]]}

    def restore(self, data: Mapping[str, Any]) -> None:
        self.by_name.clear()
        self.by_id.clear()
        self.retired.clear()
        self.highest = 0
        for fields in data["groups"]:
            self.put(GroupPut.read(fields))
        self.retired.update(data["retired"])
        self.highest = data["highest"]
