"""Delays and times of the library against a real broker: exact, listed, cancelled; under Trio and asyncio."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio
import pytest

import trimq
from tests.client.test_with_broker import BACKENDS, Names, run
from trimq import blocking
from trimq.errors import BadRequest


@BACKENDS
def test_delayed_messages_come_at_their_time_and_recalled_ones_never(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("reminders")
        async with trimq.connect(namesrv) as mq, mq.producer() as producer:
            began = datetime.now(UTC)
            await producer.send(trimq.Message(topic=topic, body=b"0.6", delay=timedelta(seconds=0.6)))
            await producer.send(trimq.Message(topic=topic, body=b"0.3", at=began + timedelta(seconds=0.3)))
            await producer.send(trimq.Message(topic=topic, body=b"past", at=began - timedelta(days=1)))
            await producer.send(trimq.Message(topic=topic, body=b"level", delay_level=2))  # 100 ms at this broker
            never = await producer.send(trimq.Message(topic=topic, body=b"never", delay=timedelta(seconds=4)))
            far = await producer.send(
                trimq.Message(topic=topic, body=b"far", delay=timedelta(days=1000), keys=["k"], tag="A")
            )
            assert {each.id for each in await mq.admin.timers(topic)} >= {never.id, far.id}
            assert await producer.recall(never)
            assert not await producer.recall(never)
            seen: dict[bytes, float] = {}
            with anyio.fail_after(10):
                async with mq.pull() as reader:
                    async for message in reader.iterate(topic, follow=True):
                        seen[message.body] = (message.stored_at - began).total_seconds()
                        if len(seen) == 4:
                            break
            assert set(seen) == {b"past", b"level", b"0.3", b"0.6"}
            # Times travel as whole milliseconds; the part behind is cut off.
            assert 0.299 <= seen[b"0.3"] < seen[b"0.6"]
            assert 0.599 <= seen[b"0.6"] < 5
            (waits,) = await mq.admin.timers(topic)
            assert (waits.id, waits.topic, waits.keys, waits.tag) == (far.id, topic, ("k",), "A")
            assert abs((waits.due - began).total_seconds() - 1000 * 86_400) < 5
            assert await mq.admin.cancel_timer(waits)
            assert await mq.admin.timers(topic) == []
            with pytest.raises(BadRequest, match="timerMaxDelaySec"):
                await producer.send(trimq.Message(topic=topic, body=b"", delay=timedelta(days=5000)))
            plain = await producer.send(trimq.Message(topic=topic, body=b""))
            with pytest.raises(BadRequest, match="cannot be recalled"):
                await producer.recall(plain)

    run(backend, body)


def test_recall_from_plain_threads(namesrv: str, fresh: Names) -> None:
    topic = fresh("reminders")
    with blocking.connect(namesrv) as mq, mq.producer() as producer:
        receipt = producer.send(blocking.Message(topic=topic, body=b"x", delay=timedelta(hours=1)))
        (waits,) = mq.admin.timers(topic)
        assert waits.id == receipt.id
        assert producer.recall(receipt)
        assert mq.admin.timers(topic) == []
