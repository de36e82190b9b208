"""Settings of the whole replica group, its feature level and in-sync set: a function of ops 12, 14 and 15.

Settings are typed and allow-listed where they are *written* (`check_setting`); the table keeps texts. Code 25 writes
them, and `broker.service.live_config` brings them into force.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from broker.metadata.ops import InSync

__all__ = ["ALLOWED", "Settings", "check_setting"]


def _flag(text: str) -> bool:
    return text in ("true", "false")


def _percent(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text) <= 100


def _count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18 and int(text) >= 1


ALLOWED: Mapping[str, Callable[[str], bool]] = {
    "autoCreateTopicEnable": _flag,
    "autoCreateSubscriptionGroup": _flag,
    "defaultTopicQueueNums": _count,
    "fileReservedTime": _count,
    "diskMaxUsedSpaceRatio": _percent,
}
"""Keys that may be changed for a running group, with the test of their values."""


def check_setting(key: str, value: str) -> None:
    """Raise ValueError, naming key, value and what is allowed, unless the setting may be written."""
    test = ALLOWED.get(key)
    if test is None:
        raise ValueError(f"{key!r} cannot be changed while the group runs; allowed are {', '.join(ALLOWED)}")
    if value and not test(value):
        raise ValueError(f"{value!r} is no value for {key}")


class Settings:
    """Texts by key, feature level, in-sync set."""

    __slots__ = ("values",)

    def __init__(self, values: MutableMapping[str, Any] | None = None) -> None:
        # Any: texts, and under keys that no setting can have the two singletons, so that one overlay serves all.
        self.values: MutableMapping[str, Any] = {} if values is None else values

    def get(self, key: str) -> str | None:
        value: str | None = self.values.get("set " + key)
        return value

    def all(self) -> dict[str, str]:
        return {key[4:]: value for key, value in self.values.items() if key.startswith("set ")}

    @property
    def feature_level(self) -> int:
        """Ops above this level may not be written yet."""
        level: int = self.values.get("feature", 1)
        return level

    @property
    def in_sync(self) -> InSync | None:
        found: InSync | None = self.values.get("in sync")
        return found

    def put(self, key: str, value: str) -> None:
        if value:
            self.values["set " + key] = value
        else:
            self.values.pop("set " + key, None)

    def raise_feature(self, level: int) -> None:
        self.values["feature"] = max(level, self.feature_level)

    def put_in_sync(self, in_sync: InSync) -> None:
        self.values["in sync"] = in_sync

    def flat(self) -> dict[str, Any]:
        return {"values": self.all(), "feature": self.feature_level, "in_sync": self.in_sync}

    @staticmethod
    def encode(flat: Mapping[str, Any]) -> dict[str, Any]:
        in_sync = flat["in_sync"]
        return {**flat, "in_sync": None if in_sync is None else in_sync.fields()}

    def restore(self, data: Mapping[str, Any]) -> None:
        self.values.clear()
        for key, value in data["values"].items():
            self.put(key, value)
        self.raise_feature(data["feature"])
        if data["in_sync"] is not None:
            self.put_in_sync(InSync.read(data["in_sync"]))
