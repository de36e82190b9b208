"""The configuration in force: the file of this replica, with the settings of the whole group (op 12) over it.

A few keys may be changed while the group runs (`updateBrokerConfig`): they are entries of the log, so all replicas and
every later leader follow, and a restart changes nothing. A part that keeps a copy of such a key gets a new one here as
soon as the entry is applied.
"""

from __future__ import annotations

from dataclasses import replace

from broker.config import BrokerConfig, ConfigError, parse_settings
from broker.metadata.state import GroupState
from broker.replication.control import CreationRules
from broker.replication.intake import Intake
from broker.store.message_store import MessageStore
from broker.store.retention import RetentionConfig

__all__ = ["LiveConfig", "creation_rules", "retention_rules"]

_FIELDS = {
    "autoCreateTopicEnable": "auto_create_topic",
    "autoCreateSubscriptionGroup": "auto_create_group",
    "defaultTopicQueueNums": "default_topic_queues",
    "fileReservedTime": "reserved_hours",
    "diskMaxUsedSpaceRatio": "disk_used_ratio",
}
"""The keys of `metadata.settings.ALLOWED` → the field of the configuration."""


def creation_rules(config: BrokerConfig) -> CreationRules:
    """What may be created without being asked for."""
    return CreationRules(
        auto_create_topic=config.auto_create_topic,
        auto_create_group=config.auto_create_group,
        default_queues=config.default_topic_queues,
    )


def retention_rules(config: BrokerConfig) -> RetentionConfig:
    """When old messages go."""
    return RetentionConfig(
        reserved_ms=config.reserved_s * 1000 or config.reserved_hours * 3_600_000,
        delete_hours=frozenset(range(24) if config.reserved_s else config.delete_when),
        disk_share_max=config.disk_used_ratio / 100,
        disk_share_force=config.disk_clean_ratio / 100 if config.clean_forcibly else 1.0,
    )


class LiveConfig:
    """Keeps the parts of one replica at the settings of its group."""

    def __init__(self, config: BrokerConfig, state: GroupState, store: MessageStore, intake: Intake) -> None:
        self._file = config
        self._state = state
        self._store = store
        self._intake = intake
        self.now = config
        """The configuration in force."""
        state.on_settings.append(self.changed)
        self.changed()

    def changed(self) -> None:
        """The group's settings changed (or were recovered)."""
        held = self._state.settings.all()
        found = {field: check(key, held[key]) for key, field in _FIELDS.items() if key in held}
        self.now = replace(self._file, **found)  # type: ignore[arg-type]  # each by the parser of its key
        self._intake.config = replace(self._intake.config, creation=creation_rules(self.now))
        self._store.config = replace(self._store.config, retention=retention_rules(self.now))


def check(key: str, value: str) -> object:
    """The value of a key as the configuration has it. Raises `ConfigError` naming key, value and allowed range."""
    if key not in _FIELDS:
        raise ConfigError(
            f"{key} cannot be changed while the group runs: change its file and restart;"
            f" by request {', '.join(_FIELDS)}"
        )
    return getattr(parse_settings({key: value}).config, _FIELDS[key])
