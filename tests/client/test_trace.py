"""Message traces and telemetry context, from one client to another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest
from opentelemetry import trace as telemetry
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

import trimq
from trimq.client.trace import HELD_MAX, Tracer
from trimq.message.trace import TRACE_TOPIC

Names = Callable[[str], str]
BACKENDS = pytest.mark.parametrize("backend", ["trio", "asyncio"])


def run(backend: str, body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(30):
            await body()

    anyio.run(bounded, backend=backend)


@BACKENDS
def test_a_message_is_traced_from_its_sender_to_its_consumer(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic, group = fresh("t"), fresh("g")
        async with trimq.connect(namesrv, trace=True) as mq:
            async with mq.subscribe(topic, group=group) as consumer:
                receipt = await mq.send(topic, b"hello", tag="A", keys=[fresh("key")])
                async for message in consumer:
                    async with message:
                        break
            assert mq.instance.tracer is not None
        async with trimq.connect(namesrv) as mq:
            with anyio.fail_after(10):
                while len(steps := await mq.admin.trace(receipt.id)) < 3:  # noqa: ASYNC110  (nobody tells us)
                    await anyio.sleep(0.05)
            assert [step.what for step in steps] == ["Pub", "SubBefore", "SubAfter"]
            assert (steps[0].topic, steps[0].success, steps[0].host) == (topic, True, receipt.leader)
            assert (steps[1].group, steps[1].attempt, steps[2].success) == (group, 1, True)
            assert await mq.admin.trace(TRACE_TOPIC) == [], "traces are not traced"

    run(backend, body)


@BACKENDS
def test_traces_that_nobody_takes_are_dropped_and_counted(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        async with trimq.connect(namesrv) as mq:
            tracer = Tracer(mq.instance, "traces")
            message = trimq.Message(topic="t", body=b"")
            began = anyio.current_time()
            for _ in range(HELD_MAX + 10):
                tracer.sent(message, "p", "", 0.001, None)
            assert tracer.dropped == 10
            assert anyio.current_time() - began < 5, "some microseconds each"

    run(backend, body)


@BACKENDS
def test_the_context_of_a_span_travels_with_a_message(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        span = NonRecordingSpan(SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=TraceFlags(1)))
        async with trimq.connect(namesrv) as mq, mq.subscribe(topic, group=fresh("g")) as consumer:
            with telemetry.use_span(span):
                await mq.send(topic, b"within")
            await mq.send(topic, b"without")
            seen: dict[bytes, int] = {}
            async for message in consumer:
                async with message:
                    seen[message.body] = telemetry.get_current_span().get_span_context().trace_id
                    if message.body == b"within":
                        assert message.properties["traceparent"] == f"00-{0xA1:032x}-{0xB2:016x}-01"
                assert telemetry.get_current_span().get_span_context().trace_id == 0, "left with the block"
                if len(seen) == 2:
                    break
        assert seen == {b"within": 0xA1, b"without": 0}

    run(backend, body)
