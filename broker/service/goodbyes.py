"""Consumers that said goodbye: the leader hears of it wherever they said it, and so does whoever leads next.

A client says goodbye to every broker it has a connection to, and closes. The leader drops it from its consumer group
and logs the rest. Around a change of leaders that is not enough: the old leader may have nobody left to log it with,
and the new one, which was started a moment ago, had no connection over which to hear it. It would wait for the member
for as long as for all that it inherits, and the member's queues would have no reader meanwhile.

So who does not lead passes a goodbye on, like any request for the leader; and every replica remembers what it heard
for as long as inherited members count.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.replication.forward import Forwarder
from trimq.wire.codes import RequestCode
from trimq.wire.command import FLAG_ONEWAY, Command, encode
from trimq.wire.headers.client import UnregisterClientHeader

__all__ = ["Goodbyes"]


class Goodbyes:
    """What one replica heard in the last `keep_s` seconds; `now` is monotonic."""

    def __init__(self, forwarder: Forwarder | None, now: Callable[[], float], keep_s: float) -> None:
        self._forwarder = forwarder
        self._now = now
        self._keep_s = keep_s
        self._heard: dict[tuple[str, str], float] = {}
        """(consumer group, client id) → when, oldest first."""

    def heard(self, group: str, client_id: str, *, pass_on: bool) -> None:
        """A consumer left its group. `pass_on`: somebody else leads, or will in a moment."""
        self._forget_old()
        self._heard.pop((group, client_id), None)
        self._heard[group, client_id] = self._now()
        if pass_on and self._forwarder is not None:
            header = UnregisterClientHeader(client_id=client_id, consumer_group=group)
            self._forwarder.tell(
                encode(Command(code=RequestCode.UNREGISTER_CLIENT, flag=FLAG_ONEWAY, ext=header.to_ext()))
            )

    def all(self) -> dict[str, set[str]]:
        """Consumer group → the client ids that left it. Who came back since is in the live table."""
        self._forget_old()
        left: dict[str, set[str]] = {}
        for group, client_id in self._heard:
            left.setdefault(group, set()).add(client_id)
        return left

    def _forget_old(self) -> None:
        since = self._now() - self._keep_s
        while self._heard:
            key, when = next(iter(self._heard.items()))
            if when >= since:
                return
            del self._heard[key]
