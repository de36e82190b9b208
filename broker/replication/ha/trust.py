"""Whether this replica's log holds all that it ever acknowledged, as far as anybody can know.

Under ASYNC_FLUSH a replica acknowledges what is written, and only the life of the machine tells whether it is still
there after a stop that was not clean. The doubt stays, over restarts, until a leader has committed an entry of its own
term here: that leader had all that was acknowledged (or somebody ordered it to go on without), and this log agrees
with its log up to there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from broker.store.boot import Belief, last_life, note_life
from broker.store.commit_log import Verdict

if TYPE_CHECKING:
    from broker.replication.ha.rules import GroupRules
    from broker.store.commit_log import CommitLog
    from broker.store.fs import FileSystem

__all__ = ["Trust"]


class Trust:
    """One per replica: keeps `GroupRules.belief`, on the disk too. All calls that write raise OSError."""

    def __init__(self, fs: FileSystem, boot_id: str, rules: GroupRules) -> None:
        self._fs = fs
        self._boot_id = boot_id
        self._rules = rules
        self._one_at_a_time = trio.Lock()

    async def judge(self, commit_log: CommitLog) -> None:
        """At the start: by the last stop, and by what was believed before it."""
        last = await last_life(self._fs, self._boot_id)
        lost_nothing = commit_log.verdict is Verdict.NORMAL or last.same_boot
        belief = last.belief if lost_nothing else Belief.DOUBTED
        self._rules.belief = Belief.WHOLE if commit_log.verdict is Verdict.UNFORMED else belief
        if not last.same_boot or last.belief is not self._rules.belief:
            await self._note(self._rules.belief)

    async def accept(self) -> None:
        """An operator goes on with this log, although it may lack something: it never outweighs another one."""
        await self._note(Belief.ACCEPTED)
        self._rules.belief = Belief.ACCEPTED

    @property
    def whole(self) -> bool:
        """Is there no doubt?"""
        return self._rules.belief is Belief.WHOLE

    def prove(self) -> Callable[[], Awaitable[None]]:
        """A leader has committed an entry of its own term here. Returns what makes it last."""
        self._rules.belief = Belief.WHOLE
        return partial(self._note, Belief.WHOLE)

    async def _note(self, belief: Belief) -> None:
        async with self._one_at_a_time:
            await note_life(self._fs, self._boot_id, belief)
