"""Moving a group to another strategy: the membership entry that does it, and waiting for its commit.

Nothing else moves: the log, its terms and its members stay. While the entry is not committed both rules hold (`rules`);
whoever leads when it commits leads on, and under master-slave is the master.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from broker.replication.base import ReplicatorError
from broker.replication.ha.config import HaConfig
from broker.replication.ha.rules import RAFT, SYNC, detail_of
from broker.replication.leading import Leading, Moved
from raft.core import RaftCore
from raft.core.errors import ChangeRefused, Refused
from raft.core.types import Membership
from raft.group import RaftGroup

__all__ = ["MOVES", "MoveRefused", "StrategyMoves", "moved"]

log = logging.getLogger(__name__)

MOVES: Final = ("raft", "sync", "async")


class MoveRefused(ReplicatorError):
    """The strategy was not changed, or nobody knows yet; the message says why."""


class StrategyMoves:
    """Makes moves at a leader. One per replica.

    `place` appends a membership entry behind all that is open and returns its index; `commit` is what is committed.
    """

    def __init__(
        self,
        config: HaConfig,
        leading: Leading,
        progress: Moved,
        place: Callable[[RaftCore, Membership], int],
        commit: Callable[[], int],
    ) -> None:
        self._config = config
        self._leading = leading
        self._progress = progress
        self._place = place
        self._commit = commit

    async def make(self, group: RaftGroup, strategy: str, required: int) -> int:
        """The index of the entry that did it, once committed. Raises MoveRefused."""
        term = self._leading.term
        try:
            placed = await group.ask(
                lambda core, _now_ms: self._place(core, moved(core, strategy, self._config, required))
            )
        except Refused as error:
            raise MoveRefused(str(error)) from None
        while self._commit() < placed:
            await self._progress.wait()
            if self._leading.term != term:
                raise MoveRefused("leadership changed before the move was committed: look which strategy is in force")
        log.info("strategy changed", extra={"group": group.settings.group, "strategy": strategy, "index": placed})
        return placed


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
