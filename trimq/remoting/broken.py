"""How a stream says that the link is lost: the real ones by OSError, those of Trio and AnyIO by errors of their own."""

from __future__ import annotations

from typing import Final

import anyio
import trio

__all__ = ["BROKEN"]

BROKEN: Final = (
    OSError,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
"""For `except`. A stream that was closed meanwhile by another task is among them."""
