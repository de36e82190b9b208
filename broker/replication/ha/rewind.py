"""Taking a store back behind an entry that was dispatched here but is in no log that counts any more.

A master acknowledges by itself (`async`, or too few slaves in sync) and shows what it acknowledged; if another replica
is made the master meanwhile, this one's tail was given up. The log is cut as any follower's log would be, only further
back than what was applied, so the tables and indexes have to be made anew: from an older snapshot that the cut leaves
valid, else from the log's beginning, else by an installation. The replica is opened anew afterwards.

Order, each step durable before the next; a crash in between leaves a store that the same master asks to be taken back
again: snapshots of the tail go, the marks are lowered, the log is cut.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from broker.replication.base import ReopenPlanned
from broker.store.entry import EntryId
from broker.store.snapshot import META_DIR, list_snapshots

if TYPE_CHECKING:
    from broker.store.commit_log import CommitLog
    from broker.store.fs import FileSystem
    from raft.core.types import EntryId as CoreEntryId
    from raft.group import RaftGroup

__all__ = ["Rewinding", "rewind_store"]

log = logging.getLogger(__name__)


class Rewinding:
    """Does it for a replica that runs: at most once, since the replica is opened anew afterwards."""

    def __init__(self, group: str, commit_log: CommitLog, fs: FileSystem) -> None:
        self.begun = False
        self._name = group
        self._log = commit_log
        self._fs = fs

    async def run(self, group: RaftGroup, to: CoreEntryId) -> None:
        """Raises ReopenPlanned when it is done, OSError, LogUnusable."""
        log.warning(
            "the master's log goes another way: what was acknowledged here alone is given up",
            extra={"group": self._name, "after": to.index, "last": self._log.last.index},
        )
        await group.hold()
        await rewind_store(self._log, self._fs, EntryId(to.index, to.term, to.crc, to.end))
        raise ReopenPlanned(f"taken back to entry {to.index}, where the master's log goes another way; opened anew")


async def rewind_store(commit_log: CommitLog, fs: FileSystem, to: EntryId) -> None:
    """Cut the log behind `to`, whatever was dispatched. Nothing else may write. Raises OSError, LogUnusable."""
    for index in await list_snapshots(fs):
        if index > to.index:
            await fs.unlink(f"{META_DIR}/{index:020d}")
    await fs.sync_dir(META_DIR)
    marks = commit_log.marks
    floor = to if marks.values.floor.index > to.index else marks.values.floor
    await marks.put(floor=floor, dispatched=min(marks.values.dispatched, to.index), clean=None)
    await commit_log.truncate_after(to.index)
