"""The membership entry that moves a group to another strategy.

Nothing else moves: the log, its terms and its members stay. While the entry is not committed both rules hold (`rules`);
whoever leads when it commits leads on, and under master-slave is the master.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from broker.replication.base import ReplicatorError
from broker.replication.ha.config import HaConfig
from broker.replication.ha.rules import RAFT, SYNC, detail_of
from raft.core import RaftCore
from raft.core.errors import ChangeRefused
from raft.core.types import Membership

__all__ = ["MOVES", "MoveRefused", "moved"]

MOVES: Final = ("raft", "sync", "async")


class MoveRefused(ReplicatorError):
    """The strategy was not changed, or nobody knows yet; the message says why."""


def moved(core: RaftCore, strategy: str, config: HaConfig, required: int = 0) -> Membership:
    """What a leader appends; `required` 0 is the configuration's. Raises ChangeRefused where it would not work."""
    now = core.membership
    assert now is not None, "a leader has a membership"
    detail = detail_of(now)
    if strategy not in MOVES:
        raise ChangeRefused(f"strategy {strategy!r}: allowed is {', '.join(MOVES)}")
    if strategy == detail.strategy and required in (0, detail.required):
        raise ChangeRefused(f"the group is under {strategy} already")
    if strategy == RAFT:
        if now.learners:
            raise ChangeRefused(f"{', '.join(now.learner_ids)} has not caught up yet: wait until it has")
        return replace(now, detail=replace(detail, strategy=RAFT, master="", required=0, flush_sync=True))
    if not 0 <= required <= len(now.voters):
        raise ChangeRefused(f"required = {required}: allowed is at most the {len(now.voters)} replicas of the group")
    required = (required or config.required) if strategy == SYNC else 1
    return replace(
        now,
        detail=replace(detail, strategy=strategy, master=core.id, required=required, flush_sync=config.flush_sync),
    )
