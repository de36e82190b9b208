"""Requests of RocketMQ's tools that this broker will not serve, each with the reason and what to do instead.

They are answered REQUEST_CODE_NOT_SUPPORTED like any unknown code, but an operator who typed a command deserves better
than a number. `docs/mqadmin.md` lists the commands.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["REFUSALS"]

_ACL1 = "access control of 4.x (plain_acl.yml) is not supported"
_ACL2 = "accounts are not built yet: until then administration is served to this machine only (adminAllowFrom)"
_COLD = (
    "reads never take memory from writes here (no page cache is shared by maps), so there is no cold data to hold back"
)
_CONTAINER = "a process hosts the groups whose files it was started with: start one more process instead"
_ROCKSDB = "nothing is stored in RocksDB: configuration and offsets are entries of the log"

REFUSALS: Mapping[int, str] = MappingProxyType(
    {
        50: _ACL1,
        51: _ACL1,
        52: _ACL1,
        53: _ACL1,
        54: _ACL1,
        353: "reading cannot be forbidden per topic yet: switch consumeEnable of the group off (updateSubGroup)",
        354: _ROCKSDB,
        355: _ROCKSDB,
        513: "static topics are not supported: a topic's queues belong to the replica group that has them",
        902: _CONTAINER,
        903: _CONTAINER,
        908: "the flush position is not set by request: replicas find their common end by comparing terms",
        1001: "there is no controller: each Raft group elects its leader",
        1002: "there is no controller: each Raft group elects its leader; to move it, stop the leader or hand it over",
        1005: "there is no controller: each Raft group elects its leader; ask brokers (haStatus, getBrokerEpoch)",
        1006: "there is no controller: ask the leader (haStatus)",
        1009: "there is no controller, and no configuration of one",
        1010: "there is no controller, and no configuration of one",
        1011: "there is no controller: members of a Raft group are changed by `trimq admin group`",
        2001: _COLD,
        2002: _COLD,
        2003: _COLD,
        2004: _COLD,
        200056: "what is popped is in the log, so nothing is to be exported or rolled back",
        **dict.fromkeys(range(3001, 3011), _ACL2),
    }
)
"""Request code → why not, and what instead."""
