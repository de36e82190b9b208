"""Administration from threads: topics, lag, dead letters, what waits for its time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

from trimq.blocking.portal import Portal
from trimq.client.admin import Admin as AsyncAdmin
from trimq.client.admin import Cluster, Lag, Topic
from trimq.client.dead_letters import Buried, Edit, Redriven
from trimq.client.dead_letters import DeadLetters as AsyncDeadLetters
from trimq.client.route import Route
from trimq.client.timers import Timed

__all__ = ["Admin", "DeadLetters"]


class DeadLetters:
    """See `trimq.client.dead_letters.DeadLetters`."""

    def __init__(self, letters: AsyncDeadLetters, portal: Portal) -> None:
        self._letters = letters
        self._portal = portal

    def read(self, *, again: bool = True) -> Iterator[Buried]:
        """All dead letters, or those that were not redriven."""
        return self._portal.iterate(self._letters.read(again=again))

    def redrive(
        self,
        letters: Sequence[Buried] | None = None,
        *,
        to: Literal["group", "topic"] = "group",
        edit: Edit | None = None,
    ) -> Iterator[Redriven]:
        """Send dead letters again: these, or all that were not redriven before."""
        return self._portal.iterate(self._letters.redrive(letters, to=to, edit=edit))


class Admin:
    """See `trimq.Admin`."""

    def __init__(self, admin: AsyncAdmin, portal: Portal) -> None:
        self._admin = admin
        self._portal = portal

    def create_topic(self, name: str, *, queues: int = 8, groups: Sequence[str] | None = None) -> Topic:
        """Create a topic, or change its number of queues."""
        return self._portal.call(partial(self._admin.create_topic, name, queues=queues, groups=groups))

    def topics(self, *, system: bool = False) -> Sequence[Topic]:
        """All topics, sorted by name."""
        return self._portal.call(partial(self._admin.topics, system=system))

    def route(self, topic: str) -> Route:
        """Where a topic lives, asked now."""
        return self._portal.call(partial(self._admin.route, topic))

    def lag(self, group: str) -> Lag:
        """How far a consumer group is."""
        return self._portal.call(partial(self._admin.lag, group))

    @contextmanager
    def dead_letters(self, group: str) -> Iterator[DeadLetters]:
        """What this consumer group gave up on, for the length of the block."""
        with self._portal.open(self._admin.dead_letters(group)) as letters:
            yield DeadLetters(letters, self._portal)

    def timers(self, topic: str | None = None, *, limit: int = 1_000) -> Sequence[Timed]:
        """Messages that wait for their time."""
        return self._portal.call(partial(self._admin.timers, topic, limit=limit))

    def cancel_timer(self, timed: Timed) -> bool:
        """Cancel one of them; False when it does not wait any more."""
        return self._portal.call(partial(self._admin.cancel_timer, timed))

    def cluster(self) -> Cluster:
        """All replica groups and their addresses."""
        return self._portal.call(self._admin.cluster)
