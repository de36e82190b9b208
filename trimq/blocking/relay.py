"""The relay of an outbox, as threads see it."""

from __future__ import annotations

from trimq import outbox
from trimq.blocking.portal import Portal

__all__ = ["Relay"]


class Relay:
    """See `trimq.outbox.Relay`."""

    def __init__(self, relay: outbox.Relay, portal: Portal) -> None:
        self._relay = relay
        self._portal = portal

    def notify(self) -> None:
        """A transaction with messages was committed: send them now."""
        self._portal.act(self._relay.notify)

    def drain(self, *, timeout: float | None = None) -> None:
        """Return when nothing waits."""
        self._portal.call(self._relay.drain, timeout)
