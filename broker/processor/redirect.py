"""Whom a consumer should ask next: RocketMQ's redirect of consumers that are far behind.

With `slaveReadEnable` the leader sends whoever lacks more than `accessMessageInMemoryMaxRatio` percent of the memory to
another replica (the consumer group's `whichBrokerWhenConsumeSlowly`), so that old messages are read from that one's
disk; a replica that does not lead sends them back once they have caught up.

Without a leader there is nobody to send consumers back to: whoever serves them keeps them, with or without the key.
"""

from __future__ import annotations

from broker.config import BrokerConfig
from broker.metadata.group_settings import settings_of
from broker.metadata.state import GroupState
from broker.replication.base import Replicator

__all__ = ["Redirect"]

LEADER = 0


class Redirect:
    """One per replica."""

    def __init__(self, config: BrokerConfig, state: GroupState, replicator: Replicator, memory_bytes: int) -> None:
        self._enabled = config.slave_read
        self._share_bytes = memory_bytes * config.memory_ratio // 100
        self._state = state
        self._replicator = replicator

    def suggest(self, group: str, position: int) -> int:
        """The broker id to ask next, for a consumer whose next message stands at a log position (0: an old one)."""
        if not self._enabled:
            return self.at_end()
        replicator = self._replicator
        behind = replicator.visible() - position > self._share_bytes
        own, leader = replicator.node_id, replicator.leader.leader_id
        if not replicator.is_ready:
            stays = behind or not leader
            return replicator.replicas.broker_id(own, leader) if stays else LEADER
        if not behind:
            return LEADER
        info = self._state.groups.get(group)
        wanted = settings_of(info.settings).which_broker_when_consume_slowly if info is not None else 1
        others = [node for node, _ in replicator.replicas.voters if node != own]
        return wanted if any(replicator.replicas.broker_id(node, own) == wanted for node in others) else LEADER

    def at_end(self) -> int:
        """The same for a consumer that lacks nothing: the leader, and this replica while there is none."""
        replicator = self._replicator
        if replicator.is_ready or replicator.leader.leader_id:
            return LEADER
        return replicator.replicas.broker_id(replicator.node_id, "")
