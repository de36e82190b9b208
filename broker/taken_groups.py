"""Groups that a running process took by command: what they are, and that they come back at the next start.

A new group's replica has the settings of the process's first replica, but for its name, node, peers, port and folder.
These few stand in a file in the first replica's store, written whole or not at all *before* the replica is opened: a
crash in between leaves an empty replica that waits for its peers, which a repeated command finds again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from broker.config import BrokerConfig, ConfigError, Strategy
from broker.config_values import peers as peers_parser
from broker.store.fs import read_whole, write_whole

if TYPE_CHECKING:
    from broker.store.fs import FileSystem

__all__ = ["TakenGroup", "load_taken", "save_taken"]

PATH = "taken-groups"
MAX_BYTES = 1 << 20
_peers = peers_parser()


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenGroup:
    """One group, as it is remembered."""

    group: str
    node: str
    peers: str
    """As in dLegerPeers."""
    preferred: str
    port: int
    number: int
    """Counts the groups taken; names the folder, since no name from outside names a file."""

    def config(self, base: BrokerConfig) -> BrokerConfig:
        """The replica's configuration. Raises ConfigError."""
        config = replace(
            base,
            strategy=Strategy.RAFT,
            dleger=True,
            broker_name=self.group,
            self_id=self.node,
            peers=_peers.parse("dLegerPeers", self.peers),
            preferred_leader=self.preferred,
            listen_port=self.port,
            store_dir=f"{base.store_dir}.group-{self.number}",
        )
        config.check()
        own = config.own_peer
        theirs = base.own_peer
        if own is None or theirs is None or (own.host, own.port) != (theirs.host, theirs.port):
            raise ConfigError(f"dLegerPeers = {self.peers}: {self.node} must have this process's own peer address")
        return config


async def load_taken(fs: FileSystem) -> list[TakenGroup]:
    """What was taken so far. Raises OSError, ValueError (the file is not readable)."""
    try:
        data = await read_whole(fs, PATH, limit=MAX_BYTES)
    except FileNotFoundError:
        return []
    return [TakenGroup(**each) for each in json.loads(data)]


async def save_taken(fs: FileSystem, taken: Sequence[TakenGroup]) -> None:
    """Remember these. Raises OSError."""
    await write_whole(fs, PATH, [json.dumps([asdict(each) for each in taken], indent=1).encode()])
