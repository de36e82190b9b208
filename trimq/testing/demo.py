"""The thousand messages that `run3.sh up` sends and consumes: the first proof that a fresh cluster works."""

from __future__ import annotations

from dataclasses import dataclass

import trio

import trimq

TOPIC = "trimq-demo"
_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds from the start until all were acknowledged, and until all were consumed."""

    sent_s: float
    consumed_s: float


async def send_and_consume(namesrv: str, count: int) -> Took:
    """Send `count` messages and consume them. Raises `trio.TooSlowError` when that takes longer than 30 s."""
    begun = trio.current_time()
    seen: set[bytes] = set()
    all_seen = trio.Event()
    # A second demo on the same cluster must count its own messages only.
    run = trimq.Message(topic=TOPIC, body=b"").id.encode()

    async def note(message: trimq.Received) -> None:
        if message.body.startswith(run):
            seen.add(message.body)
        if len(seen) == count:
            all_seen.set()

    with trio.fail_after(_DEADLINE_S):
        async with (
            trimq.connect(namesrv) as mq,
            mq.subscribe(TOPIC, group="trimq-demo-readers", start=trimq.Start.LAST) as consumer,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(consumer.run, note)
            async with mq.producer() as producer, producer.stream() as stream:
                for number in range(count):
                    await stream.send(trimq.Message(topic=TOPIC, body=b"%s %d" % (run, number)))
            sent = trio.current_time()
            await all_seen.wait()
            nursery.cancel_scope.cancel()
    return Took(sent - begun, trio.current_time() - begun)
