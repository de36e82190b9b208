"""Reading old segments in the background, so that rot is found while a peer still has the good copy.

Start-up checks the bodies of what was written last; everything older is read here, slowly, once after each start and
then once a period. What does not hold becomes the log's `fault`, and is repaired from a peer like any damage.
"""

from __future__ import annotations

import logging
from typing import Final

import trio

from .commit_log import CommitLog
from .errors import EntryDamaged

__all__ = ["SCRUB_BYTES_PER_S", "SCRUB_PERIOD_S", "scrub", "scrub_once"]

log = logging.getLogger(__name__)

SCRUB_BYTES_PER_S: Final = 8 * 1024 * 1024
"""A terabyte in a day and a half; a hundredth of what a disk gives."""

SCRUB_PERIOD_S: Final = 7 * 86_400.0
SCRUB_FIRST_S: Final = 60.0
"""After the start, when there is more urgent work."""
READ_BYTES: Final = 256 * 1024


async def scrub(
    commit_log: CommitLog, *, bytes_per_s: int = SCRUB_BYTES_PER_S, period_s: float = SCRUB_PERIOD_S
) -> None:
    """Check all entries from time to time, until cancelled. Damage waits for its repair, then the pass goes on."""
    await trio.sleep(SCRUB_FIRST_S)
    while True:
        try:
            checked = await scrub_once(commit_log, bytes_per_s=bytes_per_s)
            log.info("log checked", extra={"bytes": checked})
        except OSError as error:
            log.warning("log not checked", extra={"detail": str(error)})
        await trio.sleep(period_s)


async def scrub_once(commit_log: CommitLog, *, bytes_per_s: int = SCRUB_BYTES_PER_S) -> int:
    """One pass over what is on the disk now; returns the bytes that were checked. Raises `OSError`."""
    index, last, checked = commit_log.first_index, commit_log.last.index, 0
    while index <= min(last, commit_log.last.index):
        if commit_log.fault is not None:
            await trio.sleep(1.0)
            continue
        index = max(index, commit_log.first_index)
        try:
            entries = await commit_log.check(index, READ_BYTES)
        except (EntryDamaged, LookupError):
            await trio.sleep(1.0)  # `fault` says it now, or retention was faster
            continue
        size = sum(len(entry.data) for entry in entries)
        checked += size
        index = entries[-1].index + 1
        await trio.sleep(size / bytes_per_s)
    return checked
