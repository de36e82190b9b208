"""Offset commits: code 15 and the commit that rides on a pull. Synchronous; the intake writes them in batches.

Which commits count is the intake's rule (`broker.replication.offset_intake`). What only the processors know is who made
the newest pull of a queue for a consumer group: an offset may go back only at that connection's word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.metrics import Counters
from broker.processor.request import Typed, later, success
from broker.replication.base import Busy, NotLeader
from broker.replication.intake import Intake
from broker.replication.requests import Refused
from trimq.wire.headers.offset import UpdateOffsetHeader
from trimq.wire.headers.pull import PullFlag, PullHeader

if TYPE_CHECKING:
    from broker.replication.base import ReplyTo

__all__ = ["OffsetCommits"]

PULLERS_MAX = 262_144
"""(consumer group, topic, queue) triples whose newest puller is remembered; beyond it the oldest are forgotten."""


class OffsetCommits:
    """Takes offset commits of one replica."""

    def __init__(self, intake: Intake, counters: Counters) -> None:
        self._intake = intake
        self._counters = counters
        self._newest: dict[tuple[str, str, int], str] = {}

    def update(self, request: Typed[UpdateOffsetHeader], reply: ReplyTo) -> bytes | None:
        """Code 15. Answered when the offset is applied; a oneway commit gets no answer."""
        header = request.header
        if header.commit_offset < 0:
            return success(request)  # "I never read this queue": nothing to remember
        key = (header.consumer_group, header.topic, header.queue_id)
        self._counters.offsets_committed += 1
        self._intake.commit_offset(
            header.consumer_group,
            header.topic,
            header.queue_id,
            header.commit_offset,
            newest_puller=self._newest.get(key) == reply.peer,
            forced=header.set_back,
            answer=None if request.is_oneway else later(request, reply, success(request)),
        )
        return None

    def pulled(self, header: PullHeader, reply: ReplyTo) -> None:
        """A pull arrived: remember who pulls, and take the commit that rides on it."""
        key = (header.consumer_group, header.topic, header.queue_id)
        if self._newest.get(key) != reply.peer:
            if len(self._newest) >= PULLERS_MAX and key not in self._newest:
                del self._newest[next(iter(self._newest))]
            self._newest[key] = reply.peer
        if self._intake.fenced:
            self._intake.note_pull(header.consumer_group, header.topic, header.queue_id, header.queue_offset)
        if header.sys_flag & PullFlag.COMMIT_OFFSET and header.commit_offset >= 0:
            self._ride_along(header)

    def _ride_along(self, header: PullHeader) -> None:
        try:
            self._intake.commit_offset(
                header.consumer_group,
                header.topic,
                header.queue_id,
                header.commit_offset,
                newest_puller=True,
                forced=False,
                answer=None,
            )
        except (Refused, NotLeader, Busy):
            # Nobody was told anything about this commit: the client's next one says the same or more.
            return
        self._counters.offsets_committed += 1
