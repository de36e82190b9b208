"""What the life of the machine says about the store: whether a stop can have cost what was only written.

A process that dies leaves its writes to the operating system, a machine that dies takes along what was not synced; the
log alone cannot tell the two apart. So the store remembers in which life of the machine it was open last, and how far
its log was believed then: doubt that a power cut left does not go with the next restart of the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from .fs import FileSystem, read_whole, write_whole

__all__ = ["Belief", "LastLife", "last_life", "note_life"]

BOOT_PATH: Final = "boot"


class Belief(Enum):
    """Does the log hold everything that this replica ever acknowledged?"""

    WHOLE = ""
    DOUBTED = "doubted"
    """A stop may have cost it entries, and no leader has shown since what it must hold."""
    ACCEPTED = "accepted"
    """Perhaps not, and an operator goes on with what there is."""


@dataclass(frozen=True, slots=True)
class LastLife:
    """What was noted when the store was open last."""

    same_boot: bool
    """The machine has not been started anew since. False when nobody knows."""
    belief: Belief


async def last_life(fs: FileSystem, boot_id: str) -> LastLife:
    """Raises OSError."""
    try:
        noted = (await read_whole(fs, BOOT_PATH)).decode(errors="replace")
    except FileNotFoundError:
        noted = ""
    boot, _, word = noted.partition("\n")
    belief = next((each for each in Belief if each.value == word), Belief.DOUBTED)
    return LastLife(same_boot=bool(boot_id) and boot == boot_id, belief=belief)


async def note_life(fs: FileSystem, boot_id: str, belief: Belief) -> None:
    """Remember this life for the next start; durable on return. Raises OSError."""
    await write_whole(fs, BOOT_PATH, [f"{boot_id}\n{belief.value}".encode()])
