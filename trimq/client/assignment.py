"""The queues that one member of a consumer group holds: taking them up, letting them go, committing how far they are.

Taking up a queue fixes where it begins (mechanism "first offset"): what the group has committed, else 0 for a queue
that appeared after we subscribed (nothing sent since may be missed, whatever `start` says), else `start`, which is
committed at once, so that a member who takes the queue over later does not decide anew. Letting go commits first,
then gives the lock back, so that the next owner begins where we stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path

import anyio
import anyio.abc

from trimq.client.broker_api import BrokerApi
from trimq.client.creation import find_topic
from trimq.client.instance import Instance
from trimq.client.local_offsets import LocalOffsets
from trimq.client.locks import LOCK_RENEW_S, QueueLocks
from trimq.client.model import Filter, Queue, Rebalance, Start, Tag
from trimq.client.offset_store import OffsetStore
from trimq.client.positions import resolve
from trimq.client.reader import Reader, Sink
from trimq.client.rebalance import REBALANCE_S, Shares
from trimq.errors import TrimqError
from trimq.message.allocation import Strategy
from trimq.message.names import retry_topic

__all__ = ["Assignment"]

log = logging.getLogger(__name__)

INCOMPLETE_S = 1.0
"""An assignment that could not be completed is tried again after this."""

JOIN_S = 3.0
"""How long subscribing waits for the first complete assignment before it lets the caller go on without."""

MISSING_S = 1.0
"""How long it waits for a topic that nobody has: one that was just created is known by then."""

JOIN_RETRY_S = 0.1

SETTLE_S = 10.0
"""Letting go of an ordered queue waits so long for the handler that has one of its messages."""

FLUSH_S = 3.0
"""How long the last commit may take."""


class Assignment:
    """See the module docstring. `join`, then `run`; at the end `leave`."""

    def __init__(
        self,
        instance: Instance,
        group: str,
        subscriptions: Mapping[str, Filter],
        readers: dict[Queue, Reader],
        sink: Sink,
        tasks: anyio.abc.TaskGroup,
        *,
        broadcast: bool,
        ordered: bool,
        start: Start | datetime,
        strategy: Strategy,
        offsets_file: Path | None,
        changed: Callable[[Rebalance], None],
    ) -> None:
        self.topics: dict[str, Filter] = dict(subscriptions)
        """What is read; in a cluster the group's retry topic too."""
        self.retry_topic = retry_topic(group)
        if not broadcast:
            self.topics[self.retry_topic] = Tag()
        self.readers = readers
        """Of the queues that are held."""
        self._instance = instance
        self._api = BrokerApi(instance)
        self._group = group
        self._sink = sink
        self._tasks = tasks
        self._broadcast = broadcast
        self._ordered = ordered
        self._start = start
        self._changed = changed
        self._known_at_start: frozenset[Queue] = frozenset()
        self._shares = Shares(instance, self._api, group, strategy, everything=broadcast)
        self._offsets = OffsetStore(self._api, group, self.consumed)
        self._local = LocalOffsets(offsets_file, group, self.consumed) if broadcast and offsets_file else None
        self._locks = QueueLocks(self._api, group)
        self._rebalance_now = anyio.Event()
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._ended.set()

    def consumed(self) -> dict[Queue, int]:
        """Per held queue: everything below is finished."""
        return {queue: reader.process.commit_offset for queue, reader in self.readers.items()}

    def rebalance_soon(self) -> None:
        """Something changed: members, routes or locks."""
        self._rebalance_now.set()

    async def look_around(self) -> None:
        """Before joining: note which queues are there already, and have a missing topic created where that is allowed.

        Raises `NoRoute` when no name server answers, `BadRequest` for a filter that the brokers cannot evaluate and for
        an offsets file that is none.
        """
        for topic in self.topics:
            self._instance.routes.want(topic)
        if self._local is not None:
            await self._local.load()
        known: set[Queue] = set()
        for topic, wanted in self.topics.items():
            create = topic != self.retry_topic
            route = await find_topic(self._instance, self._api, self._group, topic, wanted, create=create)
            if route is not None:
                known.update(route.read_queues)
        self._known_at_start = frozenset(known)

    async def join(self) -> None:
        """Get the first assignment: what is sent after this returns will be delivered.

        Ends after three seconds at the latest, also without a complete one (the topic may not exist yet).
        """
        patience = anyio.current_time() + MISSING_S
        with anyio.move_on_after(JOIN_S):
            await self._instance.beat()
            for topic in self._missing():
                await self._instance.routes.refresh(topic)  # the leaders have made the group's retry topic by now
            while not await self._rebalance():
                missing = self._missing()
                if set(missing) - {self.retry_topic} and anyio.current_time() > patience:
                    return
                await anyio.sleep(JOIN_RETRY_S)
                for topic in missing:
                    await self._instance.routes.refresh(topic)

    def _missing(self) -> list[str]:
        return [topic for topic in self.topics if self._instance.routes.known(topic) is None]

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep assigned, committed and locked until cancelled, or until `leave`."""
        self._ended = anyio.Event()
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._keep_assigned)
                    if self._local is not None:
                        tasks.start_soon(self._local.run)
                    elif not self._broadcast:
                        tasks.start_soon(self._offsets.run)
                    if self._ordered:
                        tasks.start_soon(self._keep_locks)
                    task_status.started()
        finally:
            self._ended.set()

    async def commit(self) -> None:
        """Commit now what is finished."""
        if self._local is not None:
            await self._local.flush()
        elif not self._broadcast:
            await self._offsets.flush()

    def reset(self, offsets: Mapping[Queue, int]) -> None:
        """The brokers set these offsets for the group: go on from there in the queues that are held."""
        moved = {queue: offset for queue, offset in offsets.items() if queue in self.readers}
        for queue, offset in moved.items():
            self._offsets.assume(queue, offset)
            self.readers[queue].seek(offset)
        if moved:
            log.info("offsets reset", extra={"group": self._group, "queues": len(moved)})

    async def leave(self) -> None:
        """Commit, give locks back, hold nothing; nothing is taken up any more."""
        self._scope.cancel()
        with anyio.move_on_after(2 * FLUSH_S + SETTLE_S, shield=True):
            await self._ended.wait()
            await self._let_go(tuple(self.readers))
            if self._ordered:
                await self._locks.give_back(self._locks.held)  # taken, and not read yet when we were told to leave

    def forget_topics(self) -> None:
        """Undo `look_around`."""
        for topic in self.topics:
            self._instance.routes.unwant(topic)

    async def _keep_assigned(self) -> None:
        complete = False
        while True:
            with anyio.move_on_after(REBALANCE_S if complete else INCOMPLETE_S):
                await self._rebalance_now.wait()
            self._rebalance_now = anyio.Event()
            try:
                complete = await self._rebalance()
            except TrimqError as error:
                complete = False
                log.warning("rebalance failed", extra={"group": self._group, "error": error})

    async def _rebalance(self) -> bool:
        """Take up and let go; returns whether the assignment is complete."""
        topics = {topic: topic != self.retry_topic for topic in self.topics}
        change = await self._shares.change(topics, frozenset(self.readers))
        if change.lost:
            await self._let_go(change.lost)
        free = change.gained
        if self._ordered and free:
            free = await self._locks.take(free)
        taken = [queue for queue in free if await self._take_up(queue)]
        if taken or change.lost:
            self._tell(frozenset(taken), frozenset(change.lost))
        return change.complete and len(taken) == len(change.gained)

    async def _take_up(self, queue: Queue) -> bool:
        try:
            offset = await self._first_offset(queue)
        except TrimqError as error:
            log.info("queue not taken up yet", extra={"queue": str(queue), "error": error})
            return False
        wanted = self.topics[queue.topic]
        moved = partial(self._offsets.forget, queue)
        reader = self.readers[queue] = Reader(
            self._instance, self._api, self._group, queue, wanted, offset, self._sink, moved
        )
        self._tasks.start_soon(reader.run)
        return True

    async def _first_offset(self, queue: Queue) -> int:
        if self._broadcast:
            kept = self._local.get(queue) if self._local is not None else None
            return kept if kept is not None else await resolve(self._api, queue, self._start)
        committed = await self._api.committed(self._group, queue)
        if committed is not None:
            if committed:  # a broker answers 0 for a young queue too, without anything being committed
                self._offsets.assume(queue, committed)
            return committed
        if queue.topic == self.retry_topic or queue not in self._known_at_start:
            return 0
        offset = await resolve(self._api, queue, self._start)
        await self._api.commit(self._group, queue, offset)
        self._offsets.assume(queue, offset)
        return offset

    async def _let_go(self, queues: tuple[Queue, ...]) -> None:
        """Done to its end once begun: a queue that is half let go would stay locked for a minute."""
        with anyio.CancelScope(shield=True):
            if self._ordered:
                await self._settle(queues)
            with anyio.move_on_after(FLUSH_S):
                await self._hand_over(queues)

    async def _settle(self, queues: tuple[Queue, ...]) -> None:
        """Strict order: who reads a queue next begins when our handler has ended, and behind what it has done."""
        readers = [self.readers[queue] for queue in queues if queue in self.readers]
        with anyio.move_on_after(SETTLE_S):
            async with anyio.create_task_group() as tasks:
                for reader in readers:
                    reader.scope.cancel()
                    tasks.start_soon(self._sink.settle, reader.holding)

    async def _hand_over(self, queues: tuple[Queue, ...]) -> None:
        consumed: dict[Queue, int] = {}
        busy: list[Queue] = []
        for queue in queues:
            reader = self.readers.pop(queue, None)
            if reader is None:
                continue  # lost to somebody and to the locks at the same time
            consumed[queue] = reader.process.commit_offset
            if not self._sink.is_settled(reader.holding):
                busy.append(queue)
            reader.drop()
        if self._local is not None:
            await self._local.flush(consumed)
        elif not self._broadcast:
            await self._offsets.flush(consumed)
        for queue in consumed:
            self._offsets.forget(queue)
        if self._ordered:
            for queue in busy:
                log.warning("handler does not end, its queue stays locked for a while", extra={"queue": str(queue)})
                self._locks.forget(queue)
            await self._locks.give_back(consumed)

    def _tell(self, gained: frozenset[Queue], lost: frozenset[Queue]) -> None:
        held = frozenset(self.readers)
        log.info(
            "queues assigned",
            extra={"group": self._group, "gained": len(gained), "lost": len(lost), "held": len(held)},
        )
        self._changed(Rebalance(gained, lost, held))

    async def _keep_locks(self) -> None:
        """Renew the locks every 20 s, more often while that fails; a queue whose lock was lost is let go at once."""
        pause = LOCK_RENEW_S / 2
        while True:
            await anyio.sleep(pause)
            queues = frozenset(self.readers)
            await self._locks.take(queues)
            pause = LOCK_RENEW_S if all(self._locks.is_fresh(queue) for queue in queues) else INCOMPLETE_S
            lost = frozenset(queue for queue in queues if queue in self.readers and not self._locks.trusted(queue))
            if lost:
                log.warning("locks lost", extra={"group": self._group, "queues": len(lost)})
                await self._let_go(tuple(sorted(lost)))
                self._tell(frozenset(), lost)
                self.rebalance_soon()
