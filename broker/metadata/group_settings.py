"""A consumer group's settings (RocketMQ's SubscriptionGroupConfig), as the log keeps them and as processors read them.

The log keeps scalars by RocketMQ's own key (booleans as 0 or 1); what is missing has RocketMQ's default. A group that
does not exist yet but may be created behaves like one with all defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from broker.metadata.ops import Scalar

__all__ = ["DEFAULTS", "GroupSettings", "settings_of"]


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """Field names are RocketMQ's in snake case."""

    consume_enable: bool = True
    consume_from_min_enable: bool = True
    consume_broadcast_enable: bool = True
    consume_message_orderly: bool = False
    retry_queue_nums: int = 1
    retry_max_times: int = 16
    broker_id: int = 0
    which_broker_when_consume_slowly: int = 1
    notify_consumer_ids_changed_enable: bool = True
    group_sys_flag: int = 0
    consume_timeout_minute: int = 15


DEFAULTS = GroupSettings()


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


KEYS: Mapping[str, tuple[str, type[int]]] = {
    _camel(each.name): (each.name, bool if isinstance(each.default, bool) else int) for each in fields(GroupSettings)
}
"""Wire and log key → (field, bool or int)."""


def settings_of(stored: Mapping[str, Scalar]) -> GroupSettings:
    """Read what the log keeps; unknown keys and values of the wrong type are left at their defaults."""
    found: dict[str, int] = {}
    for key, value in stored.items():
        spec = KEYS.get(key)
        if spec is not None and isinstance(value, int):
            found[spec[0]] = spec[1](value)
    return GroupSettings(**found)  # type: ignore[arg-type]  # booleans are ints; `spec[1]` made the right one
