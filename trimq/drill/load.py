"""The load of a drill: idempotent producers at a fixed rate, and a prober per replica group.

The load is an open loop: a message is sent when its time has come, whether or not the ones before are acknowledged,
so a stall shows as what users would feel. Each producer keeps its own sequence; a message goes to a fixed queue and
never elsewhere, so order can be judged.

A prober sends one message each 5 ms to one group and notes when the answer came. A probe counts for a failover only
when it was *begun* after the blow: what the victim had answered before does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from trimq import Client, Message, Producer, Queue
from trimq.client.model import SendStatus
from trimq.drill.history import BODY_BYTES, History, Outcome, QueueId, Value, make_body
from trimq.errors import NotStored, SendUnknown, TrimqError

PRODUCERS = 8
PROBE_EVERY_S = 0.005
_TICK_S = 0.01
SEND_DEADLINE_S = 30.0
"""Given to the client as its default: a scope per message would cost more than the message."""


@dataclass(slots=True)
class Sender:
    """One producer of the drill: a number, a sequence, and the queues it writes to in turn."""

    number: int
    producer: Producer
    queues: Sequence[Queue]
    history: History
    body_bytes: int = BODY_BYTES
    in_flight: int = 0
    next_sequence: int = 0
    _begun: trio.Event = field(default_factory=trio.Event)

    async def busy(self) -> None:
        """Return while a send is in flight."""
        if not self.in_flight:
            self._begun = trio.Event()
            await self._begun.wait()

    async def send_one(self) -> float | None:
        """Send the next value; returns when the OK came (`trio.current_time()`), None for any other end."""
        value = Value(self.number, self.next_sequence)
        queue = self.queues[self.next_sequence % len(self.queues)]
        self.next_sequence += 1
        target = QueueId(queue.topic, queue.group, queue.id)
        self.history.begin(value, target)
        self.in_flight += 1
        self._begun.set()
        message = Message(topic=queue.topic, body=make_body(value, self.body_bytes))
        try:
            receipt = await self.producer.send(message, queue=queue)
        except NotStored:
            self.history.client_errors += 1
            self.history.end(value, Outcome.FAILED)
        except (SendUnknown, TrimqError):
            self.history.client_errors += 1
        else:
            if receipt.status is SendStatus.OK:
                self.history.end(value, Outcome.OK, trio.current_time())
                return trio.current_time()
            self.history.short += 1  # stored in fewer places than asked: no acknowledgement in the promise's sense
        finally:
            self.in_flight -= 1
        return None


async def run_sender(sender: Sender, rate: float, stop: trio.Event) -> None:
    """Send `rate` messages a second until `stop`; returns when the last one has its outcome."""
    begun = trio.current_time()
    sent = 0
    async with trio.open_nursery() as nursery:
        while not stop.is_set():
            due = int((trio.current_time() - begun) * rate)
            while sent < due:
                # The sequence is drawn inside the task, right before the message enters the producer's lane: tasks
                # that become runnable together start in any order.
                nursery.start_soon(sender.send_one)
                sent += 1
            await trio.sleep(_TICK_S)


@dataclass(slots=True)
class Prober:
    """Watches one replica group from a client's seat."""

    sender: Sender
    waiting_since: float = 0.0
    recovered_at: float | None = None
    recovered: trio.Event = field(default_factory=trio.Event)
    longest_s: float = 0.0
    """The longest stretch without an OK since `watch`."""
    _last_ok: float = 0.0

    def watch(self, since: float) -> None:
        """From now on look for the first OK of a probe begun after `since`."""
        self.waiting_since, self.recovered_at, self.recovered = since, None, trio.Event()
        self.longest_s, self._last_ok = 0.0, since

    async def probe(self) -> None:
        begun = trio.current_time()
        answered = await self.sender.send_one()
        if answered is not None:
            self.longest_s = max(self.longest_s, answered - self._last_ok)
            self._last_ok = answered
        if answered is not None and self.recovered_at is None and begun > self.waiting_since > 0:
            self.recovered_at = answered
            self.recovered.set()

    async def run(self, stop: trio.Event) -> None:
        """One probe each 5 ms until `stop`, each in its own task: an unanswered one holds nothing up."""
        async with trio.open_nursery() as nursery:
            next_at = trio.current_time()
            while not stop.is_set():
                nursery.start_soon(self.probe)
                next_at = max(next_at + PROBE_EVERY_S, trio.current_time() - PROBE_EVERY_S)
                await trio.sleep_until(next_at)


async def warm_up(client: Client, topic: str, groups: Sequence[str], queues: int) -> list[Queue]:
    """Create the drill's topic in every group and return its queues, once all are on the name server."""
    await client.admin.create_topic(topic, queues=queues, groups=list(groups))
    while True:
        route = await client.admin.route(topic)
        found = list(route.write_queues)
        if {queue.group for queue in found} == set(groups):
            return found
        await trio.sleep(0.05)
