"""Whether a stop can have cost entries that were written but not synced.

Under ASYNC_FLUSH a replica acknowledges what is written. A process that dies leaves that to the operating system, a
machine that dies takes it along; the log alone cannot tell the two apart. So the store remembers in which life of the
machine it was open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.store.commit_log import Verdict
from broker.store.fs import read_whole, write_whole

if TYPE_CHECKING:
    from broker.store.commit_log import CommitLog
    from broker.store.fs import FileSystem

__all__ = ["nothing_lost"]

BOOT_PATH: Final = "boot"


async def nothing_lost(commit_log: CommitLog, fs: FileSystem, boot_id: str) -> bool:
    """True after a clean stop, for a new store, or when the machine has not been started anew since. Raises OSError."""
    try:
        before = (await read_whole(fs, BOOT_PATH)).decode(errors="replace")
    except FileNotFoundError:
        before = ""
    if before != boot_id or not before:
        await write_whole(fs, BOOT_PATH, [boot_id.encode()])
    return commit_log.verdict in (Verdict.NORMAL, Verdict.UNFORMED) or (bool(boot_id) and before == boot_id)
