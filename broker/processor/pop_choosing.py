"""What a pop is given: which queues are looked at in which order, from where, and what they hold for it.

Chosen by the leader's view, so a choice holds until the next step that awaits; nothing here changes what the log knows.
What is remembered beside the log (whose turn it is, what a filter was seen not to match) may be forgotten at any time.

Facts: RocketMQ's PopMessageProcessor. Where it begins for a new group at "the end", it hands out the last old message;
here the group's start is logged, so it need not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.config import BrokerConfig
from broker.filter.selection import ALL, Selection
from broker.metadata.ops import key_of, tid_of
from broker.metadata.topics import TopicInfo
from broker.processor.pop_checks import topic_of
from broker.replication.base import Replicator
from broker.replication.intake import Intake
from broker.service.pop_revive import PopRevive
from broker.service.pop_waits import PopWait
from broker.store.message_store import Found, MessageStore, NeedDisk
from trimq.message.pop import ANY_QUEUE, NORMAL, RETRY, pop_retry_topic
from trimq.message.record import iter_records
from trimq.wire.headers.pop import INIT_MIN

if TYPE_CHECKING:
    from broker.metadata.pop import OrderedBatch

__all__ = ["Gathered", "Part", "PopChoosing", "wanted_of"]

OUT_MAX = 10_000
"""Messages of one queue that one consumer group may have out (RocketMQ's popInflightMessageThreshold)."""
HOT_BYTES = 256 << 20
TURNS_MAX = 65_536
"""(Consumer group, topic) pairs whose turn is remembered; the least recently used goes."""
RETRY_FIRST_EVERY = 5
"""Every so many pops of a pair look at the retry topic first; the others last."""
SKIPPED_MAX = 65_536
"""Queues, per consumer group and filter, of which it is remembered what the filter does not match."""
SKIPPED_LOGGED = 1_000
"""What a filter skips is worth an op when it is so much."""


@dataclass(slots=True)
class Part:
    """What one queue gives to an answer."""

    flag: int
    gid: int
    key: int
    start: int
    next: int
    records: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    batch: OrderedBatch | None = None
    """Ordered: what was out of the queue before."""

    @property
    def size(self) -> int:
        return sum(map(len, self.records))


@dataclass(slots=True)
class Gathered:
    """What there is for one pop."""

    parts: list[Part]
    rest: int
    """Messages that could be had and were not."""
    disk: Part | None
    """A queue whose messages have to be read from the disk, when nothing else was found."""
    more: bool = False
    """A filter dropped everything that one look may examine: look again soon."""

    @property
    def count(self) -> int:
        return sum(len(part.offsets) for part in self.parts)


class PopChoosing:
    """Chooses for all pops of one replica."""

    def __init__(
        self, config: BrokerConfig, store: MessageStore, intake: Intake, replicator: Replicator, revive: PopRevive
    ) -> None:
        self.reading: set[tuple[int, int]] = set()  # membership only
        """(gid, queue key) of queues that are read from disk right now: nobody else takes from them meanwhile."""
        self._config = config
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._revive = revive
        self._skipped: dict[tuple[int, int, str], tuple[int, int]] = {}
        """What a filter was seen not to match: from where, to where. Not logged: at worst it is looked at again."""
        self._turns: dict[tuple[str, str], int] = {}

    def queues(self, wait: PopWait) -> Iterator[tuple[int, TopicInfo, int]]:
        """(retry flag, topic, queue) in the order to look: beginning elsewhere each time, so that none starves."""
        topic = topic_of(self._intake.view, wait.topic)
        turn = self._turns[wait.pair] = self._turns.pop(wait.pair, -1) + 1
        if len(self._turns) > TURNS_MAX:
            del self._turns[next(iter(self._turns))]
        retry = None if wait.ordered else self._intake.view.topic(pop_retry_topic(wait.topic, wait.group).encode())
        again = [(RETRY, retry, queue) for queue in range(retry.read_queues)] if retry is not None else []
        if turn % RETRY_FIRST_EVERY == 0:
            yield from again
        if wait.queue != ANY_QUEUE:
            yield NORMAL, topic, wait.queue
        else:
            for number in range(topic.read_queues):
                yield NORMAL, topic, (turn + number) % topic.read_queues
        if turn % RETRY_FIRST_EVERY:
            yield from again

    def start(self, wait: PopWait, gid: int, key: int) -> int:
        """Where the next pop of this queue begins."""
        view = self._intake.view
        committed = view.offset(gid, key)
        queue = view.tables.pop.queue(gid, key) if not wait.ordered else None
        if queue is not None:
            return max(queue.next, committed or 0)
        if committed is not None:
            return committed
        queues = self._store.queues
        first = queues.first_offset(key)
        if wait.init == INIT_MIN or view.tables.topics.by_id.get(tid_of(key)) is None or self._young(key, first):
            return first
        return queues.next_offset(key)

    def _young(self, key: int, first: int) -> bool:
        """RocketMQ's rule: a queue that still begins at 0, not far behind the log's end, is read from its beginning."""
        if first > 0:
            return False
        if self._store.queues.next_offset(key) == 0:
            return True
        words = self._store.queues.hot(key, 0, 1)
        return words is not None and self._replicator.visible() - words[0] <= HOT_BYTES

    def gather(self, wait: PopWait) -> Gathered:
        """What there is for this pop now. Changes nothing."""
        gid = self._intake.ensure_group(wait.group).gid
        got = Gathered([], 0, None)
        room = self._config.hot_bytes
        for flag, topic, queue in self.queues(wait):
            part = self.part(wait, flag, gid, key_of(topic.tid, queue))
            if part is None:
                continue
            end = self._store.queues.next_offset(part.key)
            left = wait.count - got.count
            if left <= 0 or room <= 0 or (gid, part.key) in self.reading:
                got.rest += max(0, end - part.start)
                continue
            if part.start < end:
                found = self._read(wait, part, left, room)
                if found is None:
                    got.disk = got.disk or part
                    continue
                got.rest += end - part.next
                got.more = got.more or (part.next < end and not part.offsets)
                room -= part.size
            if part.offsets or self.worth_logging(wait, part):
                got.parts.append(part)
        if got.count:
            got.disk = None
        return got

    def part(self, wait: PopWait, flag: int, gid: int, key: int) -> Part | None:
        """A queue to look at; None when its messages may not be given out now."""
        pop = self._intake.view.tables.pop
        batch = pop.batch(gid, key) if wait.ordered else None
        blocked = batch is not None and self._revive.is_blocked(gid, key, batch.blocked_until)
        if batch is not None and blocked and (not wait.attempt or wait.attempt != batch.attempt):
            return None
        out = None if wait.ordered else pop.queue(gid, key)
        if out is not None and len(out.taken) >= OUT_MAX:
            return None
        start = max(self.start(wait, gid, key), self._store.queues.first_offset(key))
        return Part(flag, gid, key, start, start, batch=batch)

    def _read(self, wait: PopWait, part: Part, count: int, size: int) -> Found | None:
        """Fill a part from memory; None when the disk has to be asked."""
        wanted = wanted_of(wait, part)
        at = part.start
        skipped = self._skipped.get((part.gid, part.key, wanted.expression))
        if skipped is not None and skipped[0] == part.start:
            at = skipped[1]
        found = self._store.get(part.key, at, count, size, wanted.codes, wanted.test)
        if isinstance(found, NeedDisk):
            return None
        self.fill(part, found)
        return found

    def fill(self, part: Part, found: Found) -> None:
        """Give a part what was found for it."""
        part.next = found.next_offset
        for raw in found.parts:
            for head in iter_records(raw):
                part.records.append(raw[head.at : head.at + head.size])
                part.offsets.append(head.queue_offset)

    def worth_logging(self, wait: PopWait, part: Part) -> bool:
        """A queue that gave nothing: shall the log know where this group begins in it, or what it skipped?

        Once, at the first pop of a group, when it begins at the end. What a filter skips is logged now and then.
        """
        if self._intake.view.offset(part.gid, part.key) is None:
            return part.start > 0 or part.next > part.start
        if part.next == part.start:
            return False
        wanted = wanted_of(wait, part)
        self._skipped[part.gid, part.key, wanted.expression] = (part.start, part.next)
        if len(self._skipped) > SKIPPED_MAX:
            del self._skipped[next(iter(self._skipped))]
        return part.next - part.start >= SKIPPED_LOGGED

    def taken(self, wait: PopWait, part: Part) -> None:
        """The log knows where this queue goes on: what was skipped before it is no news."""
        self._skipped.pop((part.gid, part.key, wait.filter.expression), None)

    def forget(self) -> None:
        """This replica leads no more."""
        self._skipped.clear()


def wanted_of(wait: PopWait, part: Part) -> Selection:
    """What is looked for in a queue: a message that comes again was selected before."""
    return wait.filter if part.flag == NORMAL else ALL
