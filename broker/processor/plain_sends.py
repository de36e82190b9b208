"""Sends by the run: the quick way for what a client's read pass brings, in front of `SendProcessor`.

It takes what the compiled module finds plain and the rules of sending let pass without a word, and leaves everything
else where it stands. Without the compiled module it takes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from broker.config import BrokerConfig
from broker.metrics import Counters
from broker.processor.send_message import born_host
from broker.replication.base import NotLeader, ReplyTo
from broker.replication.intake import Intake
from broker.replication.plain_runs import make_run
from trimq.message import names

__all__ = ["PlainSends"]

Take = Callable[[ReplyTo, Sequence[bytes], int], int]

_MOST = 1_024
"""Sends looked at ahead. After one that was not plain only one, then more and more: often many in a row are not, such
as those that a client sends again after a failover."""


class PlainSends:
    """Takes runs of sends of one replica. Register `take`, if there is one, for a leader that admits."""

    def __init__(self, config: BrokerConfig, intake: Intake, counters: Counters) -> None:
        self._config = config
        self._intake = intake
        self._counters = counters
        self._most = _MOST

    @property
    def take(self) -> Take | None:
        """None: not on this machine, or not with this broker's address."""
        return self._take if self._intake.takes_runs else None

    def _take(self, reply: ReplyTo, frames: Sequence[bytes], first: int) -> int:
        """Admit sends from frame number `first` on; returns how many, perhaps none. Never refuses."""
        assert make_run is not None
        if not self._config.permission & 2:
            return 0
        run = make_run(frames, first, self._most, self._config.max_message_bytes)
        for number, topic in enumerate(run.topics):
            if not _open_to_clients(topic):
                run.end_before_topic(number)
        try:
            taken = self._intake.put_run(run, reply, born_host(reply.peer)) if run.count else 0
        except NotLeader:
            return 0
        self._most = min(2 * self._most, _MOST) if taken else 1
        self._counters.put_messages += taken
        self._counters.put_bytes += run.body_bytes(0, taken)
        return taken


@lru_cache(maxsize=16_384)
def _open_to_clients(topic: bytes) -> bool:
    """Whether nothing about this topic needs a closer look at who sends to it. Cached: producers use few."""
    name = topic.decode()
    return not names.is_reserved(name) and not names.is_derived(name)
