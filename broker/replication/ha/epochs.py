"""Epochs: terms that only one replica can ever open.

`(⌊e / 256⌋ + 1) · 256 + rank`: the low byte says who, so two candidates that hear nothing of each other never open the
same one. A master that restarts opens the next. An order of an operator jumps 4,096 steps ahead: it may be given
without the old master's knowledge, and however often that one restarts alone, its epochs stay below.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ORDERED_STEPS", "RANKS", "next_epoch"]

RANKS: Final = 256
ORDERED_STEPS: Final = 4096


def next_epoch(epoch: int, rank: int, *, steps: int = 1) -> int:
    """The epoch that the replica of this rank opens after `epoch`."""
    assert 0 <= rank < RANKS, f"rank {rank} has no epochs"
    return (epoch // RANKS + steps) * RANKS + rank
