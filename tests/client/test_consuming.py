"""Every way to consume, against a real broker: where it begins, what bounds it, who gets which queue."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import anyio
import pytest

import trimq
from tests.client.test_with_broker import BACKENDS, Names, run, until
from trimq import blocking
from trimq.client.limits import Pace
from trimq.errors import BadRequest


async def fill(mq: trimq.Client, topic: str, count: int, *, first: int = 0) -> None:
    async with mq.producer() as producer, producer.stream() as stream:
        for number in range(first, first + count):
            await stream.send(trimq.Message(topic=topic, body=b"%d" % number))


@BACKENDS
def test_a_group_begins_at_a_time(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=1)
            await fill(mq, topic, 3)
            await anyio.sleep(0.05)
            now = datetime.now(UTC)
            await fill(mq, topic, 3, first=3)
            # A queue that still begins at 0 is "young": every new group gets 0 there, whatever it asks (RocketMQ).
            async with mq.pull(fresh("g")) as reader:
                (queue,) = await reader.queues(topic)
                at = await reader.offset_at(queue, now)
                assert at == 3
                await reader.assign({queue: now})
                assert [message.body for message in await reader.poll(max=10)] == [b"3", b"4", b"5"]
                await reader.seek(queue, 1)
                assert (await reader.poll(max=1))[0].body == b"1"
                await reader.commit()
                assert await reader.committed(queue) == 2

    run(backend, body)


@BACKENDS
@pytest.mark.parametrize("start", [trimq.Start.FIRST, trimq.Start.LAST, "time"])
def test_a_broadcast_member_begins_where_it_is_told(
    backend: str, namesrv: str, fresh: Names, start: trimq.Start | str
) -> None:
    async def body() -> None:
        topic = fresh("t")
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=1)
            await fill(mq, topic, 2)
            await anyio.sleep(0.05)
            now = datetime.now(UTC)
            await fill(mq, topic, 2, first=2)
            begin = start if isinstance(start, trimq.Start) else now
            async with mq.subscribe(topic, group=fresh("g"), mode="broadcast", start=begin) as consumer:
                await fill(mq, topic, 1, first=4)
                expected = 2 if isinstance(start, str) else {trimq.Start.FIRST: 0, trimq.Start.LAST: 4}[start]
                got = [(await anext(consumer)).body for _ in range(5 - expected)]
        assert got == [b"%d" % number for number in range(expected, 5)]

    run(backend, body)


@BACKENDS
def test_a_broadcast_member_keeps_its_place_on_its_disk(
    backend: str, namesrv: str, fresh: Names, tmp_path: Path
) -> None:
    async def body() -> None:
        topic, group = fresh("t"), fresh("g")
        file = tmp_path / "offsets.json"
        got: list[bytes] = []
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=2)
            for round_ in range(3):
                await fill(mq, topic, 4, first=4 * round_)
                async with mq.subscribe(
                    topic, group=group, mode="broadcast", start=trimq.Start.FIRST, offsets_file=file
                ) as consumer:
                    for _ in range(4):
                        async with await anext(consumer) as message:
                            got.append(message.body)
            assert sorted(got) == sorted(b"%d" % number for number in range(12)), "each once, over three lives"
            file.write_text("{")
            with pytest.raises(BadRequest, match="does not hold the offsets"):
                async with mq.subscribe(topic, group=group, mode="broadcast", offsets_file=file):
                    pass
            with pytest.raises(BadRequest, match="offsets_file is for"):
                async with mq.subscribe(topic, group=group, offsets_file=file):
                    pass

    run(backend, body)


@BACKENDS
def test_a_message_that_hangs_stops_its_queue_at_the_span(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=1)
            limits = trimq.Limits(messages=50, span=100)
            async with mq.subscribe(topic, group=fresh("g"), limits=limits) as consumer:
                await fill(mq, topic, 400)
                hangs = await anext(consumer)
                seen = 0
                with anyio.move_on_after(1.0):
                    async for message in consumer:
                        async with message:
                            seen += 1
                assert 60 <= seen < 200
                assert set(consumer.positions().values()) >= {0}
                await hangs.ack()
                with anyio.fail_after(10):
                    while seen < 399:
                        async with await anext(consumer):
                            seen += 1

    run(backend, body)


@BACKENDS
def test_messages_are_handed_out_at_the_rate(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        limits = trimq.Limits(per_second=50)
        async with trimq.connect(namesrv) as mq, mq.subscribe(topic, group=fresh("g"), limits=limits) as consumer:
            await fill(mq, topic, 40)
            began = anyio.current_time()
            for _ in range(31):
                async with await anext(consumer):
                    pass
            assert 0.55 < anyio.current_time() - began < 3

    run(backend, body)


@BACKENDS
def test_a_handler_that_takes_too_long_loses_its_message(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        attempts: list[int] = []

        async def handle(message: trimq.Received) -> None:
            attempts.append(message.attempt)
            if message.attempt == 1:
                await anyio.sleep(1.5)
                raise ValueError("too late to matter")

        limits = trimq.Limits(process_s=0.4)
        async with trimq.connect(namesrv) as mq, anyio.create_task_group() as nursery:
            async with mq.subscribe(topic, group=fresh("g"), limits=limits) as consumer:
                await nursery.start(consumer.run, handle)
                await mq.send(topic, b"x")
                await until(lambda: len(attempts) == 2)
                await anyio.sleep(1.8)
            assert attempts == [1, 2], "what the first handler said at last counts no more"

    run(backend, body)


@BACKENDS
def test_a_suspended_ordered_queue_rests_and_no_attempt_is_counted(backend: str, namesrv: str, fresh: Names) -> None:
    async def body() -> None:
        topic = fresh("t")
        seen: list[tuple[bytes, int]] = []
        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=1)
            async with mq.subscribe(topic, group=fresh("g"), ordered=True, max_attempts=1) as consumer:
                await fill(mq, topic, 3)
                rests = 3
                async for message in consumer:
                    async with message:
                        seen.append((message.body, message.attempt))
                        if message.body == b"1" and rests:
                            rests -= 1
                            raise trimq.Suspend("not yet", after=timedelta(milliseconds=20))
                    if message.body == b"2":
                        break
        assert seen == [(b"0", 1), *[(b"1", 1)] * 4, (b"2", 1)]

    run(backend, body)


@BACKENDS
def test_an_ordered_queue_that_is_reset_waits_for_the_handler_of_before(
    backend: str, namesrv: str, fresh: Names
) -> None:
    """Found by the simulation (seed 50328): the broker sent a reader back, and two handlers had the queue at once."""

    async def body() -> None:
        topic, group = fresh("t"), fresh("g")
        busy = most = 0
        seen: list[bytes] = []
        began, go_on, done = anyio.Event(), anyio.Event(), anyio.Event()

        async def handle(message: trimq.Received) -> None:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            seen.append(message.body)
            if message.body == b"1":
                began.set()
                await go_on.wait()
            busy -= 1
            if message.body == b"2":
                done.set()

        async with trimq.connect(namesrv) as mq:
            await mq.admin.create_topic(topic, queues=1)
            async with (
                mq.subscribe(topic, group=group, ordered=True) as consumer,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(partial(consumer.run, handle, concurrency=3))
                await fill(mq, topic, 3)
                with anyio.fail_after(10):
                    await began.wait()
                    await mq.admin.reset(group, topic, to=trimq.Start.FIRST)
                    await anyio.sleep(0.5)
                    assert seen == [b"0", b"1"], "what is read after the reset waits"
                    go_on.set()
                    await done.wait()
                tasks.cancel_scope.cancel()
        assert (seen, most) == ([b"0", b"1", b"0", b"1", b"2"], 1)

    run(backend, body)


@BACKENDS
@pytest.mark.parametrize(
    "strategy", [trimq.AveragelyByCircle(), trimq.ConsistentHash(), trimq.ByMachineRoom(["none"])], ids=lambda s: s.name
)
def test_members_share_by_another_strategy(
    backend: str, namesrv: str, fresh: Names, strategy: trimq.AveragelyByCircle | trimq.ConsistentHash
) -> None:
    async def body() -> None:
        topic, group = fresh("t"), fresh("g")
        async with trimq.connect(namesrv, client_id="a") as one, trimq.connect(namesrv, client_id="b") as two:
            await one.admin.create_topic(topic, queues=6)
            async with (
                one.subscribe(topic, group=group, allocation=strategy) as first,
                two.subscribe(topic, group=group, allocation=strategy) as second,
            ):
                async with one.pull() as reader:
                    queues = sorted(await reader.queues(topic))

                def settled() -> bool:
                    return all(
                        sorted(queue for queue in consumer.assignment if queue.topic == topic)
                        == sorted(strategy.allocate(queues, ["a", "b"], me))
                        for consumer, me in ((first, "a"), (second, "b"))
                    )

                await until(settled)

    run(backend, body)


def test_threads_have_the_same_options(namesrv: str, fresh: Names, tmp_path: Path) -> None:
    topic = fresh("t")
    with (
        blocking.connect(namesrv) as mq,
        mq.subscribe(
            topic,
            group=fresh("g"),
            mode="broadcast",
            limits=blocking.Limits(messages=10),
            allocation=blocking.ConsistentHash(),
            offsets_file=tmp_path / "offsets.json",
        ) as consumer,
    ):
        mq.send(topic, b"x")
        message = consumer.poll(timeout=5)
        assert message is not None
        with message:
            pass
    assert (tmp_path / "offsets.json").exists()


@pytest.mark.parametrize("wrong", ["messages", "bytes", "span", "per_second", "process_s"])
def test_limits_are_above_zero(wrong: str) -> None:
    with pytest.raises(BadRequest, match="above 0"):
        trimq.Limits(**{wrong: 0})


def test_the_pace_saves_nothing_up() -> None:
    pace = Pace(10)
    assert [round(pace.wait_s(0.0), 3) for _ in range(3)] == [0.0, 0.1, 0.2]
    assert [round(pace.wait_s(5.0), 3) for _ in range(2)] == [0.0, 0.1]
    assert Counter([round(pace.wait_s(5.0), 3)]) == Counter([0.2])
