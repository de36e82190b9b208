"""The consumer that reads queues by hand, for threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial

from trimq.blocking.portal import Portal
from trimq.client.model import EVERYTHING, Batch, Filter, Position, Queue, Start
from trimq.client.pull_consumer import PullConsumer as AsyncPullConsumer
from trimq.client.received import Received as AsyncReceived

__all__ = ["PullConsumer"]


class PullConsumer:
    """See `trimq.PullConsumer`."""

    def __init__(self, consumer: AsyncPullConsumer, portal: Portal) -> None:
        self._consumer = consumer
        self._portal = portal

    def queues(self, topic: str) -> Sequence[Queue]:
        """All queues of a topic, sorted."""
        return self._portal.call(partial(self._consumer.queues, topic))

    def bounds(self, queue: Queue) -> tuple[int, int]:
        """The oldest offset still kept, and one past the newest."""
        return self._portal.call(partial(self._consumer.bounds, queue))

    def offset_at(self, queue: Queue, when: datetime) -> int:
        """The first message stored at or after a time."""
        return self._portal.call(partial(self._consumer.offset_at, queue, when))

    def read(
        self, queue: Queue, offset: Position, *, max: int = 32, wait: float = 15.0, filter: Filter = EVERYTHING
    ) -> Batch:
        """Read up to `max` messages from an offset on."""
        return self._portal.call(partial(self._consumer.read, queue, offset, max=max, wait=wait, filter=filter))

    def iterate(
        self,
        topic: str,
        *,
        start: Position = Start.FIRST,
        until: datetime | None = None,
        follow: bool = False,
        filter: Filter = EVERYTHING,
        key: str | None = None,
    ) -> Iterator[AsyncReceived]:
        """Every message of a topic from `start` on."""
        yield from self._portal.iterate(
            self._consumer.iterate(topic, start=start, until=until, follow=follow, filter=filter, key=key)
        )

    def assign(self, queues: Mapping[Queue, Position] | Iterable[Queue], *, filter: Filter = EVERYTHING) -> None:
        """Read these queues from now on, and no others."""
        self._portal.call(partial(self._consumer.assign, queues, filter=filter))

    def seek(self, queue: Queue, position: Position) -> None:
        """Go on reading an assigned queue from another place."""
        self._portal.call(partial(self._consumer.seek, queue, position))

    def poll(self, *, max: int = 32, wait: float = 15.0) -> list[AsyncReceived]:
        """Up to `max` messages of the assigned queues."""
        return self._portal.call(partial(self._consumer.poll, max=max, wait=wait))

    def position(self, queue: Queue) -> int:
        """The offset behind the last message that `poll` gave of this queue."""
        return self._consumer.position(queue)

    def committed(self, queue: Queue) -> int | None:
        """The consumer group's committed offset, None when there is none."""
        return self._portal.call(partial(self._consumer.committed, queue))

    def commit(self, offsets: Mapping[Queue, int] | None = None) -> None:
        """Commit offsets, by default those that `poll` has reached."""
        self._portal.call(partial(self._consumer.commit, offsets))
