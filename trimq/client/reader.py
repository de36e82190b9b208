"""Reads one queue, again and again: long polls, flow control, offset corrections, other replicas.

One task per assigned queue. It reads ahead only as far as its consumer allows (`Sink.room`), so a slow handler holds
back the reads and memory stays bounded. Held pulls return at once when a message comes; there is no polling interval.

Reads go to the leader first, because it alone can hold a pull at the end of a queue and answer "nothing". When it
does not answer, any other replica serves what is committed; that is how reading goes on through a failover. Each answer
says whom to ask next (`suggestWhichBrokerId`): a slave for what is old, the slave itself while there is no master.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Protocol

import anyio

from trimq.client.broker_api import BrokerApi, Pulled
from trimq.client.incoming import decode_records
from trimq.client.instance import Instance
from trimq.client.model import Filter, Queue
from trimq.client.process_queue import ProcessQueue
from trimq.client.received import Received
from trimq.client.route import LEADER_ID
from trimq.client.timing import Backoff
from trimq.errors import Disconnected, TrimqError
from trimq.wire.codes import ResponseCode

__all__ = ["HOLD_S", "Holding", "Reader", "Sink"]

log = logging.getLogger(__name__)

HOLD_S = 15.0
"""How long a broker may hold a pull while nothing is new; RocketMQ's push consumer asks for the same."""

PULL_COUNT_MAX = 256
"""Messages asked for at once. Apache's brokers give at most 32, whatever is asked."""

QUIET_S = 0.05
"""A broker that says "nothing" at once instead of holding the pull is asked again after this; else we would spin."""


class Sink(Protocol):
    """The consumer that a reader works for."""

    def has_room(self, reader: Reader) -> bool:
        """Whether it is worth reading more now. When that changes to yes, `reader.nudge` is called."""
        ...

    def room(self, reader: Reader) -> int:
        """How many messages may be read now."""
        ...

    def arrived(self, holding: Holding, messages: list[Received]) -> None: ...

    def forgot(self, holding: Holding) -> None:
        """What this holding still has in hand is nobody's business any more."""
        ...

    def entered(self, message: Received) -> None: ...

    def left(self, message: Received) -> None: ...

    def finished(self, holding: Holding, message: Received) -> None: ...

    async def send_back(self, holding: Holding, message: Received, after: timedelta | None) -> None: ...

    async def put_aside(self, holding: Holding, message: Received, reason: str) -> None: ...

    async def reply(self, message: Received, body: bytes, tag: str | None, properties: Mapping[str, str]) -> None: ...

    async def suspend(self, holding: Holding, message: Received, after: timedelta) -> None: ...

    async def settle(self, holding: Holding) -> None:
        """Hand out nothing more of this; return when nothing of it is in a handler."""
        ...

    def is_settled(self, holding: Holding) -> bool: ...


class Holding:
    """The home of what was read from one queue in one go, from an assignment or a seek to the next one.

    A message knows its holding, so an acknowledgement that comes after the queue was lost, or set back, changes
    nothing.
    """

    __slots__ = ("behind", "leaving", "process", "reader", "sink", "waits")

    def __init__(self, sink: Sink, reader: Reader, offset: int) -> None:
        self.sink = sink
        self.reader = reader
        self.process = ProcessQueue(offset)
        self.behind: deque[Received] | None = None
        """For ordered consumption: what waits behind the message that is offered or in process."""
        self.waits = False
        """For ordered consumption: nothing of it was offered yet, since something from before a seek is in process."""
        self.leaving = False
        """Nothing more of it is handed out: its queue goes to somebody else."""

    def entered(self, message: Received) -> None:
        self.sink.entered(message)

    def left(self, message: Received) -> None:
        self.sink.left(message)

    def finished(self, message: Received) -> None:
        if not self.process.dropped:
            self.sink.finished(self, message)

    async def acknowledge(self, message: Received) -> bool:
        self.finished(message)
        return not self.process.dropped

    async def extend(self, message: Received, by: timedelta) -> None:
        """It stays ours as long as the queue does."""

    async def suspend(self, message: Received, after: timedelta) -> None:
        if not self.process.dropped:
            await self.sink.suspend(self, message, after)

    async def send_back(self, message: Received, after: timedelta | None) -> None:
        if not self.process.dropped:
            await self.sink.send_back(self, message, after)

    async def put_aside(self, message: Received, reason: str) -> None:
        if not self.process.dropped:
            await self.sink.put_aside(self, message, reason)

    async def reply(self, message: Received, body: bytes, tag: str | None, properties: Mapping[str, str]) -> None:
        await self.sink.reply(message, body, tag, properties)


class Reader:
    """One queue's reading end. `run` is its task."""

    def __init__(
        self,
        instance: Instance,
        api: BrokerApi,
        consumer_group: str,
        queue: Queue,
        wanted: Filter,
        offset: int,
        sink: Sink,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self.queue = queue
        self._moved = moved
        """Called when the broker sends us to another place: what it has committed for us is not known any more."""
        self.holding = Holding(sink, self, offset)
        """What was handed on and is not finished; replaced by a new one after a seek."""
        self.scope = anyio.CancelScope()
        self._instance = instance
        self._api = api
        self._consumer_group = consumer_group
        self._wanted = wanted
        self._sink = sink
        self.last_pull_ms = 0
        """When the newest pull was answered, wall clock."""
        self.last_pull_s = 0.0
        """How long it took."""
        self._replica = 0
        """Index into the group's addresses; 0 is the leader."""
        self._suggested = LEADER_ID
        """The broker id that the last answer named."""
        self._reading: anyio.CancelScope | None = None
        self._waiting: anyio.Event | None = None

    @property
    def process(self) -> ProcessQueue:
        return self.holding.process

    @property
    def position(self) -> int:
        """The next offset to read."""
        return self.process.next_offset

    def seek(self, offset: int) -> None:
        """Go on from another offset; messages read before are forgotten."""
        self._begin_at(offset)
        self.interrupt()
        self.nudge()

    def interrupt(self) -> None:
        """Give up the read that is under way: its queue is paused."""
        if self._reading is not None:
            self._reading.cancel()

    def _begin_at(self, offset: int) -> None:
        self._forget()
        self.holding = Holding(self._sink, self, offset)

    def drop(self) -> None:
        """The queue is not ours any more."""
        self._forget()
        self.scope.cancel()

    def _forget(self) -> None:
        self.holding.process.dropped = True
        self._sink.forgot(self.holding)

    @property
    def waiting(self) -> bool:
        """It reads nothing because there is no room."""
        return self._waiting is not None

    def nudge(self) -> None:
        """There may be room again."""
        if self._waiting is not None:
            self._waiting.set()

    async def run(self) -> None:
        """Read until dropped."""
        with self.scope:
            backoff = Backoff(self._instance.rng, first_s=0.05, most_s=1.0)
            while True:
                try:
                    await self._wait_for_room()
                    with anyio.CancelScope() as self._reading:
                        await self._read_once()
                    self._reading = None
                    backoff.reset()
                except Disconnected as error:
                    log.debug("pull failed, trying another replica", extra={"queue": str(self.queue), "error": error})
                    self._replica += 1
                    self._suggested = LEADER_ID
                    await anyio.sleep(backoff.next_s())
                    await self._instance.routes.find_leader(self.queue.group)
                except TrimqError as error:
                    log.info("pull refused", extra={"queue": str(self.queue), "error": error})
                    self._replica = 0
                    self._suggested = LEADER_ID
                    await anyio.sleep(backoff.next_s())

    async def _wait_for_room(self) -> None:
        while not self._sink.has_room(self):
            self._waiting = anyio.Event()
            await self._waiting.wait()
            self._waiting = None

    async def _read_once(self) -> None:
        holding = self.holding
        offset = self.position
        began = anyio.current_time()
        count = max(1, min(self._sink.room(self), PULL_COUNT_MAX))
        pulled = await self._api.pull(
            self._address(), self._consumer_group, self.queue, offset, self._wanted, count=count, hold_s=HOLD_S
        )
        self.last_pull_ms = self._instance.clock.wall_ms()
        self.last_pull_s = anyio.current_time() - began
        if holding is self.holding:
            self._take(pulled, offset)
        if pulled.code == ResponseCode.PULL_NOT_FOUND and anyio.current_time() - began < QUIET_S:
            await anyio.sleep(QUIET_S)

    def _take(self, pulled: Pulled, offset: int) -> None:
        self._suggested = pulled.suggested_id
        if self._suggested == LEADER_ID:
            self._replica = 0
        if pulled.code == ResponseCode.PULL_OFFSET_MOVED:
            log.warning(
                "offset is outside the queue, corrected by the broker",
                extra={"queue": str(self.queue), "offset": offset, "corrected": pulled.next_offset},
            )
            self._begin_at(pulled.next_offset)
            self._moved()
            return
        holding = self.holding
        messages: list[Received] = []
        if pulled.code == ResponseCode.SUCCESS:
            messages = decode_records(pulled.body, self.queue, self._wanted, holding)
        size = sum(len(message.body) for message in messages)
        holding.process.add([message.offset for message in messages], max(pulled.next_offset, offset), size)
        if messages:
            self._sink.arrived(holding, messages)

    def _address(self) -> str:
        view = self._instance.routes.group(self.queue.group)
        suggested = view.addresses.get(self._suggested) if self._suggested != LEADER_ID else None
        if suggested is not None:
            return suggested
        addresses = view.targets(replicas=True)
        if not addresses:
            raise Disconnected(f"no address of {self.queue.group} is known")
        return addresses[self._replica % len(addresses)]
