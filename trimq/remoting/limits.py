"""What one remoting listener allows, so that memory stays bounded whatever clients do.

Every limit ends one connection (with a logged reason) or slows it down; none of them stops the server.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    frame_max_bytes: int = 16 * MIB
    """What RocketMQ's peers accept. A longer frame closes the connection before its body is buffered."""

    connections_max: int = 10_000
    """Further ones are closed at once. Keep it below the descriptor limit: segments and peer links need some too."""

    read_bytes: int = 512 * 1024
    """At most this much is read, and handled in one pass."""

    frames_per_pass_max: int = 1024
    """More frames of one read are handled in several passes, with other tasks in between."""

    queued_high_bytes: int = 8 * MIB
    """With so many bytes queued for a client nothing more is read from it ..."""

    queued_low_bytes: int = 4 * MIB
    """... until no more than this is left."""

    queued_max_bytes: int = 64 * MIB
    """Answers to what was read before can still pile up; beyond this the connection is closed."""

    held_max_bytes: int = 512 * MIB
    """Half frames and queued answers of all connections together; above it the heaviest connection is closed."""

    half_frame_s: float = 30.0
    """A begun frame must be finished, or grow by `half_frame_progress_bytes`, within this time."""

    half_frame_progress_bytes: int = 64 * 1024

    idle_s: float = 120.0
    """A connection without a byte in either direction for so long is closed, as RocketMQ's servers do."""

    goodbye_s: float = 1.0
    """How long a closing connection may take to send what is already queued."""

    sweep_s: float = 5.0
    """How often the two time limits above are looked at: one task for all connections, instead of timers for each."""

    def __post_init__(self) -> None:
        if not 0 < self.queued_low_bytes <= self.queued_high_bytes <= self.queued_max_bytes:
            raise ValueError("queued bytes: 0 < low <= high <= max")
