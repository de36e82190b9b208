"""What a replica allows itself, under every strategy."""

from __future__ import annotations

__all__ = [
    "BEHIND_ENTRIES",
    "FLUSH_INTERVAL_S",
    "IMPAIRED_S",
    "SWEEP_S",
    "TICKET_DEADLINE_S",
    "UNCOMMITTED_MAX_BYTES",
    "UNDISPATCHED_MAX_BYTES",
]

UNCOMMITTED_MAX_BYTES = 16 << 20
"""With more proposed and not committed nothing is admitted: a new leader has to scan it."""
UNDISPATCHED_MAX_BYTES = 8 << 20
"""The same for what is committed and not dispatched."""
TICKET_DEADLINE_S = 3.0
"""Seconds after which a producer hears UNKNOWN."""
BEHIND_ENTRIES = 64
"""With more committed and not dispatched a replica lets others campaign first: a new leader looks through them before
it takes anything, which lasts a second and more for a thousand."""
SWEEP_S = 0.05
"""Seconds between two looks at whatever has a deadline."""
FLUSH_INTERVAL_S = 0.5
"""Seconds between two syncs where nobody waits for them."""
IMPAIRED_S = 5.0
"""Seconds that a replica whose disk failed goes on serving what is committed; then its store is opened anew."""
