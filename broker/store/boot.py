"""In which life of the machine the store was open last: says whether a stop can have cost what was only written.

A process that dies leaves its writes to the operating system, a machine that dies takes along what was not synced; the
log alone cannot tell the two apart.
"""

from __future__ import annotations

from typing import Final

from .fs import FileSystem, read_whole, write_whole

__all__ = ["note_boot", "same_boot"]

BOOT_PATH: Final = "boot"


async def same_boot(fs: FileSystem, boot_id: str) -> bool:
    """Has the machine not been started anew since the store was open? False when nobody knows. Raises OSError."""
    try:
        return bool(boot_id) and (await read_whole(fs, BOOT_PATH)).decode(errors="replace") == boot_id
    except FileNotFoundError:
        return False


async def note_boot(fs: FileSystem, boot_id: str) -> bool:
    """`same_boot`, and remember this life for the next start. Raises OSError."""
    same = await same_boot(fs, boot_id)
    if not same:
        await write_whole(fs, BOOT_PATH, [boot_id.encode()])
    return same
