"""Whether a stop can have cost entries that were written but not synced.

Under ASYNC_FLUSH a replica acknowledges what is written, and only the life of the machine tells whether it is still
there after a stop that was not clean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.store.boot import note_boot
from broker.store.commit_log import Verdict

if TYPE_CHECKING:
    from broker.store.commit_log import CommitLog
    from broker.store.fs import FileSystem

__all__ = ["nothing_lost"]


async def nothing_lost(commit_log: CommitLog, fs: FileSystem, boot_id: str) -> bool:
    """True after a clean stop, for a new store, or when the machine has not been started anew since. Raises OSError."""
    same = await note_boot(fs, boot_id)
    return commit_log.verdict in (Verdict.NORMAL, Verdict.UNFORMED) or same
