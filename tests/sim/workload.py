"""The clients of a simulation: the library's own producers and consumers, and the history of what they saw.

The load comes in bursts: what queues up together travels together, quiet stretches cost little, and batches of every
size occur. Beside the senders there are consumers of one group (some of them slow), *tailers* that read each queue
from its beginning through changing replicas, and *watchers* that commit offsets and ask again and again what the
cluster says about offsets and queue ends. A send that ended unknown is at times repeated with the same message.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AsyncExitStack

import trio

from broker.replica import Replica
from tests.sim.history import Outcome, QueueId, SimHistory, Value
from tests.sim.world import NAMESRV, SimClock, World
from trimq import Client, Message, Producer, PullConsumer, Queue, Received, Start
from trimq.client.client import open_client
from trimq.drill.history import make_body, read_body
from trimq.drill.load import warm_up
from trimq.errors import NotStored, SendUnknown, TrimqError
from trimq.message.ids import ID_SOURCE, IdSource
from trimq.sim.net import HostNetwork

__all__ = ["Workload"]

TOPIC = "sim"
QUEUES_PER_GROUP = 2
READERS = "sim-readers"
POPPING = "sim-poppers"
POPPERS = 2
POP_INVISIBLE_S = 5.0
READ_DEADLINE_S = 60.0
WATCH_EVERY_S = 2.0
TAIL_EVERY_S = 1.0
HEAD_BYTES = 20
"""Of a drill's body; the smallest that proves itself."""
FILLER = bytes(4096) + bytes(at % 251 + 1 for at in range(4096))
"""Zeros first: whole sectors of them, so that rot can look like a torn write."""
ONCE, FRESH = 1_000, 10_000
"""Numbers of the producers that are no part of the load."""
DELIVERY_BAR_S = 60.0
"""After healing everything acknowledged has been handed to a consumer within this."""


def queue_id(queue: Queue) -> QueueId:
    return QueueId(queue.topic, queue.group, queue.id)


def full_body(value: Value, size: int) -> bytes:
    """A drill's body, then filler."""
    return make_body(value, HEAD_BYTES) + FILLER[: size - HEAD_BYTES]


def value_of(body: bytes) -> Value | None:
    """The value that a body proves, or None."""
    rest = body[HEAD_BYTES:]
    return read_body(body[:HEAD_BYTES]) if rest == FILLER[: len(rest)] else None


class _Sender:
    """One producer: a number, a sequence, and the queues it writes to in turn."""

    def __init__(self, load: Workload, number: int, producer: Producer, queues: Sequence[Queue]) -> None:
        self.number, self.producer, self.queues = number, producer, queues
        self.next_sequence = 0
        self._load = load
        self._rng = random.Random(f"{load.world.plan.seed}/sender/{number}")

    async def send_one(self) -> bool:
        """Send the next value; True when it was acknowledged."""
        history = self._load.history
        value = Value(self.number, self.next_sequence)
        queue = self.queues[self.next_sequence % len(self.queues)]
        self.next_sequence += 1
        history.begin(value, queue_id(queue))
        message = Message(topic=queue.topic, body=full_body(value, self._load.world.plan.body_bytes))
        again = self._rng.random() < 0.5
        while True:
            receipt = None
            try:
                # The library ends at its caller's deadline; the run itself has one, so this one has to be said.
                with trio.move_on_after(self._load.world.plan.client_timeout_s):
                    receipt = await self.producer.send(message, queue=queue)
                if receipt is None:
                    raise SendUnknown("cancelled at the deadline", id=message.id)
            except NotStored:
                history.client_errors += 1
                # Surely not stored by this attempt; an earlier one that ended unknown may still be.
                if value not in history.repeated:
                    history.end(value, Outcome.FAILED)
                return False
            except SendUnknown:
                history.client_errors += 1
                if not again:
                    return False
                again = False
                history.repeated.add(value)
                self._load.world.oracle.reached["same message again"] += 1
                continue
            except TrimqError:
                history.client_errors += 1
                return False
            if receipt.duplicate:
                self._load.world.oracle.reached["duplicate found"] += 1
            history.end(value, Outcome.OK, receipt.offset)
            if receipt.offset_id:
                self._load.world.oracle.acknowledged(queue.group, int(receipt.offset_id[-16:], 16), str(value))
            return True

    async def run(self, stop: trio.Event) -> None:
        """Bursts until `stop`; returns when the last send has its outcome."""
        plan = self._load.world.plan
        async with trio.open_nursery() as sends:
            while not stop.is_set():
                await trio.sleep(self._rng.expovariate(1 / plan.pause_s))
                for _ in range(self._rng.choice(plan.bursts)):
                    sends.start_soon(self.send_one)


class Workload:
    """Producers, consumers, tailers, watchers; opened once the cluster answers."""

    def __init__(self, world: World, stack: AsyncExitStack) -> None:
        self.world = world
        self.history = SimHistory()
        self.queues: list[Queue] = []
        self.senders: list[_Sender] = []
        self._rng = random.Random(f"{world.plan.seed}/workload")
        self._stack = stack
        self._network: HostNetwork = world.clients()
        self._clients: list[Client] = []
        self._stop = trio.Event()

    async def open(self) -> None:
        """Connect, create the topic, open the producers."""
        plan = self.world.plan
        ID_SOURCE.set(IdSource(random.Random(f"{plan.seed}/ids"), SimClock()))
        for number in range(max(2, plan.consumers)):
            rng = random.Random(f"{plan.seed}/client/{number}")
            client = open_client(
                NAMESRV,
                self._network,
                SimClock(),
                rng,
                client_id=f"sim-{number}",
                default_timeout=10.0 if number else plan.client_timeout_s,
            )
            self._clients.append(await self._stack.enter_async_context(client))
        self.queues = await self._created()
        # One that falls silent at once: tables must remember it through every restart (S7).
        async with self._clients[1].producer("sim-once") as producer:
            await _Sender(self, ONCE, producer, self.queues).send_one()
        for number in range(plan.producers):
            producer = await self._stack.enter_async_context(self._clients[0].producer(f"sim-{number}"))
            self.senders.append(_Sender(self, number, producer, self.queues[number:] + self.queues[:number]))

    async def _created(self) -> list[Queue]:
        while True:
            try:
                return await warm_up(self._clients[1], TOPIC, self.world.groups, QUEUES_PER_GROUP)
            except TrimqError:
                await trio.sleep(0.2)

    async def run(self, readers: trio.Nursery) -> None:
        """Load until `stop`; returns when every send that was begun has ended. Readers go on in their nursery."""
        plan = self.world.plan
        if "consumers" not in plan.without:
            for number in range(plan.consumers):
                await readers.start(self._consume, number)
        if "poppers" not in plan.without:
            for number in range(POPPERS):
                await readers.start(self._pop, number)
        async with trio.open_nursery() as load:
            for sender in self.senders:
                load.start_soon(sender.run, self._stop)
            if "watchers" not in plan.without:
                load.start_soon(self._watch, "sim-committer", True)
                load.start_soon(self._watch, READERS, False)
            if "tailers" not in plan.without:
                load.start_soon(self._tail)

    def stop(self) -> None:
        self._stop.set()

    # -- readers --------------------------------------------------------------------------------------------------

    def _saw(self, who: str, message: Received) -> Value | None:
        value = value_of(message.body)
        self.history.saw(who, queue_id(message.queue), message.offset, value)
        self.world.oracle.served(message.queue.group, message.position, who)
        return value

    async def _consume(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        rng = random.Random(f"{self.world.plan.seed}/consumer/{number}")
        slow_s = self.world.plan.slow_consumer_s if number == 0 else 0.0

        async def handle(message: Received) -> None:
            value = self._saw(f"consumer {number}", message)
            if slow_s and not self._stop.is_set():
                self.world.oracle.reached["slow consumer"] += 1
                await trio.sleep(rng.random() * slow_s)
            if value is not None:
                self.history.delivered(value)

        client = self._clients[number % len(self._clients)]
        async with client.subscribe(TOPIC, group=READERS, start=Start.FIRST) as consumer:
            task_status.started()
            await consumer.run(handle, concurrency=4)

    async def _pop(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        """Take messages one by one; some are dropped as by a consumer that dies, and come again to somebody."""
        rng = random.Random(f"{self.world.plan.seed}/popper/{number}")
        client = self._clients[number % len(self._clients)]
        async with client.pop(TOPIC, group=POPPING, start=Start.FIRST, invisible=POP_INVISIBLE_S) as consumer:
            task_status.started()
            async for message in consumer:
                value = value_of(message.body)
                self.history.took(value, f"{queue_id(message.queue)} offset {message.offset}", message.attempt)
                if value is None:
                    continue
                if message.attempt > 1:
                    self.world.oracle.reached["popped again"] += 1
                if rng.random() < 0.02:
                    continue
                try:
                    if await message.ack():
                        self.history.finished[value] = message.attempt
                    else:
                        self.world.oracle.reached["acknowledged too late"] += 1
                except TrimqError:
                    self.history.client_errors += 1

    async def _tail(self) -> None:
        """Each queue from its beginning, a little at a time, through the leader or a replica by chance."""
        at = dict.fromkeys(self.queues, 0)
        rng = random.Random(f"{self.world.plan.seed}/tailer")
        async with self._clients[1].pull() as consumer:
            while not self._stop.is_set():
                await trio.sleep(rng.expovariate(1 / TAIL_EVERY_S))
                queue = rng.choice(self.queues)
                replica = self.world.replica(rng.choice(self.world.nodes), queue.group)
                address = replica.address if replica is not None and rng.random() < 0.6 else None
                with trio.move_on_after(3.0):
                    try:
                        batch = await consumer.read(queue, at[queue], max=64, wait=0.0, replica=address)
                    except TrimqError:
                        self.history.client_errors += 1
                        continue
                    for message in batch.messages:
                        self._saw(f"tailer through {address or 'the leader'}", message)
                    if batch.messages or batch.first_offset > at[queue]:
                        at[queue] = batch.next_offset

    async def _watch(self, group: str, moves: bool) -> None:
        """Ask for committed offsets and queue ends, one question at a time; `moves`: commit the end before."""
        rng = random.Random(f"{self.world.plan.seed}/watcher/{group}")
        async with self._clients[1].pull(group) as consumer:
            while not self._stop.is_set():
                await trio.sleep(rng.expovariate(1 / WATCH_EVERY_S))
                with trio.move_on_after(10.0):
                    await self._ask(consumer, group, rng.choice(self.queues), moves=moves)

    async def _ask(self, consumer: PullConsumer, group: str, queue: Queue, *, moves: bool) -> None:
        """One look at one offset. Errors are counted, not judged."""
        history, named = self.history, queue_id(queue)
        try:
            if moves:
                _, end = await consumer.bounds(queue)
                history.told_ends[named].append(end)
                await consumer.commit({queue: end})
                history.told_offsets[group, named].append(end)  # the answer says that it is applied
            told = await consumer.committed(queue)
        except TrimqError:
            history.client_errors += 1
            return
        if told is not None:
            history.told_offsets[group, named].append(told)

    # -- the end --------------------------------------------------------------------------------------------------

    async def send_fresh(self, bar_s: float) -> bool:
        """One new message to each group: acknowledged within the bar?"""
        for number, group in enumerate(self.world.groups):
            own = [queue for queue in self.queues if queue.group == group]
            async with self._clients[1].producer(f"sim-fresh-{group}") as producer:
                sender = _Sender(self, FRESH + number, producer, own)
                with trio.move_on_after(bar_s) as scope:
                    acknowledged = await sender.send_one()
                if scope.cancelled_caught or not acknowledged:
                    return False
        return True

    async def all_delivered(self) -> bool:
        """Wait until the consumers have got everything that was acknowledged; False when they do not."""
        if "consumers" in self.world.plan.without:
            return False
        history = self.history
        wanted = [value for value, (_, outcome) in history.sends.items() if outcome is Outcome.OK]
        await self.world.until(lambda: all(value in history.deliveries for value in wanted), DELIVERY_BAR_S)
        return True

    async def all_popped(self) -> bool:
        """The same for those who pop: nothing stays invisible."""
        if "poppers" in self.world.plan.without:
            return False
        history = self.history
        wanted = [value for value, (_, outcome) in history.sends.items() if outcome is Outcome.OK]
        await self.world.until(lambda: all(value in history.popped for value in wanted), DELIVERY_BAR_S)
        return True

    async def read_everything(self) -> None:
        """Every queue from its first offset to its end through every node, into the history."""
        async with self._clients[1].pull() as consumer:
            for queue in self.queues:
                named = queue_id(queue)
                for node in self.world.nodes:
                    replica = self.world.replica(node, queue.group)
                    if replica is None:
                        continue
                    found: dict[int, Value | None] = {}
                    offset = first = self._first_offset(replica, queue)
                    end = self._end_offset(replica, queue)
                    with trio.move_on_after(READ_DEADLINE_S):
                        while offset < end:
                            try:
                                batch = await consumer.read(queue, offset, max=256, wait=0.5, replica=replica.address)
                            except TrimqError:
                                await trio.sleep(0.1)
                            else:
                                found.update((m.offset, value_of(m.body)) for m in batch.messages)
                                offset = batch.next_offset
                            # The read may be what finds rot: then the replica is installed anew, from peers that have
                            # removed more. Retention may go on meanwhile too.
                            replica = self.world.replica(node, queue.group) or replica
                            first = max(first, self._first_offset(replica, queue))
                            offset = max(offset, first)
                    self.history.reads[node.name, named] = found
                    self.history.first[node.name, named] = max(first, self._first_offset(replica, queue))
                    self.history.ends[node.name, named] = end

    def _first_offset(self, replica: Replica, queue: Queue) -> int:
        return replica.store.queues.first_offset(self._key(replica, queue))

    def _end_offset(self, replica: Replica, queue: Queue) -> int:
        return replica.store.queues.next_offset(self._key(replica, queue))

    @staticmethod
    def _key(replica: Replica, queue: Queue) -> int:
        info = replica.state.topics.get(queue.topic.encode())
        return (info.tid << 16 | queue.id) if info is not None else -1

    def outcomes(self) -> Sequence[tuple[object, Outcome]]:
        return [(value, outcome) for value, (_, outcome) in self.history.sends.items()]
